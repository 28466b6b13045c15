"""The networks inside couplings: the conditioning part of a latent, with its source, to parameters.

All end in a weight-normalised linear that `initialise` sets to zero, so that a flow starts as one that ignores its
source.
"""

import tensorflow as tf

from sequencing.blocks import (
    Bidirectional,
    DecoderBlock,
    GlobalAttention,
    SourceAttentionBlock,
    WeightNormLinear,
    uniform_linear,
)


class Conditioner(tf.Module):
    """What conditioners share: the source they look at, and the linear at the end.

    Args:
      linear_size, output_size: widths of the last linear.
    """

    def __init__(self, linear_size, output_size, name):
        super().__init__(name=name)
        with self.name_scope:
            self.linear = WeightNormLinear(linear_size, output_size)

    def __call__(self, x, at):
        """Maps flat rows `[N, D]`, zero at padding, and their `Conditions` to `[N, output_size]`."""
        return self.linear(self.features(x, at))

    def initialise(self, x, at, over_padding=False):
        """Makes the outputs zero, whatever comes in."""
        self.linear.initialise(self.features(x, at), 0.0, None if over_padding else at.rows.real)


class SelfAttentionConditioner(Conditioner):
    """Adds positions, then one Transformer decoder layer over the rows and the source.

    Args:
      size, source_size, output_size: widths of the conditioning part, of the source, of the parameters.
      hidden_size: of the feed-forward network.
      heads: of every attention.
      positions: 'add' adds the position signal; 'attend' lets the signal attend to the rows.
      dropout: of attention and feed-forward.
    """

    def __init__(self, size, source_size, output_size, hidden_size, heads, positions='add', dropout=0.0,
                 name='conditioner'):  # fmt: skip
        super().__init__(size, output_size, name)
        if positions not in ('add', 'attend'):
            raise ValueError(f"positions is 'add' or 'attend'; got {positions!r}")
        with self.name_scope:
            self.source_linear = None
            if source_size != size:
                self.source_linear = uniform_linear(source_size, size, use_bias=False, name='source_linear')
            self.position_attention = None
            if positions == 'attend':
                self.position_attention = SourceAttentionBlock(size, heads, dropout, name='position_attention')
            self.layer = DecoderBlock(size, hidden_size, heads, dropout)

    def features(self, x, at):
        dtype = at.dtype
        signal = at.rows.positions(x.shape[-1], dtype)
        x = tf.cast(x, dtype)
        if self.position_attention is None:
            x += signal
        else:
            keys, values = self.position_attention.keys_and_values(x, at.rows.batch)
            x = self.position_attention(signal, keys, values, at.rows.key_bias(dtype), at.seed)
        source_rows, source = at.source()
        if self.source_linear is not None:
            source = self.source_linear(source)
        keys, values = self.layer.source_attention.keys_and_values(source, source_rows.batch)
        return self.layer(x, at.rows, keys, values, at.source_bias(), at.seed)


class _AttendingConditioner(Conditioner):
    """Reads the rows in some way, attends to the source with what came out, and joins that to the rows."""

    def __init__(self, size, source_size, output_size, hidden_size, dropout, name):
        super().__init__(size + hidden_size, output_size, name)
        with self.name_scope:
            self.attention = GlobalAttention(hidden_size, source_size, hidden_size, hidden_size, dropout)

    def features(self, x, at):
        x = tf.cast(x, at.dtype)
        source_rows, source = at.source()
        keys, values = self.attention.keys_and_values(source, source_rows.batch)
        return tf.concat([x, self.attention(self.read(x, at), keys, values, at.source_bias(), at.seed)], axis=1)


class RecurrentConditioner(_AttendingConditioner):
    """Reads the rows with one bidirectional recurrent layer.

    Args:
      size, source_size, output_size: as in `SelfAttentionConditioner`.
      hidden_size: units of both directions together.
      cell: 'lstm', 'gru' or 'rnn'.
      dropout: of what attention found.
    """

    def __init__(self, size, source_size, output_size, hidden_size, cell='lstm', dropout=0.0, name='conditioner'):
        super().__init__(size, source_size, output_size, hidden_size, dropout, name)
        with self.name_scope:
            self.recurrent = Bidirectional(cell, size, hidden_size)

    def read(self, x, at):
        return at.rows.flat(self.recurrent(at.rows.padded(x), at.rows.mask))


class ConvConditioner(_AttendingConditioner):
    """Reads the rows with two convolutions over time, weight-normalised, an ELU behind each.

    Args:
      size, source_size, output_size: as in `SelfAttentionConditioner`.
      hidden_size: channels between.
      kernel_size: odd, steps that a convolution sees.
      dropout: of what attention found.
      unmasked_first: leave what the first convolution writes into padding, as the published implementation does; then
        results depend on how much padding there is.
    """

    def __init__(self, size, source_size, output_size, hidden_size, kernel_size=3, dropout=0.0, unmasked_first=False,
                 name='conditioner'):  # fmt: skip
        super().__init__(size, source_size, output_size, hidden_size, dropout, name)
        if kernel_size % 2 == 0:
            raise ValueError(
                f'{name}: a convolution that keeps the length sees an odd number of steps; got {kernel_size}'
            )
        self.kernel_size, self.unmasked_first = kernel_size, unmasked_first
        with self.name_scope:
            self.first = WeightNormLinear(kernel_size * size, hidden_size, name='first')
            self.second = WeightNormLinear(kernel_size * hidden_size, hidden_size, name='second')

    def read(self, x, at):
        return self._read(x, at, lambda layer, windows: layer(windows))

    def _read(self, x, at, apply):
        hidden = tf.nn.elu(apply(self.first, self._windows(x, at.rows)))
        if not self.unmasked_first:
            hidden = at.rows.only_real(hidden)
        return at.rows.only_real(tf.nn.elu(apply(self.second, self._windows(hidden, at.rows))))

    def _windows(self, x, rows):
        """Flat `[B * T, D]` to flat `[B * T, kernel_size * D]`: what each step sees, zeros outside the batch."""
        reach = self.kernel_size // 2
        padded = tf.pad(rows.padded(x), [[0, 0], [reach, reach], [0, 0]])
        return rows.flat(tf.concat([padded[:, i : i + rows.time] for i in range(self.kernel_size)], axis=2))

    def initialise(self, x, at, over_padding=False):
        weights = None if over_padding else at.rows.real
        self._read(tf.cast(x, at.dtype), at, lambda layer, windows: layer.initialise(windows, 1.0, weights))
        super().initialise(x, at, over_padding)
