"""Puts a trained model into one file that `sequencing_np` reads without TensorFlow."""

import os
import sys

from sequencing import cli
from sequencing.errors import UserError

USAGE = """
Puts a trained model into one file, for inference with NumPy alone (nmt_np.py).

  python tools/ckpt2npz.py --model_dir runs/demo --output_file demo.npz
  python tools/ckpt2npz.py --model_dir runs/demo --output_file demo8.npz --int8
      weights as eight-bit numbers, at about a quarter of the size

The file holds weights (averages where the training keeps them), configuration and vocabularies.
"""


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('model_dir', '', 'model folder', **own)
    absl.DEFINE_string('output_file', '', 'file to write, ending in .npz', **own)
    absl.DEFINE_string('checkpoint', 'best', "'best', 'last' or the path of a checkpoint", **own)
    absl.DEFINE_bool('int8', False, 'store matrices as eight-bit numbers with a scale for each row', **own)


def main(argv=None):
    return cli.run(convert, define_flags, argv, USAGE)


def convert(flags):
    cli.require(flags, 'model_dir', 'output_file')
    if not flags.output_file.endswith('.npz'):
        raise UserError(f'--output_file {flags.output_file}: give a name that ends in .npz.')
    cli.quiet_tensorflow()  # here and not above: a mistake in the flags is told without waiting for TensorFlow
    from sequencing.translator import load_model
    from sequencing_np.model_file import ModelFile, write_model
    from sequencing_np.translator import build_model

    model, config, _, _ = load_model(flags.model_dir, flags.checkpoint)
    file = ModelFile(config, read_files(os.path.join(flags.model_dir, 'vocab')), weights_of(model))
    build_model(file, flags.model_dir)  # refuses what NumPy could not run
    write_model(flags.output_file, file, flags.int8)
    print(f'{flags.output_file}: {os.path.getsize(flags.output_file) / 2**20:.1f} MiB')
    return 0


def weights_of(model):
    """A dict of path to array; a table that serves several ends is the target's."""
    import tensorflow as tf

    paths = model._flatten(predicate=lambda leaf: isinstance(leaf, tf.Variable), with_path=True)
    named = {'/'.join(map(str, path)): variable for path, variable in paths}
    named = {name: variable for name, variable in named.items() if not name.endswith('embedding/table')}
    if model.src_embedding is not model.trg_embedding:
        named['src_embedding/table'] = model.src_embedding.table
    named['trg_embedding/table'] = model.trg_embedding.table
    return {name: variable.numpy() for name, variable in sorted(named.items())}


def read_files(folder):
    """A dict of name to bytes of all files in a folder."""
    files = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), 'rb') as file:
            files[name] = file.read()
    return files


if __name__ == '__main__':
    sys.exit(main(sys.argv))
