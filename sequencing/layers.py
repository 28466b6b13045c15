"""Linear, look-up, normalisation, dropout: all that parts are made of.

Weights are float32 masters. A layer computes in the dtype of what it is given, so one cast at the embedding decides
the precision of everything behind it; normalisation and softmax return to float32 inside.

Randomness is stateless: `seed` is an int32 `[2]` tensor that changes every step, each layer adds a constant of its own
(from its name), and no seed means no dropout. A run is repeatable to the bit, and so is its resumption.
"""

import math
import zlib

import tensorflow as tf


def glorot_uniform(shape, dtype=tf.float32):
    """Uniform start in +-sqrt(6 / (fan_in + fan_out)), fans being the last two sizes (Glorot and Bengio, 2010)."""
    limit = math.sqrt(6.0 / (shape[-1] + (shape[-2] if len(shape) > 1 else 1)))
    return tf.random.uniform(shape, -limit, limit, dtype)


class LinearOp(tf.Module):
    """`y = x @ kernel + bias` over the last axis.

    Args:
      input_size, output_size: sizes of the last axis before and after.
      use_bias: whether there is a bias.
    """

    def __init__(self, input_size, output_size, use_bias=True, name='linear'):
        super().__init__(name=name)
        self.transposed = False
        with self.name_scope:
            self.kernel = tf.Variable(glorot_uniform([input_size, output_size]), name='kernel')
            self.bias = tf.Variable(tf.zeros([output_size]), name='bias') if use_bias else None

    def __call__(self, x):
        """Maps `[..., input_size]` floats to `[..., output_size]` floats of the same dtype."""
        bias = None if self.bias is None else tf.cast(self.bias, x.dtype)
        return matmul(x, tf.cast(self.kernel, x.dtype), self.transposed, bias)

    def store_for_decoding(self, dtype):
        """See `store_for_decoding` below."""
        self.kernel = tf.transpose(tf.cast(self.kernel, dtype))
        self.transposed = True
        if self.bias is not None:
            self.bias = tf.cast(tf.identity(self.bias), dtype)


def matmul(x, kernel, transposed=False, bias=None):
    """`x @ kernel + bias` for `[..., D]` and `[D, E]`, as one flat product whatever the rank of `x`.

    Args:
      transposed: whether the kernel comes as `[E, D]`.
      bias: `[E]`, or None.
    """
    size, output_size = kernel.shape[::-1] if transposed else kernel.shape
    flat = tf.matmul(x if x.shape.rank == 2 else tf.reshape(x, [-1, size]), kernel, transpose_b=transposed)
    flat = flat if bias is None else tf.nn.bias_add(flat, bias)
    if x.shape.rank == 2:
        return flat
    y = tf.reshape(flat, tf.concat([tf.shape(x)[:-1], [output_size]], axis=0))
    y.set_shape(x.shape[:-1] + [output_size])
    return y


def store_for_decoding(module, dtype):
    """Keeps the weights of a model's parts as search reads them fastest.

    That is as constants in `dtype`, which no step has to read from variables and cast, and kernels transposed: a
    product of a few rows with a transposed matrix reads it in order, which on CPUs is twice as fast. After this the
    model neither trains nor takes a checkpoint.
    """
    for part in (module, *module.submodules):
        if hasattr(part, 'store_for_decoding'):
            part.store_for_decoding(dtype)


class LookUpOp(tf.Module):
    """A table with one row a token.

    Args:
      vocab_size, embedding_size: rows and columns.
      scale: start is uniform in +-scale; by default 1/sqrt(embedding_size), which leaves a row with norm near 0.6.
    """

    def __init__(self, vocab_size, embedding_size, scale=None, name='embedding'):
        super().__init__(name=name)
        scale = scale if scale is not None else embedding_size**-0.5
        with self.name_scope:
            self.table = tf.Variable(tf.random.uniform([vocab_size, embedding_size], -scale, scale), name='table')

    def __call__(self, ids, dtype=tf.float32):
        """Maps `[...]` int ids to `[..., embedding_size]` of `dtype`."""
        return tf.cast(tf.gather(self.table, ids), dtype)

    def store_for_decoding(self, dtype):
        """See `store_for_decoding` above."""
        self.table = tf.cast(tf.identity(self.table), dtype)


class LayerNorm(tf.Module):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it; at least float32 inside.

    Reference: Ba et al., 2016, https://arxiv.org/abs/1607.06450
    """

    def __init__(self, size, epsilon=1e-5, name='layer_norm'):
        super().__init__(name=name)
        self.epsilon = epsilon
        with self.name_scope:
            self.scale = tf.Variable(tf.ones([size]), name='scale')
            self.shift = tf.Variable(tf.zeros([size]), name='shift')

    def store_for_decoding(self, dtype):
        """See `store_for_decoding` above."""
        self.scale, self.shift = tf.identity(self.scale), tf.identity(self.shift)

    def __call__(self, x):
        """Maps `[..., size]` to the same shape and dtype."""
        wide = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(wide, axes=[-1], keepdims=True)
        normal = (wide - mean) * tf.math.rsqrt(variance + self.epsilon)
        return tf.cast(normal * tf.cast(self.scale, wide.dtype) + tf.cast(self.shift, wide.dtype), x.dtype)


class Dropout(tf.Module):
    """Sets a share of the units to zero and scales the others up, when there is a seed.

    The chance is kept to 16 bits, which halves the random bits to draw.

    Args:
      rate: chance of dropping a unit, in [0, 1).
      broadcast_axes: axes along which units share their fate (variational dropout; -1 drops whole vectors).
    """

    def __init__(self, rate, broadcast_axes=(), name='dropout'):
        super().__init__(name=name)
        self.rate = rate
        self.broadcast_axes = tuple(broadcast_axes)
        with self.name_scope:
            self.salt = salt_of(self.name_scope.name)

    def __call__(self, x, seed=None):
        """Returns `x` with units dropped; `x` itself where `seed` is None or the rate is 0."""
        if seed is None or self.rate == 0.0:
            return x
        keep = round((1.0 - self.rate) * 65536)
        shape = tf.unstack(tf.shape(x), num=x.shape.rank)
        for axis in self.broadcast_axes:
            shape[axis] = 1
        kept = random_uint16(tf.stack(shape), salted(seed, self.salt)) < keep
        return tf.where(kept, x * tf.cast(65536.0 / keep, x.dtype), tf.zeros([], x.dtype))


def salt_of(name):
    """A constant for a layer, from its full name: stable between runs and different between layers."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def salted(seed, salt):
    """A `[2]` seed that differs from `seed` by a layer's constant."""
    return tf.bitwise.bitwise_xor(tf.cast(seed, tf.int32), tf.constant([salt, 0], tf.int32))


def random_uint16(shape, seed):
    """Stateless uniform integers in [0, 65536) of `shape`, as int32."""
    size = tf.reduce_prod(shape)
    words = tf.random.stateless_uniform([(size + 1) // 2], seed, None, None, tf.uint32)
    halves = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:size]
    return tf.cast(tf.reshape(halves, shape), tf.int32)
