"""Positions: what tells the first token from the second in models that read all tokens alike.

Sinusoidal and learned positions are added to embedded tokens; rotary ones turn queries and keys inside attention.
"""

import tensorflow as tf

from sequencing.blocks import position_signal
from sequencing.layers import Dropout, LinearOp

POSITIONS = ('sinusoidal', 'learned', 'rotary', 'none')


def places(start, count):
    """start, ..., start + count - 1, of known size if `count` is a Python int."""
    return start + tf.range(count)


class SinusoidalPositions(tf.Module):
    """Fixed waves, defined at any length.

    Reference: Vaswani et al., 2017, section 3.5, https://arxiv.org/abs/1706.03762
    """

    def __init__(self, size, name='sinusoidal_positions'):
        super().__init__(name=name)
        self.size = size

    def __call__(self, start, count, dtype):
        """The vectors of positions start, ..., start + count - 1 (0 is the first token), `[count, size]`."""
        return position_signal(places(start + 1, count), self.size, dtype)


class LearnedPositions(tf.Module):
    """A trained vector a position; tokens from `max_positions` on share the last one."""

    def __init__(self, max_positions, size, name='learned_positions'):
        super().__init__(name=name)
        self.last = max_positions - 1
        with self.name_scope:
            self.table = tf.Variable(tf.random.normal([max_positions, size], stddev=size**-0.5), name='table')

    def __call__(self, start, count, dtype):
        """As `SinusoidalPositions`."""
        return tf.cast(tf.gather(self.table, tf.minimum(places(start, count), self.last)), dtype)


def rotation(start, count, size, dtype):
    """The angles of rotary positions start, ..., start + count - 1.

        angle[t, i] = t / 10000^(2i / size)

    Args:
      size: units of a head, even.
    Returns:
      cosines and sines, each `[count, size]` of `dtype`: those of all angles twice, the first half of sines negated.
    """
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    rates = tf.constant([10000.0 ** (-2.0 * i / size) for i in range(size // 2)], wide)
    angles = tf.cast(places(start, count), wide)[:, tf.newaxis] * rates
    sines, cosines = tf.sin(angles), tf.cos(angles)
    return (
        tf.cast(tf.concat([cosines, cosines], axis=-1), dtype),
        tf.cast(tf.concat([-sines, sines], axis=-1), dtype),
    )


def rotate(x, cosines, sines):
    """Turns unit i of each head and unit i + size/2 as one pair, by the angles that `rotation` gave.

    The product of a rotated query and a rotated key depends on their distance alone.

    Args:
      x: `[..., count, size]` float.
    Reference: Su et al., 2021, RoFormer, https://arxiv.org/abs/2104.09864
    """
    first, second = tf.split(x, 2, axis=-1)
    return x * cosines + tf.concat([second, first], axis=-1) * sines


class TokenInput(tf.Module):
    """Embedded tokens as a stack of layers takes them: scaled, brought to its size, placed, partly dropped.

        x[t] = dropout(linear(embedded[t] * sqrt(embedding_size)) + position[t])

    The linear map exists only where the two sizes differ.

    Args:
      embedding_size, size: units of an embedded token and of a layer.
      positions: one of `POSITIONS`; rotary ones add nothing here.
      max_positions: rows of a learned table.
      scale: whether to multiply by sqrt(embedding_size).
      dropout: chance of dropping a unit.
    """

    def __init__(self, embedding_size, size, positions='sinusoidal', max_positions=1024, scale=True, dropout=0.0,
                 name='input'):  # fmt: skip
        super().__init__(name=name)
        if positions not in POSITIONS:
            raise ValueError(f'{name}: positions is one of {", ".join(POSITIONS)}; got {positions!r}.')
        self.embedding_size, self.size = embedding_size, size
        self.scale = embedding_size**0.5 if scale else 1.0
        self.centred = False  # whether to take the mean over its units off each output, for decoding
        with self.name_scope:
            self.projection = None if embedding_size == size else LinearOp(embedding_size, size, name='projection')
            self.positions = None
            if positions == 'sinusoidal':
                self.positions = SinusoidalPositions(size)
            elif positions == 'learned':
                self.positions = LearnedPositions(max_positions, size)
            self.dropout = Dropout(dropout)

    def __call__(self, embedded, start=0, same_place=False, seed=None):
        """Places `[B, T, embedding_size]` floats.

        Args:
          start: scalar int, tokens that came before.
          same_place: whether the T tokens all stand at `start` (hypotheses of one step) or follow one another.
          seed: `[2]` int32 for dropout, or None.
        Returns:
          `[B, T, size]`.
        Raises:
          ValueError: the last axis is known and is not embedding_size.
        """
        if embedded.shape.rank != 3 or embedded.shape[-1] != self.embedding_size:
            raise ValueError(f'{self.name}: takes embedded tokens [B, T, {self.embedding_size}]; got {embedded.shape}.')
        x = embedded if self.scale == 1.0 else embedded * tf.cast(self.scale, embedded.dtype)
        if self.projection is not None:
            x = self.projection(x)
        if self.positions is not None:
            x += self.positions(start, 1 if same_place else tf.shape(x)[1], x.dtype)
        if self.centred:
            x -= tf.reduce_mean(x, axis=-1, keepdims=True)
        return self.dropout(x, seed)
