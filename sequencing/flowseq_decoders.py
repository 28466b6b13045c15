"""FlowSeq's decoders p(y | z, x): all target tokens at once, from latents and source.

A decoder maps flat latents `[B * T, latent_size]` to flat features `[B * T, latent_size]` that the output layer reads.
`prepare` makes what it needs of the source once a batch; the latents may hold several targets for each source.
"""

import tensorflow as tf

from sequencing.blocks import (
    Bidirectional,
    DecoderBlock,
    GlobalAttention,
    SourceAttentionBlock,
    source_beside_target,
    uniform_linear,
)
from sequencing.layers import Dropout


class TransformerDecoder(tf.Module):
    """Positions attend to the latents; Transformer layers follow. Latents enter through that attention alone.

    With `copy_source`, a position begins with what the source says at the same place, so that where to look need not be
    found first (after the copied inputs of Gu et al., 2018, https://arxiv.org/abs/1711.02281, section 3.1, and the soft
    copy of Wei et al., 2019, https://arxiv.org/abs/1906.02041; theirs are embeddings, these are the encoder's states).

    Args:
      size: width of latents and source states.
      hidden_size: of feed-forward.
      layers, heads: how many.
      dropout: within layers; word_dropout: of whole latents.
      copy_source: whether source states are added, see `blocks.source_beside_target`.
    """

    def __init__(self, size, hidden_size, layers, heads, dropout=0.0, word_dropout=0.0, copy_source=False,
                 name='decoder'):  # fmt: skip
        super().__init__(name=name)
        self.size, self.copy_source = size, copy_source
        with self.name_scope:
            self.word_dropout = Dropout(word_dropout, broadcast_axes=(-1,), name='word_dropout')
            self.position_attention = SourceAttentionBlock(size, heads, dropout, name='position_attention')
            self.layers = [DecoderBlock(size, hidden_size, heads, dropout, name=f'layer_{i}') for i in range(layers)]

    def prepare(self, outputs, rows):
        """Flat source states `[B * S, D]` and their `Rows` to every layer's keys and values, the key bias, and what
        `source_beside_target` reads."""
        pairs = [layer.source_attention.keys_and_values(outputs, rows.batch) for layer in self.layers]
        return pairs, rows.key_bias(outputs.dtype), (rows.padded(outputs), rows.counts(tf.float32))

    def __call__(self, z, rows, source, seed=None):
        """Features for flat latents.

        Args:
          z: `[B * T, D]` float, zero at padding.
          rows: its `Rows`.
          source: what `prepare` gave.
          seed: for dropout.
        """
        pairs, bias, copied = source
        keys, values = self.position_attention.keys_and_values(self.word_dropout(z, seed), rows.batch)
        signal = rows.positions(self.size, z.dtype)
        x = self.position_attention(signal, keys, values, rows.key_bias(z.dtype), seed)
        if self.copy_source:
            x += source_beside_target(rows, *copied)
        for layer, (keys, values) in zip(self.layers, pairs):
            x = layer(x, rows, keys, values, bias, seed)
        return x


class RecurrentDecoder(tf.Module):
    """Recurrent layers over the latents, attention to the source, and a projection with ELU; or no recurrent layer,
    and then no position knows of another.

    Args:
      size: width of latents and source states.
      state_size: units of a recurrent layer (both directions) and of the attention.
      layers: recurrent layers, 0 for none.
      cell, bidirectional: of the recurrent layers.
      dropout: of attention and behind the projection; word_dropout: of whole latents, where there are recurrent layers.
    """

    def __init__(self, size, state_size, layers, cell='lstm', bidirectional=True, dropout=0.0, word_dropout=0.0,
                 name='decoder'):  # fmt: skip
        super().__init__(name=name)
        query_size = state_size if layers else size
        with self.name_scope:
            self.word_dropout = Dropout(word_dropout, broadcast_axes=(-1,), name='word_dropout')
            self.recurrent = Bidirectional(cell, size, state_size, layers, bidirectional) if layers else None
            self.attention = GlobalAttention(query_size, size, state_size, size, dropout)
            self.projection = uniform_linear(size + query_size, size, name='projection')
            self.dropout = Dropout(dropout)

    def prepare(self, outputs, rows):
        """As in `TransformerDecoder`."""
        return self.attention.keys_and_values(outputs, rows.batch), rows.key_bias(outputs.dtype)

    def __call__(self, z, rows, source, seed=None):
        """As in `TransformerDecoder`."""
        (keys, values), bias = source
        states = self.word_dropout(z, seed)
        if self.recurrent is not None:
            states = rows.flat(self.recurrent(rows.padded(states), rows.mask))
        found = self.attention(states, keys, values, bias, seed)
        return self.dropout(tf.nn.elu(self.projection(tf.concat([found, states], axis=1))), seed)
