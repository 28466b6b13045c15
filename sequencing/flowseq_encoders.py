"""FlowSeq's source encoders: embedded tokens to states, and one vector for the whole sentence (its last state).

An encoder maps flat rows `[B * S, E]` of embedded tokens, their `Rows` and a seed to flat `[B * S, latent_size]`, zero
at padding.
"""

import tensorflow as tf

from sequencing.blocks import Bidirectional, EncoderBlock, uniform_linear
from sequencing.layers import Dropout


class TransformerEncoder(tf.Module):
    """Scaled embeddings plus positions, then post-norm Transformer layers.

    Args:
      size: width of embeddings and states.
      hidden_size: of feed-forward.
      layers, heads: how many.
      dropout: within layers; embedding_dropout: in front of them.
    """

    def __init__(self, size, hidden_size, layers, heads, dropout=0.0, embedding_dropout=0.0, name='encoder'):
        super().__init__(name=name)
        self.size = size
        with self.name_scope:
            self.dropout = Dropout(embedding_dropout)
            self.layers = [EncoderBlock(size, hidden_size, heads, dropout, name=f'layer_{i}') for i in range(layers)]

    def __call__(self, x, rows, seed=None):
        x = x * tf.cast(self.size**0.5, x.dtype) + rows.positions(self.size, x.dtype)
        x = self.dropout(x, seed)
        for layer in self.layers:
            x = layer(x, rows, seed)
        return rows.only_real(x)


class RecurrentEncoder(tf.Module):
    """Bidirectional recurrent layers and a projection with ELU behind them.

    Args:
      embedding_size, state_size, size: widths of embeddings, of recurrent states (both directions), of the result.
      layers: recurrent layers.
      cell: 'lstm', 'gru' or 'rnn'.
      embedding_dropout: in front of the layers.
    """

    def __init__(self, embedding_size, state_size, size, layers, cell='lstm', embedding_dropout=0.0, name='encoder'):
        super().__init__(name=name)
        with self.name_scope:
            self.dropout = Dropout(embedding_dropout)
            self.recurrent = Bidirectional(cell, embedding_size, state_size, layers)
            self.projection = uniform_linear(state_size, size, bias=False, name='projection')

    def __call__(self, x, rows, seed=None):
        states = self.recurrent(rows.padded(self.dropout(x, seed)), rows.mask)
        return rows.only_real(tf.nn.elu(self.projection(rows.flat(states))))


def last_state(x, rows):
    """Flat `[B * S, D]` to each sentence's row at its last real step, `[B, D]`: that of EOS."""
    last = tf.maximum(rows.counts(tf.int32) - 1, 0)
    x = tf.pad(x, [[0, 1], [0, 0]])  # a row of zeros for a source without any step
    return tf.gather(x, last + rows.time * tf.range(rows.batch))
