"""Linear, look-up, normalisation, dropout: all that parts are made of.

Weights are float32 masters. A layer computes in the dtype of what it is given, so one cast at the embedding decides
the precision of everything behind it; normalisation and softmax return to float32 inside.

Randomness is stateless: `seed` is an int32 `[2]` tensor that changes every step, each layer adds a constant of its own
(from its name), and no seed means no dropout. A run is repeatable to the bit, and so is its resumption.
"""

import contextlib
import contextvars
import math
import zlib

import numpy as np
import tensorflow as tf

_BLANK = contextvars.ContextVar('blank', default=False)


@contextlib.contextmanager
def blank_weights():
    """Weights that start by `uniform` and `normal` are zero in parts that are built within: a checkpoint fills them.

    Their names are without those of the parts: TensorFlow makes a kernel for each name, which is most of what it takes
    to make a variable.
    """

    def without_scope(make, **options):
        with tf.name_scope(''):
            return make(**options)

    token = _BLANK.set(True)
    try:
        with tf.variable_creator_scope(without_scope):
            yield
    finally:
        _BLANK.reset(token)


def uniform(shape, low, high, dtype=tf.float32):
    """A start between two numbers; see `blank_weights`."""
    return tf.zeros(shape, dtype) if _BLANK.get() else tf.random.uniform(shape, low, high, dtype)


def normal(shape, stddev):
    """A start around zero; see `blank_weights`."""
    return tf.zeros(shape) if _BLANK.get() else tf.random.normal(shape, stddev=stddev)


def glorot_uniform(shape, dtype=tf.float32):
    """Uniform start in +-sqrt(6 / (fan_in + fan_out)), fans being the last two sizes (Glorot and Bengio, 2010)."""
    limit = math.sqrt(6.0 / (shape[-1] + (shape[-2] if len(shape) > 1 else 1)))
    return uniform(shape, -limit, limit, dtype)


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
        stored = self.bias is None or isinstance(self.bias, np.ndarray)  # for decoding
        bias = self.bias if stored else tf.cast(self.bias, x.dtype)
        return matmul(x, tf.cast(self.kernel, x.dtype), self.transposed, bias)

    def rows(self, outputs):
        """The kernel's part that makes some outputs, `[U, input_size]` for `[U]` int32 numbers of outputs."""
        if self.transposed:
            return tf.gather(self.kernel, outputs)
        return tf.transpose(tf.gather(self.kernel, outputs, axis=1))

    def rescale(self, inputs=None, outputs=None, shift=None):
        """Replaces the weights by constants that do more: `y = ((x * inputs + shift) @ kernel + bias) * outputs`.

        Each is a vector, or None for one without effect.
        """
        kernel, bias = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias)
        if shift is not None:
            bias += tf.linalg.matvec(kernel, shift, transpose_a=True)
        if inputs is not None:
            kernel *= tf.convert_to_tensor(inputs)[:, tf.newaxis]
        if outputs is not None:
            kernel, bias = kernel * outputs, bias * outputs
        self.kernel, self.bias = kernel, bias

    def centre(self):
        """Replaces the weights by constants that take the mean over its units off each output."""
        kernel, bias = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias)
        self.kernel, self.bias = kernel - tf.reduce_mean(kernel, axis=1, keepdims=True), bias - tf.reduce_mean(bias)

    def store_for_decoding(self, dtype):
        """See `store_for_decoding` below."""
        self.kernel = tf.transpose(tf.cast(self.kernel, dtype))
        self.transposed = True
        if self.bias is not None:
            self.bias = tf.cast(self.bias, dtype).numpy()


def matmul(x, kernel, transposed=False, bias=None):
    """`x @ kernel + bias` for `[..., D]` and `[D, E]`, as one flat product whatever the rank of `x`.

    Args:
      transposed: whether the kernel comes as `[E, D]`.
      bias: `[E]`, or None.
    """
    size, output_size = kernel.shape[::-1] if transposed else kernel.shape
    flat = tf.matmul(x if x.shape.rank == 2 else tf.reshape(x, [-1, size]), kernel, transpose_b=transposed)
    if bias is not None:
        flat = add_bias(flat, bias)
    if x.shape.rank == 2:
        return flat
    y = tf.reshape(flat, tf.concat([tf.shape(x)[:-1], [output_size]], axis=0))
    y.set_shape(x.shape[:-1] + [output_size])
    return y


def add_bias(flat, bias):
    """`[N, E]` with `[E]` added to every row.

    In bfloat16, and where the bias is a constant of decoding, the sum takes another shape, which keeps TensorFlow from
    making one operation of product and sum: on CPUs that one (oneDNN's) takes longer than the two, for few rows or in
    bfloat16.
    """
    if isinstance(bias, np.ndarray):
        return _add_in_another_shape(flat, bias)

    @tf.custom_gradient
    def run(flat, bias):
        def gradient(dy):
            return dy, column_sums(dy)

        add = _add_in_another_shape if flat.dtype == tf.bfloat16 else tf.nn.bias_add
        return add(flat, bias), gradient

    return run(flat, bias)


def _add_in_another_shape(flat, bias):
    return tf.squeeze(tf.expand_dims(flat, 1) + bias, axis=1)


def column_sums(x):
    """`[N, E]` summed over rows, by a product with ones: on CPUs a tenth of the time of TensorFlow's sum.

    As exact as products are there: on GPUs that is TF32 for float32, unless it is turned off.
    """
    return tf.matmul(tf.ones([1, tf.shape(x)[0]], x.dtype), x)[0]


