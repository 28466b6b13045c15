"""Averages the weights of several checkpoints into a new model folder."""

import dataclasses
import json
import os
import shutil
import sys
import tempfile

import numpy as np

from sequencing import cli
from sequencing.errors import UserError

USAGE = """
Averages the weights of several checkpoints of one model into a new model folder, which nmt_infer.py reads.

  python tools/average_checkpoints.py --model_dir runs/en2de --last 3 --output_dir runs/en2de.average
  python tools/average_checkpoints.py --model_dir runs/en2de --checkpoints runs/en2de/ckpt-8000,runs/en2de/ckpt-9000 \\
      --output_dir runs/en2de.average

Training keeps the last train.keep_checkpoints. Averaged are the weights as trained; where a moving average (train.ema)
was kept as well, `best` holds that one, and --checkpoints takes `best` too.
"""


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('model_dir', '', 'model folder', **own)
    absl.DEFINE_integer('last', 0, 'average this many of the last checkpoints', lower_bound=0, **own)
    absl.DEFINE_list('checkpoints', [], "average these: paths, 'best' or 'last', parted by commas", **own)
    absl.DEFINE_string('output_dir', '', 'model folder to make', **own)


def main(argv=None):
    return cli.run(average, define_flags, argv, USAGE)


def average(flags):
    cli.require(flags, 'model_dir', 'output_dir')
    if bool(flags.last) == bool(flags.checkpoints):
        raise UserError('which checkpoints? Give either --last N or --checkpoints A,B,...')
    output_dir = flags.output_dir.rstrip('/')
    if os.path.exists(output_dir):
        raise UserError(f'--output_dir {output_dir} is there already: name a new folder.')
    cli.quiet_tensorflow()
    from build_model import build_model
    from sequencing.model_folder import read_config
    from sequencing.translator import load_vocabs

    config = read_config(flags.model_dir)
    paths = chosen(flags)
    model = build_model(config, *load_vocabs(config, flags.model_dir))
    for variable, value in zip(model.variables, mean_weights(model, paths)):
        variable.assign(value)
    write_folder(model, config, flags.model_dir, output_dir, paths)
    cli.note(f'{output_dir}: the mean of {", ".join(paths)}')
    return 0


def chosen(flags):
    """The checkpoint prefixes that are meant, oldest first."""
    from sequencing.model_folder import checkpoint_path, complete

    if flags.checkpoints:
        return [checkpoint_path(flags.model_dir, name) for name in flags.checkpoints]
    kept = complete(flags.model_dir)[::-1]
    if len(kept) < flags.last:
        raise UserError(f'--last {flags.last}: {flags.model_dir} keeps {len(kept)} checkpoints. Set '
                        'train.keep_checkpoints in training to have more.')  # fmt: skip
    return kept[-flags.last :]


def mean_weights(model, paths):
    """The mean of each variable over checkpoints, summed in float64; what is not a float is the last one's."""
    from sequencing.model_folder import restore_weights

    sums = [0.0] * len(model.variables)
    for path in paths:
        restore_weights(model, path)
        sums = [total + variable.numpy().astype(np.float64) for total, variable in zip(sums, model.variables)]
    return [
        (total / len(paths)).astype(variable.dtype.as_numpy_dtype) if variable.dtype.is_floating else variable
        for total, variable in zip(sums, model.variables)
    ]


def write_folder(model, config, model_dir, output_dir, paths):
    """A model folder with weights as the best of a training; it takes its name when it is complete."""
    import tensorflow as tf

    from sequencing.model_folder import read_manifest, write_atomically, write_config

    parent = os.path.dirname(os.path.abspath(output_dir))
    try:
        with tempfile.TemporaryDirectory(dir=parent) as scratch:
            partial = os.path.join(scratch, 'model')
            shutil.copytree(os.path.join(model_dir, 'vocab'), os.path.join(partial, 'vocab'))
            write_config(partial, dataclasses.replace(config, model_dir=output_dir))
            manifest = {**read_manifest(model_dir), 'averaged_from': [os.path.abspath(path) for path in paths]}
            write_atomically(os.path.join(partial, 'manifest.json'), json.dumps(manifest, indent=2) + '\n')
            best = os.path.join(partial, 'best')
            manager = tf.train.CheckpointManager(
                tf.train.Checkpoint(model=model), best, max_to_keep=1, checkpoint_name='ckpt'
            )
            step = paths[-1].rpartition('-')[2]
            manager.save(checkpoint_number=int(step) if step.isdigit() else len(paths))
            os.rename(partial, output_dir)
    except OSError as error:
        raise UserError(f'--output_dir {output_dir}: cannot be written ({error}).') from error


if __name__ == '__main__':
    sys.exit(main(sys.argv))
