"""Recurrent encoders: embedded source to one vector a token."""

import tensorflow as tf

from sequencing.layers import Dropout
from sequencing.recurrent import RecurrentLayer
from sequencing.structures import EncoderOutput


class StackRNNEncoder(tf.Module):
    """Recurrent layers one above the other, read left to right.

    Args:
      cell: 'lstm', 'gru' or 'rnn'.
      input_size: units of an embedded token.
      state_size: units of a layer.
      layers: how many.
      dropout: chance of dropping a unit of a layer's input.
    """

    directions = 1

    def __init__(self, cell, input_size, state_size, layers=1, dropout=0.0, name='rnn_encoder'):
        super().__init__(name=name)
        self.output_size = state_size
        units = state_size // self.directions
        with self.name_scope:
            self.dropout = [Dropout(dropout, name=f'dropout_{i}') for i in range(layers)]
            self.layers = [
                [
                    RecurrentLayer(cell, input_size if i == 0 else state_size, units, name=f'layer_{i}_{way}')
                    for way in ('forward', 'backward')[: self.directions]
                ]
                for i in range(layers)
            ]

    def __call__(self, embedded, mask, seed=None):
        """Encodes.

        Args:
          embedded: `[B, S, input_size]` float.
          mask: `[B, S]` bool.
          seed: `[2]` int32 for dropout, or None for none.
        Returns:
          `EncoderOutput` with outputs `[B, S, state_size]` and, as final state, a list over layers of lists over
          directions of states `[B, state_size / directions]`.
        """
        outputs, finals = embedded, []
        for dropout, ways in zip(self.dropout, self.layers):
            inputs = dropout(outputs, seed)
            read = [layer(inputs, mask, reverse=i == 1) for i, layer in enumerate(ways)]
            outputs = tf.concat([states for states, _ in read], axis=-1)
            finals.append([final for _, final in read])
        return EncoderOutput(outputs, mask, finals)


class StackBidirectionalRNNEncoder(StackRNNEncoder):
    """Recurrent layers that read both ways, each direction with half of `state_size`; a layer sees both of the last.

    Reference: Bahdanau et al., 2015, section 3.2, https://arxiv.org/abs/1409.0473
    """

    directions = 2
