"""Elementwise maps of a coupling: what happens to an element, given parameters that a conditioner made for it.

A transform has `parameters`, how many numbers an element needs, and two functions of flat rows `x` `[N, D]` and raw
parameters `p` `[N, parameters * D]` (the first D columns are every element's first parameter, and so on):

    forward(x, p) -> y, log_slope       inverse(y, p) -> x, log_slope of that inverse

`log_slope` is log|dy/dx| (log|dx/dy|) of each element, `[N, D]`, or None where it is zero. All parameters 0 is where
training starts.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class Transform(NamedTuple):
    """See the top of the file."""

    parameters: int
    forward: Callable
    inverse: Callable


def _add(x, p):
    return x + p, None


def _subtract(y, p):
    return y - p, None


def _affine(x, p):
    """y = scale * x + shift, scale = sigmoid(p_1 + 2): between 0 and 1, 0.88 at the start."""
    shift, raw = _halves(p)
    scale, log_scale = _sigmoid_and_its_log(raw + 2.0)
    return x * scale + shift, log_scale


def _affine_inverse(y, p):
    shift, raw = _halves(p)
    log_scale = tf.math.log_sigmoid(raw + 2.0)
    return (y - shift) * tf.exp(-log_scale), -log_scale


def _halves(p):
    """Both parameters of each element; on CPUs `tf.split` takes up to twice as long."""
    return tf.unstack(tf.reshape(p, [-1, 2, p.shape[-1] // 2]), axis=1)


@tf.custom_gradient
def _sigmoid_and_its_log(x):
    """Both, with a gradient that makes no exponentials again."""
    y = tf.sigmoid(x)

    def gradient(d_y, d_log):
        return (d_y * y + d_log) * (1.0 - y)

    return (y, tf.math.log_sigmoid(x)), gradient


# The largest c for which the nlsq map stays monotone is 8 sqrt(3) / 9 * b / d (Ziegler and Rush, 2019, section 5).
_LOG_C_LIMIT = math.log(8.0 * math.sqrt(3.0) / 9.0 - 0.05)


def _nlsq_parameters(p):
    a, log_b, raw_c, log_d, g = tf.split(p, 5, axis=-1)
    log_b, log_d = 0.4 * log_b, 0.4 * log_d
    c = tf.exp(_LOG_C_LIMIT + log_b - log_d) * tf.tanh(0.3 * raw_c)
    return a, tf.exp(log_b), c, tf.exp(log_d), g


def _nlsq(x, p):
    """y = b x + a + c / (1 + (d x + g)^2): a line with a bump, monotone whatever the parameters."""
    a, b, c, d, g = _nlsq_parameters(p)
    return _nlsq_value_and_log_slope(x, a, b, c, d, g)


def _nlsq_value_and_log_slope(x, a, b, c, d, g):
    q = d * x + g
    bump = 1.0 / (1.0 + q * q)
    return b * x + a + c * bump, tf.math.log(b - 2.0 * c * d * q * bump * bump)


def _nlsq_inverse(y, p):
    """The real root of a cubic, in closed form and in float64, then polished by two steps of Newton's method (which
    also carry the gradient: the closed form has branches whose derivative is not finite)."""
    dtype = y.dtype
    a, b, c, d, g = _nlsq_parameters(tf.cast(p, tf.float64))
    y = tf.cast(y, tf.float64)
    x = tf.stop_gradient(_cubic_root(y, a, b, c, d, g))
    for _ in range(2):
        value, log_slope = _nlsq_value_and_log_slope(x, a, b, c, d, g)
        x += (y - value) * tf.exp(-log_slope)
    log_slope = _nlsq_value_and_log_slope(x, a, b, c, d, g)[1]
    return tf.cast(x, dtype), tf.cast(-log_slope, dtype)


def _cubic_root(y, a, b, c, d, g):
    """x with y = b x + a + c / (1 + (d x + g)^2), by the depressed cubic t^3 + P t + Q = 0 (one real root)."""
    rest = y - a
    k3 = -b * d * d
    k2 = rest * d * d - 2.0 * b * d * g
    k1 = 2.0 * rest * d * g - b * (1.0 + g * g)
    k0 = rest * (1.0 + g * g) - c
    big_p = (3.0 * k3 * k1 - k2 * k2) / (3.0 * k3 * k3)
    big_q = (2.0 * k2**3 - 9.0 * k3 * k2 * k1 + 27.0 * k3 * k3 * k0) / (27.0 * k3**3)
    size = tf.maximum(tf.abs(big_p), 1e-300)  # P = 0 would divide by zero
    root = tf.sqrt(size / 3.0)
    ratio = 1.5 * big_q / (size * root)
    with_sinh = -2.0 * root * tf.sinh(tf.asinh(ratio) / 3.0)
    with_cosh = -2.0 * tf.sign(big_q) * root * tf.cosh(tf.acosh(tf.maximum(tf.abs(ratio), 1.0)) / 3.0)
    return tf.where(big_p > 0, with_sinh, with_cosh) - k2 / (3.0 * k3)


ADDITIVE = Transform(1, _add, _subtract)
AFFINE = Transform(2, _affine, _affine_inverse)
NLSQ = Transform(5, _nlsq, _nlsq_inverse)
TRANSFORMS = {'additive': ADDITIVE, 'affine': AFFINE, 'nlsq': NLSQ}
