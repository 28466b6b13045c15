"""Length predictors p(T | x): how long the target is, from one vector of the source.

Lengths are multiples of a unit (targets are filled with EOS up to one), and are told as a difference to the source's.
"""

import math

import tensorflow as tf

from sequencing.blocks import uniform_linear
from sequencing.layers import Dropout


class LengthPredictor(tf.Module):
    """What both kinds share.

    Args:
      size: width of the source vector.
      reach: largest difference R between target and source length.
      unit: lengths are multiples of it.
      dropout: in front of the last linear.
      name: of the part.
    """

    def __init__(self, size, outputs, hidden_layers, reach, unit, dropout, name):
        super().__init__(name=name)
        if reach < unit:
            raise ValueError(f'{name}: a reach of {reach} holds no multiple of {unit} for a short source')
        self.reach, self.unit = reach, unit
        with self.name_scope:
            self.hidden = [uniform_linear(size, size, bias=False, name=f'hidden_{i}') for i in range(hidden_layers)]
            self.dropout = Dropout(dropout)
            self.output = uniform_linear(size, outputs, scale=0.1, bias=False, name='output')

    def raw(self, context, seed=None):
        """`[B, D]` to the network's `[B, outputs]`, at least float32."""
        x = context if context.dtype == tf.float64 else tf.cast(context, tf.float32)
        for layer in self.hidden:
            x = tf.nn.elu(layer(x))
        return self.output(self.dropout(x, seed))

    def differences(self):
        """-R, ..., R."""
        return tf.range(-self.reach, self.reach + 1)

    @property
    def most_lengths(self):
        """No source has more lengths than this."""
        return (2 * self.reach - 1) // self.unit + 2

    def expressible(self, src_lengths, trg_lengths):
        """The nearest lengths that `predict` can give, `[B]` int32; 0 stays where it is within reach of the source."""
        unit, reach = self.unit, self.reach
        raised = -(-tf.maximum(trg_lengths, src_lengths - reach) // unit) * unit
        return tf.minimum(raised, src_lengths + reach) // unit * unit

    def predict(self, context, src_lengths, count, longest=None):
        """The most probable lengths.

        Args:
          context: `[B, D]` float.
          src_lengths: `[B]` int32.
          count: how many lengths.
          longest: int, a multiple of the unit: longer lengths are cut to it, and the likeliest of those stands for it.
        Returns:
          lengths `[B, count]` int32, different and positive, best first, and log-probabilities `[B, count]`; at most
          `most_lengths`. Where a source has fewer, the log-probability is -inf and the length is the unit.
        """
        lengths, log_probs = self.distribution(context, src_lengths)
        log_probs = tf.where(lengths > 0, log_probs, -math.inf)
        if longest is not None:
            cut = lengths >= longest
            likeliest = tf.argmax(tf.where(cut, log_probs, -math.inf), axis=1)
            stands = tf.one_hot(likeliest, tf.shape(lengths)[1], True, False)
            log_probs = tf.where(cut & ~stands, -math.inf, log_probs)
            lengths = tf.minimum(lengths, longest)
        best, places = tf.math.top_k(log_probs, min(count, self.most_lengths))
        return tf.where(best > -math.inf, tf.gather(lengths, places, batch_dims=1), self.unit), best


class SoftmaxLength(LengthPredictor):
    """A softmax over differences; those that lead to no multiple of the unit have probability 0."""

    def __init__(self, size, reach, unit, dropout=0.0, label_smoothing=0.0, name='length_predictor'):
        super().__init__(size, 2 * reach + 1, 2, reach, unit, dropout, name)
        self.label_smoothing = label_smoothing

    def distribution(self, context, src_lengths, seed=None):
        """Lengths `[B, 2 R + 1]` and their log-probabilities, -inf where a length is no multiple of the unit."""
        logits = self.raw(context, seed)
        lengths = src_lengths[:, tf.newaxis] + self.differences()
        logits = tf.where(lengths % self.unit == 0, logits, -math.inf)
        return lengths, tf.nn.log_softmax(logits)

    def loss(self, context, src_lengths, trg_lengths, seed=None):
        """-log p(T | x), smoothed over the possible lengths and plain, each `[B]`; T is made `expressible` first."""
        lengths, log_probs = self.distribution(context, src_lengths, seed)
        hit = lengths == self.expressible(src_lengths, trg_lengths)[:, tf.newaxis]
        possible = lengths % self.unit == 0
        finite = tf.where(possible, log_probs, 0.0)
        nll = -tf.reduce_sum(tf.where(hit, finite, 0.0), axis=1)
        mean = -tf.reduce_sum(finite, axis=1) / tf.reduce_sum(tf.cast(possible, finite.dtype), axis=1)
        return nll + self.label_smoothing * (mean - nll), nll


class LogisticLength(LengthPredictor):
    """A mixture of logistic densities over differences divided by R, cut into bins of width 1 / R; the outermost bins
    take all that lies beyond.

    Reference: Salimans et al., 2017, section 2.1, https://arxiv.org/abs/1701.05517
    """

    def __init__(self, size, reach, unit, mixtures, dropout=0.0, name='length_predictor'):
        super().__init__(size, 3 * mixtures, 1, reach, unit, dropout, name)

    def log_probs(self, context, differences, seed=None):
        """Log-probabilities `[B, K]` of the differences `[B, K]`."""
        weights, means, log_scales = tf.split(self.raw(context, seed)[:, tf.newaxis], 3, axis=2)  # [B, 1, M]
        dtype = means.dtype
        x = tf.clip_by_value(tf.cast(differences, dtype) / self.reach, -1.0, 1.0)[:, :, tf.newaxis]
        half = 0.5 / self.reach
        rates = tf.exp(-log_scales)
        low, middle, high = [rates * (x - means + shift) for shift in (-half, 0.0, half)]
        inside = tf.sigmoid(high) - tf.sigmoid(low)
        narrow = middle - log_scales - 2.0 * tf.nn.softplus(middle) + math.log(2.0 * half)  # density times width
        logs = tf.where(inside > 1e-5, tf.math.log(tf.maximum(inside, 1e-5)), narrow)
        logs = tf.where(x > 1.0 - half, -tf.nn.softplus(low), logs)
        logs = tf.where(x < half - 1.0, high - tf.nn.softplus(high), logs)
        return tf.reduce_logsumexp(logs + tf.nn.log_softmax(weights), axis=2)

    def loss(self, context, src_lengths, trg_lengths, seed=None):
        """-log p(T - S | x) twice, `[B]`: there is nothing to smooth."""
        nll = -self.log_probs(context, (trg_lengths - src_lengths)[:, tf.newaxis], seed)[:, 0]
        return nll, nll

    def expressible(self, src_lengths, trg_lengths):
        """As `LengthPredictor.expressible`; what is told is rounded up, and so may lie beyond the reach."""
        ends = [self._rounded(src_lengths + reach) for reach in (-self.reach, self.reach)]
        return tf.clip_by_value(self._rounded(trg_lengths), *ends)

    def _rounded(self, lengths):
        """Up to a positive multiple of the unit."""
        return tf.maximum(-(-lengths // self.unit), 1) * self.unit

    def distribution(self, context, src_lengths):
        """Lengths `[B, 2 R + 1]`, rounded up to multiples of the unit, and the log-probabilities of their differences.
        Of the differences that round to one length, the likeliest stands for it and the others have -inf."""
        differences = tf.broadcast_to(self.differences(), [tf.shape(src_lengths)[0], 2 * self.reach + 1])
        log_probs = self.log_probs(context, differences)
        lengths = self._rounded(src_lengths[:, tf.newaxis] + differences)
        same = lengths[:, :, tf.newaxis] == lengths[:, tf.newaxis, :]  # [B, K, K]
        rivals = tf.where(same, log_probs[:, tf.newaxis, :], -math.inf)
        likeliest = tf.argmax(rivals, axis=2, output_type=tf.int32) == self.differences() + self.reach
        return lengths, tf.where(likeliest, log_probs, -math.inf)
