"""Scales and shifts each channel."""

import tensorflow as tf

from flow_layers.bijector import SequenceBijector
from sequencing.blocks import choose_rows, statistics
from sequencing.layers import normal


class ActNorm(SequenceBijector):
    """Scales and shifts every channel at real steps; leaves padding as it is.

        forward: y[b, t] = x[b, t] * exp(log_scale) + shift          where mask[b, t]
        inverse: x[b, t] = (y[b, t] - shift) * exp(-log_scale)       where mask[b, t]
        log-det: log|det J|[b] = (number of real steps in b) * sum(log_scale)

    `initialise` sets it so that each channel comes out with mean 0 and deviation 1.
    Reference: Kingma and Dhariwal, 2018, https://arxiv.org/abs/1807.03039

    Args:
      depth: number of channels D.
    """

    def __init__(self, depth, name='actnorm'):
        super().__init__(name)
        with self.name_scope:
            self.log_scale = tf.Variable(normal([depth], stddev=0.05), name='log_scale')
            self.shift = tf.Variable(tf.zeros([depth]), name='shift')

    def forward_rows(self, x, at):
        log_scale = tf.cast(self.log_scale, x.dtype)
        y = x * tf.exp(log_scale) + tf.cast(self.shift, x.dtype)
        return choose_rows(at.rows.real, y, x), tf.reduce_sum(log_scale) * at.rows.counts(x.dtype)

    def inverse_rows(self, y, at):
        log_scale = tf.cast(self.log_scale, y.dtype)
        x = (y - tf.cast(self.shift, y.dtype)) * tf.exp(-log_scale)
        return choose_rows(at.rows.real, x, y), -tf.reduce_sum(log_scale) * at.rows.counts(y.dtype)

    def initialise_rows(self, x, at, over_padding=False):
        y = self.forward_rows(x, at)[0]
        mean, deviation = statistics(y, None if over_padding else at.rows.real)
        ratio = 1.0 / (deviation + 1e-6)
        self.log_scale.assign_add(tf.cast(tf.math.log(ratio), tf.float32))
        self.shift.assign(tf.cast((tf.cast(self.shift, x.dtype) - mean) * ratio, tf.float32))
        return self.forward_rows(x, at)[0]
