"""Elementwise maps of a coupling; see `flow_layers.transforms` for the formulas and where they are from.

`forward(x, p)` and `inverse(y, p)` take flat rows and their parameters, and return new rows and log-slopes, or None.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Transform(NamedTuple):
    forward: Callable
    inverse: Callable


def _affine_parameters(p):
    half = p.shape[1] // 2
    return p[:, :half], -np.logaddexp(np.float32(0), np.float32(-2) - p[:, half:])


def _affine(x, p):
    shift, log_scale = _affine_parameters(p)
    return x * np.exp(log_scale) + shift, log_scale


def _affine_inverse(y, p):
    shift, log_scale = _affine_parameters(p)
    return (y - shift) * np.exp(-log_scale), -log_scale


_LOG_C_LIMIT = math.log(8.0 * math.sqrt(3.0) / 9.0 - 0.05)


def _nlsq_parameters(p):
    a, log_b, raw_c, log_d, g = np.split(p.astype(np.float64), 5, axis=1)
    log_b, log_d = 0.4 * log_b, 0.4 * log_d
    return a, np.exp(log_b), np.exp(_LOG_C_LIMIT + log_b - log_d) * np.tanh(0.3 * raw_c), np.exp(log_d), g


def _nlsq_value_and_log_slope(x, a, b, c, d, g):
    q = d * x + g
    bump = 1.0 / (1.0 + q * q)
    return b * x + a + c * bump, np.log(b - 2.0 * c * d * q * bump * bump)


def _nlsq(x, p):
    y, log_slope = _nlsq_value_and_log_slope(x, *_nlsq_parameters(p))
    return y.astype(np.float32), log_slope.astype(np.float32)


def _nlsq_inverse(y, p):
    """The real root of a cubic in closed form, then polished by two steps of Newton's method, in float64."""
    a, b, c, d, g = parameters = _nlsq_parameters(p)
    rest = y - a
    k3 = -b * d * d
    k2 = rest * d * d - 2.0 * b * d * g
    k1 = 2.0 * rest * d * g - b * (1.0 + g * g)
    k0 = rest * (1.0 + g * g) - c
    big_p = (3.0 * k3 * k1 - k2 * k2) / (3.0 * k3 * k3)
    big_q = (2.0 * k2**3 - 9.0 * k3 * k2 * k1 + 27.0 * k3 * k3 * k0) / (27.0 * k3**3)
    size = np.maximum(np.abs(big_p), 1e-300)  # P = 0 would divide by zero
    root = np.sqrt(size / 3.0)
    ratio = 1.5 * big_q / (size * root)
    with_sinh = -2.0 * root * np.sinh(np.arcsinh(ratio) / 3.0)
    with_cosh = -2.0 * np.sign(big_q) * root * np.cosh(np.arccosh(np.maximum(np.abs(ratio), 1.0)) / 3.0)
    x = np.where(big_p > 0, with_sinh, with_cosh) - k2 / (3.0 * k3)
    for _ in range(2):
        value, log_slope = _nlsq_value_and_log_slope(x, *parameters)
        x += (y - value) * np.exp(-log_slope)
    log_slope = _nlsq_value_and_log_slope(x, *parameters)[1]
    return x.astype(np.float32), -log_slope.astype(np.float32)


TRANSFORMS = {
    'additive': Transform(lambda x, p: (x + p, None), lambda y, p: (y - p, None)),
    'affine': Transform(_affine, _affine_inverse),
    'nlsq': Transform(_nlsq, _nlsq_inverse),
}
