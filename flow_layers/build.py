"""From numbers to the flow of the paper: units, steps, levels."""

import tensorflow as tf

from flow_layers.actnorm import ActNorm
from flow_layers.conditioners import ConvConditioner, RecurrentConditioner, SelfAttentionConditioner
from flow_layers.coupling import Coupling, FeatureSplit, TimeSplit
from flow_layers.gaussian import ConditionalGaussian
from flow_layers.invertible_linear import MultiHeadLinear
from flow_layers.sequence_flow import MultiLevelFlow, SequenceFlow
from flow_layers.transforms import TRANSFORMS


def build_flow(
    depth,
    source_size,
    steps,
    factors,
    hidden_size=None,
    coupling='self_attention',
    transform='affine',
    heads=4,
    positions='attend',
    cell='lstm',
    kernel_size=3,
    dropout=0.0,
    linear='plain',
    unmasked_first=False,
):
    """The prior flow of FlowSeq.

    Args:
      depth: channels D of the latent.
      source_size: width of the source encodings.
      steps: steps of each level, as in (4, 4, 2).
      factors: for each level but the last, one part in how many is done after it.
      hidden_size: of the conditioners; None for twice the conditioning part, at most 1024.
      coupling: 'self_attention', 'recurrent' or 'conv'.
      transform: 'additive', 'affine' or 'nlsq'.
      heads, positions: of self-attention couplings; with positions 'attend' every level starts with a unit in which
        positions attend to the latent.
      cell: of recurrent couplings; kernel_size, unmasked_first: of convolutional ones.
      dropout: in all conditioners.
      linear: parametrisation of the linear maps, 'plain' or 'lu'.
    Returns:
      `MultiLevelFlow`.
    """
    change = TRANSFORMS[transform]

    def conditioner(split, positions='add'):
        hidden = hidden_size or min(2 * split.condition_size, 1024)
        sizes = split.condition_size, source_size, change.parameters * split.changed_size, hidden
        if coupling == 'self_attention':
            return SelfAttentionConditioner(*sizes, heads, positions, dropout)
        if coupling == 'recurrent':
            return RecurrentConditioner(*sizes, cell, dropout)
        if coupling == 'conv':
            return ConvConditioner(*sizes, kernel_size, dropout, unmasked_first)
        raise ValueError(f"coupling is 'self_attention', 'recurrent' or 'conv'; got {coupling!r}")

    def couple(name, split, positions='add'):
        with tf.name_scope(name):
            return Coupling(split, change, conditioner(split, positions), name=name)

    def unit(size, in_time, name):
        """Couplings by halves, by even and odd channels, and by even and odd steps, ActNorm between."""
        with tf.name_scope(name):
            layers = [couple(f'halves_{order}', FeatureSplit(size, order)) for order in ('up', 'down')]
            layers.append(ActNorm(size))
            for order in ('up', 'down'):
                layers.append(couple(f'interleaved_{order}', FeatureSplit(size, order, interleaved=True)))
            if in_time:
                layers.append(ActNorm(size))
                layers += [couple(f'time_{order}', TimeSplit(size, order)) for order in ('up', 'down')]
            return SequenceFlow(layers, name)

    def step(size, in_time, name):
        with tf.name_scope(name):
            layers = []
            for kind in 'ab':
                layers += [ActNorm(size), MultiHeadLinear(size, kind, linear), unit(size, in_time, f'unit_{kind}')]
            return SequenceFlow(layers, name)

    def position_unit(size):
        with tf.name_scope('positions'):
            up = couple('up', FeatureSplit(size, 'up'), positions='attend')
            down = couple('down', FeatureSplit(size, 'down'))
            return SequenceFlow([ActNorm(size), up, down], 'positions')

    def level(i, size):
        last = i == len(steps) - 1
        with tf.name_scope(f'level_{i}'):
            layers = [position_unit(size)] if coupling == 'self_attention' and positions == 'attend' else []
            layers += [step(size, not last, f'step_{j}') for j in range(steps[i])]
            if not last:
                layers.append(couple('ending', FeatureSplit(size, 'up', factor=factors[i])))
            return SequenceFlow(layers, f'level_{i}')

    sizes = MultiLevelFlow.sizes(depth, factors)
    if len(steps) != len(sizes):
        raise ValueError(f'{len(steps)} levels have {len(steps) - 1} factors; got {len(factors)}')
    with tf.name_scope('flow'):
        return MultiLevelFlow([level(i, size) for i, size in enumerate(sizes)], depth, factors)


def build_gaussian_prior(depth, source_size, hidden_size, heads, dropout=0.0):
    """A diagonal Gaussian that reads its means and deviations off source and position; arguments as in `build_flow`."""
    with tf.name_scope('prior'):
        conditioner = SelfAttentionConditioner(depth, source_size, 2 * depth, hidden_size, heads, dropout=dropout)
        return SequenceFlow([ConditionalGaussian(depth, conditioner)])
