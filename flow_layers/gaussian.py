"""A diagonal Gaussian as a flow of one layer: the prior to compare a real flow with."""

import tensorflow as tf

from flow_layers.bijector import SequenceBijector


class ConditionalGaussian(SequenceBijector):
    """Shifts and scales every element by what the source and the position say; elements do not know of each other.

        forward: eps = (z - mean) * exp(-log_deviation)        inverse: z = mean + exp(log_deviation) * eps
            with mean, log_deviation = conditioner(zeros, source)

    Args:
      depth: channels D.
      conditioner: `(x [N, D], Conditions) -> [N, 2 * D]`.
    """

    def __init__(self, depth, conditioner, name='gaussian'):
        super().__init__(name)
        self.depth, self.conditioner = depth, conditioner

    def _ends(self, x, at):
        ends = tf.where(at.rows.real, tf.cast(self.conditioner(tf.zeros_like(x), at), x.dtype), tf.zeros([], x.dtype))
        mean, log_deviation = tf.split(ends, 2, axis=1)
        return mean, log_deviation, at.rows.sums(log_deviation)

    def forward_rows(self, x, at):
        mean, log_deviation, log_det = self._ends(x, at)
        return (x - mean) * tf.exp(-log_deviation), -log_det

    def inverse_rows(self, y, at):
        mean, log_deviation, log_det = self._ends(y, at)
        return y * tf.exp(log_deviation) + mean, log_det

    def initialise_rows(self, x, at, over_padding=False):
        self.conditioner.initialise(tf.zeros_like(x), at, over_padding)
        return self.forward_rows(x, at)[0]
