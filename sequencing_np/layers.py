"""What all models are made of: linear maps, norms, softmax, positions.

Sentences are flat rows `[B * T, D]`. What a mask hides is told as a penalty that is taken off scores, or None where a
batch has no padding, which is always so for a single sentence.
"""

import math

import numpy as np

EPSILON = 1e-5  # of layer norms
PENALTY = np.finfo(np.float32).max / 2  # so much that a weight becomes exactly 0


class Linear:
    """`y = x @ kernel + bias` on rows.

    Args:
      kernel: `[D, E]`; bias: `[E]` or None.
    """

    def __init__(self, kernel, bias=None):
        self.kernel, self.bias = kernel, bias

    def __call__(self, x):
        y = x @ self.kernel
        if self.bias is not None:
            y += self.bias
        return y

    def behind_norm(self, norm):
        """The same map of the normalised input of a `LayerNorm`: its scale and shift are multiplied in."""
        bias = norm.shift @ self.kernel
        return Linear(norm.scale[:, np.newaxis] * self.kernel, bias if self.bias is None else bias + self.bias)

    def centred(self):
        """The same map with the mean over its outputs taken off each."""
        return Linear(self.kernel - self.kernel.mean(axis=1, keepdims=True), self.bias - self.bias.mean())

    def scaled(self, count, scale):
        """The same map with its first `count` outputs multiplied by a number."""
        kernel, bias = self.kernel.copy(), self.bias.copy()
        kernel[:, :count] *= scale
        bias[:count] *= scale
        return Linear(kernel, bias)


def linear(weights):
    """A `Linear` from its `Weights`."""
    return Linear(weights['kernel'], weights['bias'] if 'bias' in weights else None)


def weight_norm_linear(weights):
    """A `Linear` from gain and direction (Salimans and Kingma, 2016)."""
    direction = weights['direction']
    squares = np.maximum((direction * direction).sum(axis=0), 1e-30)
    return Linear(direction * (weights['gain'] / np.sqrt(squares)), weights['bias'])


class LayerNorm:
    """Layer normalisation (Ba et al., 2016) of rows."""

    def __init__(self, weights):
        self.scale, self.shift = weights['scale'], weights['shift']

    def __call__(self, x):
        y = normalised(x - x.sum(axis=1, keepdims=True) * np.float32(1.0 / x.shape[1]))
        y *= self.scale
        y += self.shift
        return y


def normalised(x):
    """Rows of mean 0 brought to variance 1."""
    return x * (1.0 / np.sqrt(np.einsum('ij,ij->i', x, x) / x.shape[1] + EPSILON))[:, np.newaxis]


def softmax(x):
    """Softmax over the last axis, in place."""
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def sigmoid(x):
    """In a form that no number overflows."""
    return 0.5 * np.tanh(0.5 * x) + 0.5


def erf(x):
    """The error function to 1.2e-7 (Press et al., Numerical Recipes, 2nd edition, section 6.2: erfcc)."""
    t = 1.0 / (1.0 + 0.5 * np.abs(x))
    series = (-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587,
              -0.82215223, 0.17087277)  # fmt: skip
    power = np.zeros_like(t)
    for factor in reversed(series):
        power = power * t + factor
    return np.sign(x) * (1.0 - t * np.exp(power - x * x))


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0.0)))


def key_penalty(mask):
    """`[B, S]` bool, or None, to the penalty `[B, 1, 1, S]` of each key, or None."""
    return None if mask is None else np.where(mask, np.float32(0), np.float32(PENALTY))[:, np.newaxis, np.newaxis]


def only_real(x, mask):
    """Flat rows `[B * T, D]` with zeros at padding."""
    return x if mask is None else np.where(mask.reshape(-1, 1), x, np.float32(0))


