"""Blocks of FlowSeq's networks: attention and feed-forward blocks (post-norm), weight-normalised linear, positions.

They work on flat rows: a padded batch `[B, T, D]` is kept as `[B * T, D]`, so that every projection is one plain matrix
product, and only attention folds rows back into sentences. `Rows` knows how.

Reference: Ma et al., 2019, FlowSeq, https://arxiv.org/abs/1909.02480
"""

import contextlib
import math

import tensorflow as tf

from sequencing.layers import Dropout, LayerNorm, LinearOp, glorot_uniform, matmul, normal, uniform
from sequencing.recurrent import RecurrentLayer


class Rows:
    """Where the rows of a flat `[B * T, D]` array belong; made once a batch, from its mask `[B, T]` (bool).

    What several layers need is computed when first asked for and kept; an instance lives within one call.
    """

    def __init__(self, mask):
        self.mask = mask = tf.identity(mask)  # of the graph that is being made, if there is one
        dynamic = tf.shape(mask)
        self.batch = dynamic[0] if mask.shape[0] is None else mask.shape[0]
        self.time = dynamic[1] if mask.shape[1] is None else mask.shape[1]
        self.real = tf.reshape(mask, [-1, 1])  # [B * T, 1]
        self._kept = {}

    def kept(self, key, make):
        """`make()`, called once for each `key`, in the graph of the mask, so that functions within capture it."""
        if key not in self._kept:
            with contextlib.nullcontext() if tf.executing_eagerly() else self.mask.graph.as_default():
                self._kept[key] = make()
        return self._kept[key]

    def flat(self, x):
        """`[B, T, D]` to `[B * T, D]`."""
        return tf.reshape(x, [-1, x.shape[-1]])

    def padded(self, x):
        """`[B * T, D]` to `[B, T, D]`."""
        y = tf.reshape(x, [self.batch, self.time, x.shape[-1]])
        y.set_shape([*self.mask.shape, x.shape[-1]])
        return y

    def only_real(self, x):
        """Flat rows with zeros at padding."""
        return choose_rows(self.real, x, tf.zeros_like(x))

    def counts(self, dtype):
        """Real rows of each sentence, `[B]`."""
        return self.kept(('counts', dtype), lambda: tf.reduce_sum(tf.cast(self.mask, dtype), axis=1))

    def sums(self, x):
        """Sum over the real rows of each sentence of flat `[B * T, D]`, `[B]`."""
        return tf.reduce_sum(tf.reshape(self.only_real(x), [self.batch, -1]), axis=1)

    def key_bias(self, dtype):
        """What is added to attention scores, `[B, 1, 1, T]`: 0 at real steps, and so low at padding that its weight
        is exactly 0 wherever there is a real step."""

        def make():
            bias = tf.where(self.mask, tf.zeros([], dtype), tf.constant(dtype.min / 2, dtype))
            return tf.reshape(bias, [self.batch, 1, 1, self.time])

        return self.kept(('key_bias', dtype), make)

    def positions(self, size, dtype):
        """The signal of positions 1, 2, ... at real rows and zeros at padding, flat `[B * T, size]`."""

        def make():
            signal = position_signal(tf.range(1, self.time + 1), size, dtype)
            return self.only_real(tf.reshape(tf.tile(signal[tf.newaxis], [self.batch, 1, 1]), [-1, size]))

        return self.kept(('positions', size, dtype), make)


def choose_rows(chosen, x, y):
    """Rows of `x` where `chosen`, `[N, 1]` bool, and of `y` elsewhere, both `[N, D]`.

    TensorFlow's older operation for this copies whole rows, on CPUs four times as fast as `tf.where` with a column.
    """
    return tf.raw_ops.Select(condition=tf.reshape(chosen, [-1]), x=x, y=y)


def position_signal(positions, size, dtype=tf.float32):
    """Sines, then cosines, of geometrically falling frequencies from 1 to 1/10000.

        [sin(p f_0), ..., sin(p f_{k-1}), cos(p f_0), ..., cos(p f_{k-1})], f_i = 10000^(-i / (k - 1))

    Args:
      positions: `[...]` ints, 1 for the first token.
      size: width; the last column of an odd width is zero.
    Returns:
      `[..., size]` of `dtype`.
    """
    half = size // 2
    wide = tf.float64 if dtype == tf.float64 else tf.float32
    rates = [math.exp(-i * math.log(10000.0) / max(half - 1, 1)) for i in range(half)]
    angles = tf.cast(positions, wide)[..., tf.newaxis] * tf.constant(rates, wide)
    signal = tf.concat([tf.sin(angles), tf.cos(angles)] + [tf.zeros_like(angles[..., :1])] * (size % 2), axis=-1)
    return tf.cast(signal, dtype)


