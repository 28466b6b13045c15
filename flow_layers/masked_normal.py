"""The base of a flow: standard normal at real steps, nothing at padding."""

import math

import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


def masked_normal_log_prob(x, mask):
    """log N(x; 0, I) of the real steps of `[B, T, D]`, `[B]`, in nats."""
    terms = tf.where(mask[:, :, tf.newaxis], -0.5 * (tf.square(x) + math.log(2.0 * math.pi)), tf.zeros([], x.dtype))
    return tf.reduce_sum(terms, axis=[1, 2])


def masked_normal(mask, depth, dtype=tf.float32):
    """The same as a distribution of `[T, depth]` events, one a row of `mask` `[B, T]`.

    Its log-densities ignore padding. Its samples are not zero there: multiply by the mask where that matters.
    """
    shape = tf.concat([tf.shape(mask), [depth]], axis=0)
    normal = tfd.Normal(tf.zeros(shape, dtype), tf.ones([], dtype))
    return tfd.Independent(tfd.Masked(normal, tf.broadcast_to(mask[:, :, tf.newaxis], shape)), 2)
