"""Length predictors p(T | x); see `sequencing.length_predictors`. Distributions are made on the host."""

import math

import numpy as np

from sequencing_np.arrays import to_host
from sequencing_np.layers import elu, linear, sigmoid


class LengthPredictor:
    """What both kinds share.

    Args:
      weights: of the part; part: its configuration; unit: lengths are multiples of it.
    """

    def __init__(self, weights, part, unit):
        self.reach, self.unit = part.reach, unit
        self.most_lengths = (2 * part.reach - 1) // unit + 2  # that any source has
        self.hidden = [linear(layer) for layer in weights.listed('hidden')]
        self.output = linear(weights.below('output'))

    def raw(self, context):
        """`[B, D]` to what the network says, `[B, outputs]`."""
        for layer in self.hidden:
            context = elu(layer(context))
        return to_host(self.output(context))

    def differences(self):
        """-R, ..., R."""
        return np.arange(-self.reach, self.reach + 1)

    def predict(self, context, src_lengths, count):
        """The most probable lengths and their log-probabilities, each `[B, count]`, best first; at most `most_lengths`.

        Where a source has fewer, the log-probability is -inf and the length is the unit.
        """
        lengths, log_probs = self.distribution(context, src_lengths)
        log_probs = np.where(lengths > 0, log_probs, -np.inf)
        places = np.argsort(-log_probs, axis=1, kind='stable')[:, : min(count, self.most_lengths)]
        best = np.take_along_axis(log_probs, places, axis=1)
        return np.where(best > -np.inf, np.take_along_axis(lengths, places, axis=1), self.unit), best


class SoftmaxLength(LengthPredictor):
    """A softmax over differences; those that lead to no multiple of the unit have probability 0."""

    def distribution(self, context, src_lengths):
        """Lengths `[B, 2 R + 1]` and their log-probabilities."""
        lengths = src_lengths[:, np.newaxis] + self.differences()
        logits = np.where(lengths % self.unit == 0, self.raw(context), -np.inf)
        logits = logits - logits.max(axis=1, keepdims=True)
        return lengths, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class LogisticLength(LengthPredictor):
    """A mixture of discretised logistics over differences divided by R."""

    def distribution(self, context, src_lengths):
        """Lengths `[B, 2 R + 1]` and the log-probabilities of their differences; of those that round to one length,
        the likeliest stands for it and the others have -inf."""
        log_probs = self.log_probs(context)
        lengths = np.maximum(-(-(src_lengths[:, np.newaxis] + self.differences()) // self.unit), 1) * self.unit
        same = lengths[:, :, np.newaxis] == lengths[:, np.newaxis]  # [B, K, K]
        rivals = np.where(same, log_probs[:, np.newaxis], -np.inf)
        return lengths, np.where(rivals.argmax(axis=2) == np.arange(lengths.shape[1]), log_probs, -np.inf)

    def log_probs(self, context):
        """Log-probabilities `[B, 2 R + 1]` of the differences."""
        weights, means, log_scales = np.split(self.raw(context)[:, np.newaxis], 3, axis=2)  # [B, 1, M]
        x = (self.differences() / np.float32(self.reach)).astype(np.float32)[:, np.newaxis]
        half = np.float32(0.5 / self.reach)
        rates = np.exp(-log_scales)
        low, middle, high = [rates * (x - means + shift) for shift in (-half, np.float32(0), half)]
        inside = sigmoid(high) - sigmoid(low)
        narrow = middle - log_scales - 2.0 * _softplus(middle) + np.float32(math.log(2.0 * half))
        logs = np.where(inside > 1e-5, np.log(np.maximum(inside, 1e-5)), narrow)
        logs = np.where(x > 1.0 - half, -_softplus(low), logs)
        logs = np.where(x < half - 1.0, high - _softplus(high), logs)
        return np.logaddexp.reduce(logs + weights - np.logaddexp.reduce(weights, axis=2, keepdims=True), axis=2)


def _softplus(x):
    return np.logaddexp(np.float32(0), x)


LENGTHS = {'softmax': SoftmaxLength, 'logistic': LogisticLength}