def split_heads(x, batch, heads, parts=1):
    """Flat `[B * T, parts * heads * d]` to a list of `parts` tensors `[B, heads, T, d]`."""
    size = x.shape[-1] // (parts * heads)
    x = tf.reshape(x, [batch, -1, parts, heads, size])
    return tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]), num=parts)


def join_heads(x):
    """`[B, heads, T, d]` to flat `[B * T, heads * d]`."""
    heads, size = x.shape[1], x.shape[3]
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, heads * size])


def attend(queries, keys, values, key_bias):
    """Weighted means of values.

    Args:
      queries: `[B, h, T, d]`, scaled.
      keys, values: `[B, h, S, d]`.
      key_bias: `[B, 1, 1, S]`, as `Rows.key_bias` gives it.
    Returns:
      `[B, h, T, d]`; where no key is real, the plain mean over padding.
    """
    scores = tf.matmul(queries, keys, transpose_b=True) + tf.cast(key_bias, queries.dtype)
    wide = scores if scores.dtype == tf.float64 else tf.cast(scores, tf.float32)
    return tf.matmul(tf.cast(tf.nn.softmax(wide), values.dtype), values)


def source_beside_target(rows, states, lengths):
    """What the source says at the place of each target position, both sentences being stretched to the same length.

        place(t) = (t + 1/2) * S / T - 1/2, weights(t) = softmax over s of -2 (s - place(t))^2, s and t from 0

    Args:
      rows: `Rows` of the targets, one or several a source.
      states: `[B, S, D]` float, of the source; lengths: `[B]` float32, its real steps. The weights are float32.
    Returns:
      flat rows of targets, `[..., D]`, zeros at padding.
    """
    batch, steps = tf.shape(states)[0], tf.range(tf.shape(states)[1], dtype=tf.float32)
    of_targets = tf.maximum(tf.reshape(rows.counts(tf.float32), [batch, -1, 1]), 1.0)
    stretch = lengths[:, tf.newaxis, tf.newaxis] / of_targets  # [B, targets a source, 1]
    places = (tf.range(rows.time, dtype=tf.float32) + 0.5) * stretch - 0.5
    places = tf.reshape(places, [batch, -1, 1])
    far = tf.where(steps < lengths[:, tf.newaxis, tf.newaxis], -2.0 * tf.square(steps - places), tf.float32.min / 2)
    copied = tf.matmul(tf.cast(tf.nn.softmax(far), states.dtype), states)
    return rows.only_real(tf.reshape(copied, [-1, states.shape[-1]]))


class SelfAttentionBlock(tf.Module):
    """`norm(x + dropout(attention of x over itself))`, heads side by side and no projection behind them.

    Queries, keys and values are projected by one packed kernel `[D, 3 D]`, in that order. Nothing is causal.

    Args:
      size: width D.
      heads: how many parts of D attend on their own.
      dropout: chance of dropping a unit of what attention found.
    """

    def __init__(self, size, heads, dropout=0.0, name='self_attention'):
        super().__init__(name=name)
        self.heads, self.scale = heads, _scale(name, size, heads)
        with self.name_scope:
            self.kernel = tf.Variable(tf.concat([glorot_uniform([size, size]) for _ in range(3)], 1), name='kernel')
            self.bias = tf.Variable(tf.zeros([3 * size]), name='bias')
            self.dropout = Dropout(dropout)
            self.norm = LayerNorm(size)

    def __call__(self, x, rows, seed=None):
        """Each row of `x`, flat `[B * T, D]`, attends to the real rows of its sentence."""
        packed = matmul(x, tf.cast(self.kernel, x.dtype), bias=tf.cast(self.bias, x.dtype))
        queries, keys, values = split_heads(packed, rows.batch, self.heads, parts=3)
        found = join_heads(attend(queries * tf.cast(self.scale, x.dtype), keys, values, rows.key_bias(x.dtype)))
        return self.norm(x + self.dropout(found, seed))


