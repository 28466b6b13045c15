"""Noise that belongs to a sentence, not to its place in a batch.

Counter-based: a number is a hash of (seed, source sentence, candidate, step, ...), so the same sentence draws the same
noise in any batch, order or device count. The mixer is the 32-bit finaliser of MurmurHash3 (Appleby, public domain).
"""

import math

import tensorflow as tf


def mix(*parts):
    """Hashes integers, broadcast together, to uint32."""
    key = tf.constant(0x9E3779B9, tf.uint32)
    for part in parts:
        key = tf.bitwise.bitwise_xor(key, tf.cast(part, tf.uint32) + tf.constant(0x7F4A7C15, tf.uint32))
        key = tf.bitwise.bitwise_xor(key, tf.bitwise.right_shift(key, tf.constant(16, tf.uint32)))
        key *= tf.constant(0x85EBCA6B, tf.uint32)
        key = tf.bitwise.bitwise_xor(key, tf.bitwise.right_shift(key, tf.constant(13, tf.uint32)))
        key *= tf.constant(0xC2B2AE35, tf.uint32)
        key = tf.bitwise.bitwise_xor(key, tf.bitwise.right_shift(key, tf.constant(16, tf.uint32)))
    return key


def source_hash(ids, mask):
    """A uint32 a sentence, `[B]`, from its real ids `[B, S]`, whatever the padding."""
    mixed = mix(ids, tf.range(tf.shape(ids)[1]))
    mixed = tf.where(mask, tf.cast(tf.bitwise.right_shift(mixed, tf.constant(1, tf.uint32)), tf.int64), 0)
    return mix(tf.reduce_sum(mixed, axis=1) % (2**31))


def uniforms(*parts):
    """float32 in the open interval (0, 1), one for each hash of `parts`."""
    high = tf.bitwise.right_shift(mix(*parts), tf.constant(9, tf.uint32))  # 23 bits: exact in float32 with the half
    return (tf.cast(high, tf.float32) + 0.5) / 2.0**23


def normals(*parts):
    """Standard normal float32, one for each hash of `parts` (Box and Muller, 1958)."""
    radius = tf.sqrt(-2.0 * tf.math.log(uniforms(*parts, 1)))
    return radius * tf.cos(2.0 * math.pi * uniforms(*parts, 2))
