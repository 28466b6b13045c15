"""Losses, in nats, as sums over real target tokens."""

import tensorflow as tf


def cross_entropy(logits, targets, label_smoothing=0.0):
    """Cross entropy of each row, with and without label smoothing, in one pass over the logits each way.

        nll      = logsumexp(logits) - logits[target]
        smoothed = (1 - s) * nll + s * (logsumexp(logits) - mean(logits))

    Args:
      logits: `[M, N]` float, used as float32.
      targets: `[M]` int32.
      label_smoothing: s, the probability spread evenly over all N tokens (Szegedy et al., 2016, section 7).
    Returns:
      smoothed `[M]` and nll `[M]` float32; gradients flow through `smoothed` alone.
    """
    size = tf.shape(logits)[1]

    @tf.custom_gradient
    def smoothed_loss(logits):
        nll, d_nll = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=targets)
        if not label_smoothing:
            return (nll, nll), lambda d, _: d[:, tf.newaxis] * d_nll
        rows = tf.range(tf.shape(targets)[0])
        places = tf.stack([rows, targets], axis=1)
        smoothed = nll + label_smoothing * (tf.gather_nd(logits, places) - tf.reduce_mean(logits, axis=1))

        def gradient(d, _):
            even = d[:, tf.newaxis] * (d_nll - label_smoothing / tf.cast(size, tf.float32))
            return tf.tensor_scatter_nd_add(even, places, d * label_smoothing)

        return (smoothed, nll), gradient

    smoothed, nll = smoothed_loss(tf.cast(logits, tf.float32))
    return smoothed, tf.stop_gradient(nll)