class SourceAttentionBlock(tf.Module):
    """`norm(query + dropout(attention of query over source))`; otherwise as `SelfAttentionBlock`."""

    def __init__(self, size, heads, dropout=0.0, name='source_attention'):
        super().__init__(name=name)
        self.heads, self.scale = heads, _scale(name, size, heads)
        with self.name_scope:
            self.query = LinearOp(size, size, name='query')
            self.source = LinearOp(size, 2 * size, name='source')
            self.source.kernel.assign(tf.concat([glorot_uniform([size, size]) for _ in range(2)], 1))
            self.dropout = Dropout(dropout)
            self.norm = LayerNorm(size)

    def keys_and_values(self, source, batch):
        """Flat source rows `[B * S, D]` to keys and values, each `[B, heads, S, D / heads]`."""
        return split_heads(self.source(source), batch, self.heads, parts=2)

    def __call__(self, query, keys, values, key_bias, seed=None):
        """Flat `query` rows attend to what `keys_and_values` gave for B sources.

        The query may hold several targets for each source, next to each other: `[B * n * T, D]`.
        """
        queries = split_heads(self.query(query), tf.shape(keys)[0], self.heads)[0]
        found = join_heads(attend(queries * tf.cast(self.scale, query.dtype), keys, values, key_bias))
        return self.norm(query + self.dropout(found, seed))


