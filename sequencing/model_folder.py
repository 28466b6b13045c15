"""The model folder: what is in it, how it is written so that a kill at any moment loses nothing, how it is read.

config.json      the configuration in force
manifest.json    format version, package versions, data files, seed
vocab/           vocabularies
ckpt-*           the last checkpoints: weights, optimizer, position in the data, counters
best/            the weights with the best validation score
tensorboard/     scalars
translations/    the dev set as translated at each validation
"""

import fcntl
import importlib.metadata
import json
import os
import re
import subprocess
import time

import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph
from tensorflow.python.training.checkpoint_state_pb2 import CheckpointState

from sequencing.cli import note
from sequencing.config import Config
from sequencing.errors import UserError
from sequencing.options import from_dict, to_json
from sequencing.text import atomic_file

FORMAT = 1
_OBJECT_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'  # TensorFlow's key of what a checkpoint says about objects
# What reading a damaged checkpoint, or another model's, raises; IndexError where bytes are missing.
_DAMAGE = (tf.errors.OpError, OSError, AssertionError, ValueError, IndexError)


def write_atomically(path, text):
    """Writes a text file so that a reader finds the old one or the new one, never half of one."""
    with atomic_file(path) as file:
        file.write(text.encode('utf-8'))


def lock(model_dir):
    """Takes the folder for this process; the lock ends with the process. Keep what is returned.

    Raises:
      UserError: another process trains in the folder.
    """
    file = open(os.path.join(model_dir, '.lock'), 'w')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f'another training is running in {model_dir}: wait for it, stop it, or use '
                        'another --model_dir.') from None  # fmt: skip
    return file


def move_aside(model_dir):
    """Renames a folder to `DIR.old-N`, with the first N that is free, and returns the new name."""
    model_dir = model_dir.rstrip('/')
    number = 1
    while os.path.exists(f'{model_dir}.old-{number}'):
        number += 1
    os.rename(model_dir, f'{model_dir}.old-{number}')
    return f'{model_dir}.old-{number}'


def write_config(model_dir, config):
    """Stores the configuration in force."""
    write_atomically(os.path.join(model_dir, 'config.json'), to_json(config))


def read_config(model_dir):
    """The configuration of a model folder.

    Raises:
      UserError: there is no model in the folder, or one of a newer format.
    """
    path = os.path.join(model_dir, 'config.json')
    if not os.path.isdir(model_dir):
        raise UserError(f'{model_dir}: there is no such model folder.')
    if not os.path.exists(path):
        raise UserError(f'{model_dir} is not a model folder: it has no config.json. Train one with nmt_train.py.')
    manifest = read_manifest(model_dir)
    if manifest.get('format', FORMAT) > FORMAT:
        raise UserError(f'{model_dir} has format {manifest["format"]}, newer than the format {FORMAT} that this '
                        'version of sequencing reads: upgrade sequencing.')  # fmt: skip
    return from_dict(Config, _read_json(path))


def _read_json(path):
    with open(path, encoding='utf-8') as file:
        try:
            return json.load(file)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f'{path}: not valid JSON ({error}).') from None


def read_manifest(model_dir):
    """The manifest as a dict; empty where there is none."""
    path = os.path.join(model_dir, 'manifest.json')
    if not os.path.exists(path):
        return {}
    return _read_json(path)


def write_manifest(model_dir, seed, data):
    """Stores where a model came from.

    Args:
      seed: of the run.
      data: a dict about the training text, for example the key of its content.
    """
    packages = {}
    for name in ('sequencing', 'tensorflow', 'keras', 'tensorflow-probability', 'numpy', 'sentencepiece'):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    manifest = {'format': FORMAT, 'packages': packages, 'seed': seed, 'data': data, 'revision': _revision()}
    write_atomically(os.path.join(model_dir, 'manifest.json'), json.dumps(manifest, indent=2) + '\n')


