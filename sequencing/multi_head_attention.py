"""Multi-head attention: over a sentence itself, over what came before, over the source.

Sentences are kept as flat rows `[B * T, D]`, so that each projection is one plain matrix product; only the comparison
folds them into heads `[B, H, T, D / H]`. What may not be seen is told by a penalty `[B or 1, 1, T or 1, S]`, 0 or huge,
made once a batch and taken off the scores in every layer. Keys and values of the source are projected for all layers
in one product.

Reference: Vaswani et al., 2017, section 3.2, https://arxiv.org/abs/1706.03762
"""

import tensorflow as tf

from sequencing.layers import Dropout, LinearOp, glorot_uniform
from sequencing.positions import rotate


def penalty_where(seen, dtype=tf.float32):
    """A mask as something to take off scores: 0 where `seen` (bool), elsewhere so much that the weight is exactly 0
    unless nothing at all is seen."""
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    return tf.where(seen, tf.zeros([], wide), tf.constant(wide.max / 2, wide))


def source_penalty(mask, dtype=tf.float32):
    """The penalty `[B, 1, 1, S]` of a padding mask `[B, S]`."""
    return penalty_where(mask, dtype)[:, tf.newaxis, tf.newaxis]


def causal_penalty(count, dtype=tf.float32):
    """The penalty `[1, 1, count, count]` that hides what comes after."""
    steps = tf.range(count)
    return penalty_where(steps[:, tf.newaxis] >= steps, dtype)[tf.newaxis, tf.newaxis]


def split_heads(x, sizes, heads, parts=1):
    """Flat `[B * T, parts * H * d]` to a list of `parts` tensors `[B, H, T, d]`; sizes is (B, T), one of them -1."""
    head = x.shape[-1] // (parts * heads)
    if sizes[1] == 1:  # nothing to transpose
        if parts == 1:
            return [tf.reshape(x, [sizes[0], heads, 1, head])]
        return tf.unstack(tf.reshape(x, [sizes[0], parts, heads, 1, head]), num=parts, axis=1)
    if parts == 1:
        return [tf.transpose(tf.reshape(x, [*sizes, heads, head]), [0, 2, 1, 3])]
    return tf.unstack(tf.transpose(tf.reshape(x, [*sizes, parts, heads, head]), [2, 0, 3, 1, 4]), num=parts)


def join_heads(x, count=None):
    """`[B, H, T, d]` to flat `[B * T, H * d]`; `count` is T where it is known."""
    size = x.shape[1] * x.shape[3]
    return tf.reshape(x if count == 1 else tf.transpose(x, [0, 2, 1, 3]), [-1, size])


