"""The file that holds a whole model, a NumPy `.npz` in which nothing is pickled.

    format            the version of this list, a number
    config            JSON of the configuration, as bytes (uint8)
    vocab/NAME        the files of the model folder's `vocab/`, as bytes
    weights/PATH      float32; or int8, and then
    scales/PATH       float32, what the int8 numbers are multiplied by, one a row: see `quantise`

PATH is where the model keeps a weight: `encoder/layers/0/kernel` and so on.
"""

import json
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from sequencing.config import Config
from sequencing.errors import UserError
from sequencing.options import from_dict, to_json
from sequencing.text import atomic_file, check_file
from sequencing.vocab import SentencePieceVocab, Vocab

FORMAT = 1
_DAMAGE = (zipfile.BadZipFile, zlib.error, AttributeError, ValueError, KeyError, TypeError, EOFError, OSError)
EXACT = ('matrix', 'triangles', 'permutation')  # linear maps of flows: what is inverted keeps its digits


class ModelFile(NamedTuple):
    """What is in the file."""

    config: Config
    vocab_files: dict  # of name to bytes
    weights: dict  # of path to float32 array


def write_model(path, model, int8=False):
    """Writes a `ModelFile`, which appears complete or not at all; with `int8`, matrices as eight-bit numbers."""
    arrays = {'format': np.array(FORMAT), 'config': _bytes(to_json(model.config).encode())}
    arrays.update({f'vocab/{name}': _bytes(data) for name, data in model.vocab_files.items()})
    for name, array in model.weights.items():
        if int8 and array.ndim == 2 and not name.endswith(EXACT):
            arrays[f'weights/{name}'], arrays[f'scales/{name}'] = quantise(array, by_row=name.endswith('table'))
        else:
            arrays[f'weights/{name}'] = np.asarray(array, np.float32)
    with atomic_file(path) as file:
        np.savez(file, **arrays)


def read_model(path):
    """Reads a `ModelFile`, int8 numbers made float32.

    Raises:
      UserError: there is no such file, it is no model, or it is of a newer format.
    """
    check_file(path, 'model')
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        number = int(arrays['format'])
        if number > FORMAT:
            raise UserError(f'{path} has format {number}, newer than the format {FORMAT} that this version of '
                            'sequencing_np reads: upgrade it.')  # fmt: skip
        config = from_dict(Config, json.loads(arrays['config'].tobytes()))
    except _DAMAGE as error:
        raise UserError(f'{path} is not a model that tools/ckpt2npz.py wrote, or it is damaged: {error}.') from None
    weights = {}
    for name, array in _below(arrays, 'weights/').items():
        scale = arrays.get(f'scales/{name}')
        weights[name] = array if scale is None else array * scale
    return ModelFile(config, {name: array.tobytes() for name, array in _below(arrays, 'vocab/').items()}, weights)


def quantise(array, by_row):
    """A matrix as int8 numbers, symmetric around zero, and the scales to multiply them by.

    Args:
      array: `[N, M]` float32.
      by_row: a scale for each row `[N, 1]`, as for tables, in which a row is a token; else one for each column
        `[1, M]`, an output of a linear map.
    Returns:
      int8 `[N, M]` and scales; no number is off by more than half its scale.
    """
    scale = np.abs(array).max(axis=1 if by_row else 0, keepdims=True) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    return np.clip(np.rint(array / scale), -127, 127).astype(np.int8), scale


def vocabs(model):
    """The source and target `Vocab` of a `ModelFile`."""
    if model.config.data.joint_vocab:
        return (_vocab(model, 'joint'),) * 2
    return _vocab(model, 'src'), _vocab(model, 'trg')


def _vocab(model, name):
    try:
        description = json.loads(model.vocab_files[f'{name}.json'])
        if description['kind'] == 'sentencepiece':
            return SentencePieceVocab(model.vocab_files[f'{name}.model'])
        tokens = model.vocab_files[f'{name}.tokens'].decode().split('\n')[:-1]
    except KeyError as error:
        raise UserError(f'the model has no vocabulary {name!r}: {error} is not in its file.') from None
    return Vocab(tokens, description['delimiter'], description['subword'])


def _bytes(data):
    return np.frombuffer(data, np.uint8)


def _below(arrays, prefix):
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


class Weights:
    """Weights by path, as the parts of a model take them.

    Args:
      arrays: dict of path to float32 array.
      xp: the array module; see `array_module`.
      prefix: what paths start with.
      read: paths that were asked for so far; shared by all that are below these.
    """

    def __init__(self, arrays, xp=np, prefix='', read=None):
        self.arrays, self.xp, self.prefix = arrays, xp, prefix
        self.read = set() if read is None else read

    def __getitem__(self, name):
        self.read.add(self.prefix + name)
        return self.xp.asarray(self.arrays[self.prefix + name])

    def __contains__(self, name):
        return self.prefix + name in self.arrays

    def below(self, name):
        """The weights of a part."""
        return Weights(self.arrays, self.xp, f'{self.prefix}{name}/', self.read)

    def listed(self, name):
        """The weights of each part in a list."""
        start = f'{self.prefix}{name}/'
        places = {int(path[len(start) :].split('/')[0]) for path in self.arrays if path.startswith(start)}
        return [self.below(f'{name}/{place}') for place in sorted(places)]