def _revision():
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        done = subprocess.run(['git', '-C', folder, 'rev-parse', 'HEAD'], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''


class Checkpoints:
    """Writes and restores a training's checkpoints.

    Args:
      model_dir: the model folder.
      model, optimizer, state: what a checkpoint holds; all variables exist already.
      keep: how many of the last checkpoints stay.
    """

    def __init__(self, model_dir, model, optimizer, state, keep):
        self.model_dir, self.state, self._keep = model_dir, state, keep
        if os.path.exists(os.path.join(model_dir, 'checkpoint')) and not written(model_dir):
            raise UserError(f'{model_dir}/checkpoint is a list of checkpoints, and none of them is there: bring them '
                            'back, or use --restart to train anew.')  # fmt: skip
        self._everything = tf.train.Checkpoint(model=model, optimizer=optimizer, state=state)
        self.last = _manager(self._everything, model_dir, keep)
        self.best = _manager(tf.train.Checkpoint(model=model), os.path.join(model_dir, 'best'), keep=1)

    def save(self):
        """Writes a checkpoint; the one before stays valid until this one is complete."""
        try:
            self.last.save(checkpoint_number=int(self.state.step))
        except (OSError, tf.errors.OpError) as error:
            raise UserError(
                f'could not write a checkpoint to {self.model_dir}: {_reason(error)}. The last complete one is '
                'untouched; make room or change permissions and start again.'
            ) from error

    def save_best(self):
        """Writes the weights as the best so far."""
        try:
            self.best.save(checkpoint_number=int(self.state.step))
        except (OSError, tf.errors.OpError) as error:
            raise UserError(f'could not write to {self.model_dir}/best: {_reason(error)}.') from error

    def restore(self):
        """Restores the newest checkpoint that can be read and returns its path, or None if there is none."""
        paths = written(self.model_dir)
        for path in paths:
            try:
                self._everything.restore(path).assert_existing_objects_matched()
                self.last = _manager(self._everything, self.model_dir, self._keep, path)
                return path
            except _DAMAGE as error:
                note(f'{path} cannot be read ({_reason(error)}); trying the one before.')
        if paths:
            raise UserError(f'no checkpoint of {self.model_dir} can be read: all of {", ".join(paths)} are damaged. '
                            'Use --restart to train anew; the old folder is kept.')  # fmt: skip
        return None


def _manager(checkpoint, folder, keep, newest=None):
    """A `CheckpointManager` that knows all checkpoints of its folder: it names them to readers, and sweeps old ones.

    By itself it forgets those that the file `checkpoint` does not name, or dates later than the clock, as after a copy
    from a machine whose clock is ahead: so that file is written anew first. What is beyond the `newest` that is known
    to be complete, by default as `complete` has it, is named as the oldest: readers do not take it, and it goes first.
    """
    paths, path = written(folder), os.path.join(folder, 'checkpoint')
    good = paths[paths.index(newest) :] if newest else complete(folder)
    unsure = paths[: len(paths) - len(good)]
    if paths:
        names = [os.path.basename(each) for each in [*unsure[::-1], *good[::-1]]]
        now = {'all_model_checkpoint_timestamps': [time.time()] * len(names), 'last_preserved_timestamp': 0.0}
        state = CheckpointState(model_checkpoint_path=names[-1], all_model_checkpoint_paths=names, **now)
        write_atomically(path, text_format.MessageToString(state))
    elif os.path.exists(path):
        os.remove(path)  # it names nothing that is there
    return tf.train.CheckpointManager(checkpoint, folder, max_to_keep=keep, checkpoint_name='ckpt')


def written(folder):
    """Paths of the checkpoints that are in a folder, newest first, complete or not."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = [re.fullmatch(r'ckpt-(\d+)\.index', name) for name in names]
    numbers = sorted((int(match[1]) for match in found if match), reverse=True)
    return [os.path.join(folder, f'ckpt-{number}') for number in numbers]


def complete(folder):
    """Paths of the complete checkpoints of a folder, which may be in training, newest first.

    The file `checkpoint` names the newest: one beyond it is being written, or was when its training was killed. Where
    that file is of no use, they are all that are there. None lies outside the folder, whatever the file says.
    """
    paths = written(folder)
    try:
        state = tf.train.get_checkpoint_state(folder)
    except ValueError:  # the file is empty
        state = None
    names = [state.model_checkpoint_path, *reversed(state.all_model_checkpoint_paths)] if state else []
    listed = [os.path.join(folder, os.path.basename(name)) for name in names]
    newest = next((path for path in listed if path in paths), None)
    return paths[paths.index(newest) :] if newest else paths


def _reason(error):
    """The first line of what it says, without the names of TensorFlow's operations."""
    said = str(getattr(error, 'message', error)).splitlines()[0]
    return re.sub(r'\{\{.*?\}\} ?| ?\[Op:\w+\]', '', said)[:300]


def checkpoint_path(model_dir, which='best'):
    """The checkpoint prefix that `which` names: 'best' (else the last, where nothing was validated), 'last', a path.

    Raises:
      UserError: there is none.
    """
    if which not in ('best', 'last'):
        prefix = which.removesuffix('.index')
        if not os.path.exists(prefix + '.index'):
            raise UserError(f"--checkpoint takes 'best', 'last' or a path like {model_dir}/ckpt-1000; got {which!r}.")
        return prefix
    best, last = complete(os.path.join(model_dir, 'best')), complete(model_dir)
    found = best + last if which == 'best' else last + best
    if not found:
        raise UserError(f'{model_dir} holds no checkpoint yet: train with nmt_train.py --model_dir {model_dir}.')
    return found[0]


def restore_weights(model, path):
    """Loads a model's weights from a checkpoint and nothing else of it.

    All of them are read at once: `tf.train.Checkpoint.restore` takes a millisecond for each.

    Raises:
      UserError: the file is damaged, or belongs to another model.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        weights, shapes = checkpoint_keys(model, reader), reader.get_variable_to_shape_map()
        for key, variable in weights.items():
            if shapes[key] != variable.shape.as_list():
                raise ValueError(f'{key} is {shapes[key]} there, and {variable.shape.as_list()} in this model')
        dtypes, whole = [variable.dtype for variable in weights.values()], [''] * len(weights)
        values = tf.raw_ops.RestoreV2(prefix=path, tensor_names=[*weights], shape_and_slices=whole, dtypes=dtypes)
        for variable, value in zip(weights.values(), values):
            variable.assign(value)
    except _DAMAGE as error:
        raise UserError(f'{path} cannot be loaded: {_reason(error)}.') from error


def checkpoint_keys(model, reader):
    """The variables of a model by their keys in a checkpoint that has it as `model`.

    A key depends on all that was saved beside the model: it is the shortest path to a variable, be it the optimizer's.
    The graph of objects in the checkpoint says what each is called.

    Raises:
      ValueError: a variable is not in the checkpoint.
    """
    graph = TrackableObjectGraph.FromString(reader.get_tensor(_OBJECT_GRAPH))
    nothing = TrackableObjectGraph.TrackableObject()
    places = {child.local_name: child.node_id for child in graph.nodes[0].children}
    parts, visited, paths, keys = [(model, 'model', places.get('model'))], set(), {}, {}
    for part, path, place in parts:  # grows; the place is None for what was not saved under this path
        if (id(part), place) in visited:
            continue
        visited.add((id(part), place))
        saved = nothing if place is None else graph.nodes[place]
        if isinstance(part, tf.Variable):
            paths[id(part)] = path
            keys |= {attribute.checkpoint_key: part for attribute in saved.attributes}
        places = {child.local_name: child.node_id for child in saved.children}
        parts.extend((child, f'{path}/{name}', places.get(name)) for name, child in part._trackable_children().items())
    missing = paths.keys() - {id(variable) for variable in keys.values()}
    if missing:
        raise ValueError(f'it has no {min(paths[each] for each in missing)}')
    return keys