class HeadAttention(tf.Module):
    """The comparison itself, without projections.

        weights = dropout(softmax(queries . keys / sqrt(head size) - penalty))
        found   = weights @ values

    Args:
      size, heads: units of all heads together, and how many share them.
      dropout: chance of dropping a weight.
    """

    def __init__(self, size, heads, dropout=0.0, name='comparison'):
        super().__init__(name=name)
        if size % heads:
            raise ValueError(f'{name}: {heads} heads cannot share {size} units evenly.')
        self.size, self.scale = size, (size // heads) ** -0.5
        with self.name_scope:
            self.dropout = Dropout(dropout)

    def fold_into(self, linear):
        """Leaves the scale of queries to the linear map whose first outputs they are, for decoding."""
        size, others = self.size, linear.bias.shape[0] - self.size
        linear.rescale(outputs=tf.concat([tf.fill([size], self.scale), tf.ones([others])], axis=0))
        self.scale = 1.0

    def __call__(self, queries, keys, values, penalty, seed=None):
        """Attends.

        Args:
          queries: `[B, H, T, d]`; keys, values: `[B, H, S, d]`; penalty: broadcasts to `[B, H, T, S]`, or None.
        Returns:
          found `[B, H, T, d]` and the weights `[B, H, T, S]` before dropout, at least float32.
        """
        queries = queries if self.scale == 1.0 else queries * tf.cast(self.scale, queries.dtype)
        scores = tf.matmul(queries, keys, transpose_b=True)
        if scores.dtype != tf.float64:
            scores = tf.cast(scores, tf.float32)
        # A difference, for oneDNN's fusion of product, scale and sum is a hundred times slower than the three apart.
        weights = tf.nn.softmax(scores if penalty is None else scores - penalty)
        return tf.matmul(self.dropout(tf.cast(weights, values.dtype), seed), values), weights


class SelfAttention(tf.Module):
    """Attention of a sequence over itself; queries, keys and values come from one packed projection.

    Args:
      size, heads, dropout: as in `HeadAttention`.
    """

    def __init__(self, size, heads, dropout=0.0, name='self_attention'):
        super().__init__(name=name)
        self.heads = heads
        with self.name_scope:
            self.projection = packed_linear(size, size, 3, name='projection')
            self.compare = HeadAttention(size, heads, dropout)
            self.output = LinearOp(size, size, name='output')

    def __call__(self, x, batch, penalty, turn=None, seed=None):
        """Reads whole sequences.

        Args:
          x: flat `[B * T, D]`; batch: B, a scalar.
          penalty: as in `HeadAttention`.
          turn: cosines and sines `[T, d]` from `positions.rotation`, or None.
          seed: `[2]` int32 for dropout, or None.
        Returns:
          flat `[B * T, D]`.
        """
        queries, keys, values = self.project(x, (batch, -1), turn)
        return self.output(join_heads(self.compare(queries, keys, values, penalty, seed)[0]))

    def step(self, x, width, cache, penalty, turn=None):
        """Reads one step of W hypotheses a sentence, after what `cache` holds.

        Args:
          x: flat `[B * W, D]`; width: W.
          cache: keys and values, each `[B, H, P, d]`, of P hypotheses and steps before.
          penalty: `[B, 1, W, P + W]`, or None: which of them each hypothesis descends from, itself included.
          turn: cosines and sines `[1, d]` of this step, or None.
        Returns:
          flat `[B * W, D]`, and the cache with this step at its end.
        """
        queries, keys, values = self.project(x, (-1, width), turn)
        keys, values = tf.concat([cache[0], keys], axis=2), tf.concat([cache[1], values], axis=2)
        return self.output(join_heads(self.compare(queries, keys, values, penalty)[0], width)), (keys, values)

    def store_for_decoding(self, dtype):
        """See `layers.store_for_decoding`."""
        self.compare.fold_into(self.projection)

    def project(self, x, sizes, turn):
        """Queries, keys and values, each `[B, H, T, d]`; sizes as in `split_heads`."""
        queries, keys, values = split_heads(self.projection(x), sizes, self.heads, parts=3)
        if turn is not None:
            queries, keys = rotate(queries, *turn), rotate(keys, *turn)
        return queries, keys, values


class SourceAttention(tf.Module):
    """Attention of flat rows `[B * T, D]` over a source whose keys and values are there already."""

    def __init__(self, size, heads, dropout=0.0, name='source_attention'):
        super().__init__(name=name)
        self.heads = heads
        with self.name_scope:
            self.query = LinearOp(size, size, name='query')
            self.compare = HeadAttention(size, heads, dropout)
            self.output = LinearOp(size, size, name='output')

    def __call__(self, x, sizes, keys, values, penalty, seed=None):
        """Flat `[B * T, D]` to the same, and the weights `[B, H, T, S]`; keys, values: `[B, H, S, d]`; sizes as in
        `split_heads`."""
        queries = split_heads(self.query(x), sizes, self.heads)[0]
        found, weights = self.compare(queries, keys, values, penalty, seed)
        return self.output(join_heads(found, sizes[1])), weights

    def store_for_decoding(self, dtype):
        """See `layers.store_for_decoding`."""
        self.compare.fold_into(self.query)


class SourceProjection(tf.Module):
    """Keys and values of the source for all layers of a decoder, in one product.

    Args:
      value_size: units of an encoder output.
      size, heads: of the decoder's attention; layers: how many layers.
    """

    def __init__(self, value_size, size, heads, layers, name='source'):
        super().__init__(name=name)
        self.heads, self.layers = heads, layers
        with self.name_scope:
            self.projection = packed_linear(value_size, size, 2 * layers, name='projection')

    def __call__(self, outputs):
        """`[B, S, value_size]` to keys and values: a tuple over layers of pairs of `[B, H, S, d]`."""
        flat = tf.reshape(outputs, [-1, outputs.shape[-1]])
        parts = split_heads(self.projection(flat), (tf.shape(outputs)[0], -1), self.heads, 2 * self.layers)
        return tuple(zip(parts[::2], parts[1::2]))


def packed_linear(input_size, output_size, parts, name):
    """A `LinearOp` to `parts` outputs side by side, each of which starts as it would alone."""
    layer = LinearOp(input_size, parts * output_size, name=name)
    layer.kernel.assign(tf.concat([glorot_uniform([input_size, output_size]) for _ in range(parts)], axis=1))
    return layer