def _scale(name, size, heads):
    if size % heads:
        raise ValueError(f'{name}: {heads} heads cannot share {size} units evenly')
    return (size // heads) ** -0.5


class FeedForwardBlock(tf.Module):
    """`norm(x + dropout(outer(dropout(relu(inner(x))))))` on flat rows."""

    def __init__(self, size, hidden_size, dropout=0.0, name='feed_forward'):
        super().__init__(name=name)
        with self.name_scope:
            self.inner = uniform_linear(size, hidden_size, name='inner')
            self.outer = uniform_linear(hidden_size, size, name='outer')
            self.inner_dropout = Dropout(dropout, name='inner_dropout')
            self.outer_dropout = Dropout(dropout, name='outer_dropout')
            self.norm = LayerNorm(size)

    def __call__(self, x, seed=None):
        hidden = self.inner_dropout(tf.nn.relu(self.inner(x)), seed)
        return self.norm(x + self.outer_dropout(self.outer(hidden), seed))


class EncoderBlock(tf.Module):
    """Attention over the sentence itself, then feed-forward."""

    def __init__(self, size, hidden_size, heads, dropout=0.0, name='layer'):
        super().__init__(name=name)
        with self.name_scope:
            self.self_attention = SelfAttentionBlock(size, heads, dropout)
            self.feed_forward = FeedForwardBlock(size, hidden_size, dropout)

    def __call__(self, x, rows, seed=None):
        return self.feed_forward(self.self_attention(x, rows, seed), seed)


class DecoderBlock(tf.Module):
    """Attention over the target itself (all of it: nothing here is causal), over the source, then feed-forward."""

    def __init__(self, size, hidden_size, heads, dropout=0.0, name='layer'):
        super().__init__(name=name)
        with self.name_scope:
            self.self_attention = SelfAttentionBlock(size, heads, dropout)
            self.source_attention = SourceAttentionBlock(size, heads, dropout)
            self.feed_forward = FeedForwardBlock(size, hidden_size, dropout)

    def __call__(self, x, rows, keys, values, key_bias, seed=None):
        """Maps flat `x`; `keys`, `values` are `source_attention.keys_and_values` of the source."""
        x = self.self_attention(x, rows, seed)
        x = self.source_attention(x, keys, values, key_bias, seed)
        return self.feed_forward(x, seed)


class GlobalAttention(tf.Module):
    """One head, scores not scaled, between queries and sources of their own widths; a projection at the end.

    Args:
      query_size, source_size: widths of what attends and what is attended to.
      hidden_size: width of projected queries, keys and values.
      output_size: width of the result.
      dropout: chance of dropping a unit of the result.
    """

    def __init__(self, query_size, source_size, hidden_size, output_size, dropout=0.0, name='attention'):
        super().__init__(name=name)
        with self.name_scope:
            self.query = LinearOp(query_size, hidden_size, name='query')
            self.source = LinearOp(source_size, 2 * hidden_size, name='source')
            self.output = LinearOp(hidden_size, output_size, name='output')
            self.dropout = Dropout(dropout)

    def keys_and_values(self, source, batch):
        """Flat source rows to keys and values, each `[B, 1, S, hidden_size]`."""
        return split_heads(self.source(source), batch, heads=1, parts=2)

    def __call__(self, query, keys, values, key_bias, seed=None):
        """Flat query rows, one target or several a source, to flat `[..., output_size]`."""
        queries = split_heads(self.query(query), tf.shape(keys)[0], heads=1)[0]
        return self.dropout(self.output(join_heads(attend(queries, keys, values, key_bias))), seed)


class WeightNormLinear(tf.Module):
    """`y = x @ (gain * direction / norm(direction)) + bias`, the norm taken over the inputs of each output.

    Reference: Salimans and Kingma, 2016, https://arxiv.org/abs/1602.07868
    """

    def __init__(self, input_size, output_size, name='linear'):
        super().__init__(name=name)
        with self.name_scope:
            start = normal([input_size, output_size], stddev=0.05)
            self.direction = tf.Variable(start, name='direction')
            self.gain = tf.Variable(tf.norm(start, axis=0), name='gain')
            self.bias = tf.Variable(tf.zeros([output_size]), name='bias')

    def kernel(self, dtype):
        """The matrix that multiplies, `[input_size, output_size]`."""
        wide = tf.float64 if dtype == tf.float64 else tf.float32
        direction, gain = tf.cast(self.direction, wide), tf.cast(self.gain, wide)
        # not tf.norm: its gradient is not finite for a direction of zeros
        squares = tf.reduce_sum(tf.square(direction), axis=0)
        return tf.cast(direction * (gain * tf.math.rsqrt(tf.maximum(squares, 1e-30))), dtype)

    def __call__(self, x):
        return matmul(x, self.kernel(x.dtype), bias=tf.cast(self.bias, x.dtype))

    def initialise(self, x, scale, weights=None):
        """Sets gain and bias so that the outputs for `x` have mean 0 and deviation `scale`.

        Args:
          x: flat rows `[N, input_size]`.
          weights: `[N, 1]` of 0 and 1, the rows that count; None for all of them.
        Returns:
          the outputs afterwards.
        """
        mean, deviation = statistics(self(x), weights)
        ratio = tf.cast(scale, x.dtype) / (deviation + 1e-6)
        self.gain.assign(tf.cast(tf.cast(self.gain, x.dtype) * ratio, tf.float32))
        self.bias.assign(tf.cast((tf.cast(self.bias, x.dtype) - mean) * ratio, tf.float32))
        return self(x)


def statistics(x, weights=None):
    """Mean and unbiased deviation of each column of `[N, D]` over the rows that `weights` `[N, 1]` names by 1."""
    weights = tf.ones_like(x[:, :1]) if weights is None else tf.cast(weights, x.dtype)
    count = tf.reduce_sum(weights)
    mean = tf.reduce_sum(x * weights, axis=0) / tf.maximum(count, 1.0)
    variance = tf.reduce_sum(tf.square(x - mean) * weights, axis=0) / tf.maximum(count - 1.0, 1.0)
    return mean, tf.sqrt(variance)


def uniform_linear(input_size, output_size, scale=None, bias=True, use_bias=True, name='linear'):
    """A `LinearOp` that starts uniform in +-scale (default 1/sqrt(input_size)), its bias alike or at zero."""
    layer = LinearOp(input_size, output_size, use_bias=use_bias, name=name)
    scale = scale if scale is not None else input_size**-0.5
    layer.kernel.assign(uniform([input_size, output_size], -scale, scale))
    if use_bias and bias:
        layer.bias.assign(uniform([output_size], -scale, scale))
    return layer


class Bidirectional(tf.Module):
    """A stack of recurrent layers over whole sequences, read both ways or forwards only; nothing between layers.

    Args:
      cell: 'lstm', 'gru' or 'rnn'.
      input_size: width of the inputs.
      state_size: width of the outputs, both directions together.
      layers: how many layers.
      bidirectional: whether half of the units read backwards.
    """

    def __init__(self, cell, input_size, state_size, layers=1, bidirectional=True, name='recurrent'):
        super().__init__(name=name)
        units = state_size // 2 if bidirectional else state_size
        with self.name_scope:
            sizes = [input_size] + [state_size] * (layers - 1)
            self.forwards = [_recurrent(cell, size, units, f'forward_{i}') for i, size in enumerate(sizes)]
            self.backwards = [
                _recurrent(cell, size, units, f'backward_{i}') for i, size in enumerate(sizes if bidirectional else [])
            ]

    def __call__(self, x, mask):
        """Maps `[B, T, D]` with mask `[B, T]` to `[B, T, state_size]`, zero at padding; forward units come first."""
        for i, layer in enumerate(self.forwards):
            outputs = [layer(x, mask)[0]]
            if self.backwards:
                outputs.append(self.backwards[i](x, mask, reverse=True)[0])
            x = tf.concat(outputs, axis=-1)
        return x


def _recurrent(cell, input_size, state_size, name):
    """A recurrent layer that starts uniform in +-1/sqrt(state_size) throughout."""
    layer = RecurrentLayer(cell, input_size, state_size, name=name)
    for variable in layer.trainable_variables:
        variable.assign(tf.random.uniform(variable.shape, -(state_size**-0.5), state_size**-0.5))
    return layer
