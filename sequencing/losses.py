"""Losses, in nats, as sums over real target tokens."""

import tensorflow as tf

from sequencing.layers import column_sums

_LEAST_LIKELIHOOD = 1e-30  # below it a float32 probability may have lost digits


def cross_entropy(logits, targets, label_smoothing=0.0, bias=None):
    """Cross entropy of each row, with and without label smoothing.

        nll      = logsumexp(logits) - logits[target]
        smoothed = (1 - s) * nll + s * (logsumexp(logits) - mean(logits))

    Args:
      logits: `[M, N]` float, used as float32. The gradient of bfloat16 ones is made in bfloat16, half the memory that
        has to be written and read.
      targets: `[M]` int32.
      label_smoothing: s, the probability spread evenly over all N tokens (Szegedy et al., 2016, section 7).
      bias: `[N]` float32 to be added to the logits first, or None.
    Returns:
      smoothed `[M]` and nll `[M]` float32; gradients flow through `smoothed` alone.
    """
    places = tf.stack([tf.range(tf.shape(targets)[0]), targets], axis=1)
    given, size = logits.dtype, tf.cast(tf.shape(logits)[1], tf.float32)
    # float16 has no room for the scale that its losses carry.
    narrow = tf.bfloat16 if given == tf.bfloat16 else tf.float32

    @tf.custom_gradient
    def both_losses(logits, *bias):
        # From the probabilities, which oneDNN makes in one pass. The formula above, written out, takes 1.5 times
        # (bfloat16) to 1.8 times (float32) as long on CPUs, both ways; TensorFlow's fused kernel longer still.
        logits = tf.cast(logits, tf.float32)
        logits = tf.nn.bias_add(logits, *bias) if bias else logits
        probabilities = tf.nn.softmax(logits)
        chosen, likelihood = tf.gather_nd(logits, places), tf.gather_nd(probabilities, places)

        def from_logits():  # relative to the largest of a row, so that no digits are lost to its size
            top = tf.reduce_max(logits, axis=1)
            return tf.reduce_logsumexp(logits - top[:, tf.newaxis], axis=1) - (chosen - top)

        enough = tf.reduce_min(likelihood) > _LEAST_LIKELIHOOD
        nll = tf.cond(enough, lambda: -tf.math.log(likelihood), from_logits)
        smoothed = nll + label_smoothing * (chosen - tf.reduce_mean(logits, axis=1)) if label_smoothing else nll

        def gradient(d, _):
            d_logits = tf.cast(probabilities, narrow)
            if label_smoothing:
                d_logits -= tf.cast(label_smoothing / size, narrow)
            # What the target gets is a small difference for a learnt token: bfloat16 would make a bias of it.
            d_chosen = (likelihood - label_smoothing / size - (1.0 - label_smoothing)) * d
            d_logits *= tf.cast(d, narrow)[:, tf.newaxis]
            d_logits = tf.tensor_scatter_nd_update(d_logits, places, tf.cast(d_chosen, narrow))
            d_bias = [tf.cast(column_sums(d_logits), tf.float32) for _ in bias]
            return tf.cast(d_logits, given), *d_bias

        return (smoothed, nll), gradient

    smoothed, nll = both_losses(logits, *([] if bias is None else [tf.convert_to_tensor(bias)]))
    return smoothed, tf.stop_gradient(nll)