def store_for_decoding(module, dtype):
    """Keeps the weights of a model's parts as search reads them fastest.

    That is as constants in `dtype`, which no step has to read from variables and cast, and kernels transposed: a
    product of a few rows with a transposed matrix reads it in order, which on CPUs is twice as fast. Parts may fold
    weights into one another. After this the model neither trains nor takes a checkpoint.
    """
    for part in (module, *module.submodules):  # wholes come before their parts
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
            self.table = tf.Variable(uniform([vocab_size, embedding_size], -scale, scale), name='table')

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
        self.epsilon, self.centred = epsilon, False
        with self.name_scope:
            self.scale = tf.Variable(tf.ones([size]), name='scale')
            self.shift = tf.Variable(tf.zeros([size]), name='shift')

    def store_for_decoding(self, dtype):
        """See `store_for_decoding` above."""
        if self.scale is not None:
            self.scale, self.shift = self.scale.numpy(), self.shift.numpy()

    def fold_into(self, linear):
        """Leaves scaling and shifting to the linear map that reads the result, for decoding."""
        linear.rescale(inputs=self.scale, shift=self.shift)
        self.scale = self.shift = None

    def __call__(self, x):
        """Maps `[..., size]` to the same shape and dtype."""
        if self.centred:
            return self.normalise_centred(x)
        size = self.scale.shape[0]
        scale, shift = tf.convert_to_tensor(self.scale), tf.convert_to_tensor(self.shift)
        y = normalise(tf.reshape(x, [-1, size]), scale, shift, self.epsilon)
        return y if x.shape.rank == 2 else tf.ensure_shape(tf.reshape(y, tf.shape(x)), x.shape)

    def normalise_centred(self, x):
        """The same for inputs whose mean is 0, which decoding sees to by its weights."""
        wide = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
        y = wide * tf.math.rsqrt(tf.reduce_mean(tf.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return tf.cast(y if self.scale is None else y * self.scale + self.shift, x.dtype)


def normalise(x, scale, shift, epsilon):
    """Layer normalisation of flat rows `[N, D]`, its gradient in fewer passes over memory than autodiff takes.

        normal = (x - mean) / deviation;  y = normal * scale + shift
        dx     = (dy * scale - mean(dy * scale) - normal * mean(dy * scale * normal)) / deviation

    Sums over rows or columns of gradients are products with a vector, which on CPUs is the fastest reduction.
    """
    wide = tf.float64 if x.dtype == tf.float64 else tf.float32

    @tf.custom_gradient
    def run(x, scale, shift):
        scale, shift = tf.cast(scale, wide), tf.cast(shift, wide)
        centred = tf.cast(x, wide)
        centred -= tf.reduce_mean(centred, axis=1, keepdims=True)
        inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=1, keepdims=True) + epsilon)
        normal = centred * inverse

        def gradient(dy):
            dy = tf.cast(dy, wide)
            shares = scale[:, tf.newaxis] / scale.shape[0]
            d_scale = dy * normal
            inner = dy * scale - tf.matmul(dy, shares) - normal * tf.matmul(d_scale, shares)
            sums = [tf.cast(column_sums(d), tf.float32) for d in (d_scale, dy)]
            return tf.cast(inner * inverse, x.dtype), *sums

        return tf.cast(normal * scale + shift, x.dtype), gradient

    return run(x, scale, shift)


class Dropout(tf.Module):
    """Sets a share of the units to zero and scales the others up, when there is a seed.

    The chance is rounded to 8 bits where that changes it by at most a fiftieth, else to 16: random bits are what
    dropout costs.

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
        return x if seed is None or self.rate == 0.0 else x * self._factors(x, seed)

    def of_relu(self, x, seed=None):
        """`dropout(relu(x))`, where there is a seed as one product with factors that are 0 for either reason.

        Not in float16, where -inf is an overflow that ReLU mends, and a product with 0 would not.
        """
        if seed is None or self.rate == 0.0 or x.dtype == tf.float16:
            return self(tf.nn.relu(x), seed)
        return x * self._factors(x, seed, x > 0)

    def _factors(self, x, seed, alive=True):
        """What to multiply the units of `x` by; 0 too where they are not `alive`, bool."""
        dropped = round(self.rate * 256)
        bits = tf.uint8 if abs(dropped / 256 - self.rate) <= 0.02 * self.rate else tf.uint16
        levels = bits.max + 1
        keep = levels - round(self.rate * levels)
        shape = tf.unstack(tf.shape(x), num=x.shape.rank)
        for axis in self.broadcast_axes:
            shape[axis] = 1
        kept = random_bits(tf.stack(shape), salted(seed, self.salt), bits) < tf.constant(keep, bits)
        kept = kept if alive is True else tf.logical_and(kept, alive)
        return tf.where(kept, tf.cast(levels / keep, x.dtype), tf.zeros([], x.dtype))


def salt_of(name):
    """A constant for a layer, from its full name: stable between runs and different between layers."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def salted(seed, salt):
    """A `[2]` seed that differs from `seed` by a layer's constant."""
    return tf.bitwise.bitwise_xor(tf.cast(seed, tf.int32), _pair(salt))


def _pair(salt):
    return tf.constant([salt, 0], tf.int32) if isinstance(salt, int) else tf.stack([salt, 0])


def random_bits(shape, seed, dtype):
    """Stateless uniform integers of `shape` in the whole range of `dtype`, uint8 or uint16."""
    size, together = tf.reduce_prod(shape), 4 // dtype.size
    words = tf.random.stateless_uniform([(size + together - 1) // together], seed, None, None, tf.uint32)
    return tf.reshape(tf.reshape(tf.bitcast(words, dtype), [-1])[:size], shape)
