"""Draws what a model looked at: one picture of the attention weights of one sentence."""

import sys

from sequencing import cli
from sequencing.errors import UserError

USAGE = """
Draws an alignment picture for a sentence.

  python tools/plot_attention.py --model_dir runs/demo --sentence 'The old house is small.' --output_file attention.png
"""


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('model_dir', '', 'model folder', **own)
    absl.DEFINE_string('sentence', '', 'source sentence', **own)
    absl.DEFINE_string('output_file', 'attention.png', 'picture to write; its ending decides the format', **own)
    absl.DEFINE_string('checkpoint', 'best', "'best', 'last' or the path of a checkpoint", **own)


def main(argv=None):
    return cli.run(plot, define_flags, argv, USAGE)


def plot(flags):
    cli.require(flags, 'model_dir', 'sentence')
    cli.quiet_tensorflow()
    from sequencing.translator import load

    result = next(load(flags.model_dir, flags.checkpoint).stream([flags.sentence], attention=True))
    output = result.outputs[0]
    if output.attention is None or not output.attention.size:
        raise UserError('this model keeps no attention weights, or its translation is empty.')
    draw(result.source_tokens + ['</s>'], output.tokens, output.attention, flags.output_file)
    print(f'{output.translation}\n{flags.output_file}')
    return 0


def draw(source, target, weights, path):
    """Writes a picture with source pieces along the top and target pieces down the side."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(2 + 0.45 * len(source), 1.5 + 0.35 * len(target)))
    axes.imshow(weights, cmap='Greys', vmin=0.0, vmax=1.0, aspect='auto')
    axes.set_xticks(range(len(source)), source, rotation=60, ha='left')
    axes.set_yticks(range(len(target)), target)
    axes.xaxis.tick_top()
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f'--output_file {path}: {error}') from None
    pyplot.close(figure)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