def split_heads(x, batch, heads, parts=1):
    """Flat `[B * T, parts * H * d]` to a view `[parts, B, H, T, d]`."""
    return x.reshape(batch, -1, parts, heads, x.shape[1] // (parts * heads)).transpose(2, 0, 3, 1, 4)


def attend(queries, keys, values, penalty=None):
    """Weighted means of values: scaled queries `[B, H, T, d]`, keys and values `[B, H, S, d]`, to flat `[B * T, D]`."""
    scores = queries @ keys.swapaxes(-1, -2)
    if penalty is not None:
        scores -= penalty
    found = softmax(scores) @ values
    return found.transpose(0, 2, 1, 3).reshape(-1, found.shape[1] * found.shape[3])


def position_signal(xp, start, count, size):
    """Sines, then cosines, of positions start, ..., start + count - 1 (1 is the first token's), `[count, size]`."""
    half = size // 2
    rates = [math.exp(-i * math.log(10000.0) / max(half - 1, 1)) for i in range(half)]
    angles = xp.arange(start, start + count, dtype=np.float32)[:, np.newaxis] * xp.asarray(rates, dtype=np.float32)
    return np.concatenate([np.sin(angles), np.cos(angles), xp.zeros((count, size % 2), np.float32)], axis=1)


class Positions:
    """A row a place, made once and more of them when a longer text comes.

    Args:
      make: a function of (first place, count) to rows.
    """

    def __init__(self, make):
        self.make, self.rows = make, make(0, 256)

    def __call__(self, start, count):
        """The rows of places start, ..., start + count - 1; 0 is the first token."""
        missing = start + count - len(self.rows)
        if missing > 0:
            self.rows = np.concatenate([self.rows, self.make(len(self.rows), max(missing, len(self.rows)))])
        return self.rows[start : start + count]


def sinusoidal_positions(xp, size):
    return Positions(lambda start, count: position_signal(xp, start + 1, count, size))


def learned_positions(xp, table):
    """Rows of a table; later places share the last one."""
    return Positions(lambda start, count: table[np.minimum(xp.arange(start, start + count), len(table) - 1)])


def rotary_positions(xp, size):
    """Cosines and sines by which heads of `size` units are turned, side by side: `[place, 2, size]`."""
    rates = xp.asarray([10000.0 ** (-2.0 * i / size) for i in range(size // 2)], dtype=np.float32)

    def make(start, count):
        angles = xp.arange(start, start + count, dtype=np.float32)[:, np.newaxis] * rates
        cosines, sines = np.cos(angles), np.sin(angles)
        return np.stack([np.concatenate([cosines, cosines], axis=1), np.concatenate([-sines, sines], axis=1)], axis=1)

    return Positions(make)


def rotate(x, turn):
    """Turns unit i and unit i + size/2 of each head as one pair: `[..., T, d]` by `[T, 2, d]` of `rotary_positions`."""
    half = x.shape[-1] // 2
    other = np.concatenate([x[..., half:], x[..., :half]], axis=-1)
    return x * turn[:, 0] + other * turn[:, 1]


class TokenInput:
    """Embedded tokens as a stack of layers takes them: scaled, brought to its size, placed.

    Args:
      weights: of the part; embedding_size, size: units of a token and of a layer.
      part: configuration of the stack, with `positions` and `scale_embedding`.
      centred: whether to take the mean over its units off each output.
    """

    def __init__(self, weights, embedding_size, size, part, centred=False):
        self.scale = embedding_size**0.5 if part.scale_embedding else 1.0
        self.projection = linear(weights.below('projection')) if 'projection/kernel' in weights else None
        self.positions, self.centred = None, centred
        if part.positions == 'sinusoidal':
            self.positions = sinusoidal_positions(weights.xp, size)
        elif part.positions == 'learned':
            self.positions = learned_positions(weights.xp, weights['positions/table'])

    def __call__(self, embedded, start, count, same_place=False):
        """Flat rows to flat rows: B texts of `count` tokens from place `start` on, or all rows at that place."""
        x = embedded * np.float32(self.scale)
        if self.projection is not None:
            x = self.projection(x)
        if self.positions is not None:
            rows = self.positions(start, 1 if same_place else count)
            x = x + rows if same_place else (x.reshape(-1, count, x.shape[1]) + rows).reshape(x.shape)
        if self.centred:
            x -= x.mean(axis=1, keepdims=True)
        return x
