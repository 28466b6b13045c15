"""Layers in a row under shared conditions, and levels with squeezing and splitting between them."""

import math

import tensorflow as tf

from flow_layers.bijector import Conditions, FlowMemory, SequenceBijector
from sequencing.blocks import Rows


class SequenceFlow(SequenceBijector):
    """Layers in a row: `forward` applies the first one first.

    Args:
      layers: list of `SequenceBijector`.
    """

    def __init__(self, layers, name='flow'):
        super().__init__(name)
        self.layers = list(layers)

    def forward_rows(self, x, at):
        total = 0.0
        for layer in self.layers:
            x, log_det = layer.forward_rows(x, at)
            total += log_det
        return x, total

    def inverse_rows(self, y, at):
        total = 0.0
        for layer in reversed(self.layers):
            y, log_det = layer.inverse_rows(y, at)
            total += log_det
        return y, total

    def initialise_rows(self, x, at, over_padding=False):
        for layer in self.layers:
            x = layer.initialise_rows(x, at, over_padding)
        return x

    level_shares = (1.0,)  # of the latent's channels and steps, that end as noise of each level

    def log_prob_by_level(self, z, mask, memory=None, seed=None):
        """log p(z) of latents `[B, T, D]`, in nats, as a sum over levels: `[B, levels]`.

        A level has the log-dets of its own layers and the density of the noise that ends with it.
        """
        at = Conditions(Rows(mask), memory, seed)
        return tf.stack(self.log_prob_rows(at.rows.flat(z), at), axis=1)

    def log_prob_rows(self, z, at):
        """As `log_prob_by_level`, for flat rows: a list of `[B]`, one for each level."""
        noise, log_det = self.forward_rows(z, at)
        return [log_det + normal_log_prob(noise, at)]

    def prepare(self, outputs, mask):
        """Source encodings `[B, S, D]` and mask to a `FlowMemory`."""
        return FlowMemory(outputs, mask)

    def folded(self, dtype):
        """The same map in fewer operations, for weights that do not change any more; itself, where none is known."""
        return self


class MultiLevelFlow(SequenceFlow):
    """Levels, each on fewer and wider steps than the one before, with some channels left behind on the way.

        forward: x = level_0(z); then, for each further level: the last D // factor channels of x are done; of the
          others, two neighbouring steps become one of twice the width; the level works on these. What is done is put
          back in its place at the end, so noise has the shape of the latent.
        inverse: the same splits and pairs, then the levels from the last to the first.

    T, and the real steps of every sentence, are multiples of 2^(levels - 1).
    Reference: Ma et al., 2019, section 3.3; Dinh et al., 2017, section 3.6

    Args:
      levels: list of `SequenceBijector`; `sizes` gives the channels that each of them works on.
      depth: channels D of the latent.
      factors: one for each level but the last.
    """

    def __init__(self, levels, depth, factors, name='flow'):
        super().__init__(levels, name)
        sizes = self.sizes(depth, factors)
        if len(sizes) != len(self.layers):
            raise ValueError(f'{name}: {len(self.layers)} levels have {len(self.layers) - 1} factors; got {factors}')
        self.kept = [size // 2 for size in sizes[1:]]
        done = [(size - kept) / 2**i for i, (size, kept) in enumerate(zip(sizes, [*self.kept, 0]))]
        self.level_shares = tuple(part / sum(done) for part in done)

    def folded(self, dtype):
        """As `SequenceFlow.folded`, where all couplings are of the kind that `FoldedFlow` knows."""
        from flow_layers.folded import FoldedFlow  # built on this file
        from flow_layers.folding import foldable

        return FoldedFlow(self, dtype) if foldable(self) else self

    @staticmethod
    def sizes(depth, factors):
        """Channels of each level."""
        sizes = [depth]
        for factor in factors:
            sizes.append(2 * (sizes[-1] - sizes[-1] // factor))
        return sizes

    def forward_rows(self, x, at):
        return self._forward_from(0, x, at, lambda layer, x, at: layer.forward_rows(x, at))

    def initialise_rows(self, x, at, over_padding=False):
        return self._forward_from(0, x, at, lambda layer, x, at: (layer.initialise_rows(x, at, over_padding), 0.0))[0]

    def _forward_from(self, level, x, at, apply):
        x, log_det = apply(self.layers[level], x, at)
        if level == len(self.layers) - 1:
            return x, log_det
        keep, done = self._split(level, x)
        keep, deeper = self._forward_from(level + 1, self._paired(keep, at), at.paired(), apply)
        return tf.concat([self._unpaired(keep, level), done], axis=1), log_det + deeper

    def log_prob_rows(self, z, at):
        found = []
        for level, layers in enumerate(self.layers):
            z, log_prob = layers.forward_rows(z, at)
            done = z
            if level < len(self.layers) - 1:
                z, done = self._split(level, z)
            found.append(log_prob + normal_log_prob(done, at))
            if level < len(self.layers) - 1:
                z, at = self._paired(z, at), at.paired()
        return found

    def inverse_rows(self, y, at):
        return self._inverse_from(0, y, at)

    def _inverse_from(self, level, y, at):
        deeper = 0.0
        if level < len(self.layers) - 1:
            keep, done = self._split(level, y)
            keep, deeper = self._inverse_from(level + 1, self._paired(keep, at), at.paired())
            y = tf.concat([self._unpaired(keep, level), done], axis=1)
        x, log_det = self.layers[level].inverse_rows(y, at)
        return x, log_det + deeper

    def _split(self, level, x):
        return tf.split(x, [self.kept[level], x.shape[1] - self.kept[level]], axis=1)

    def _paired(self, x, at):
        if isinstance(at.rows.time, int) and at.rows.time % 2:
            raise ValueError(f'{self.name}: steps are paired between levels: T has to be even; got {at.rows.time}')
        return tf.reshape(x, [-1, 2 * x.shape[1]])  # a step's channels, then those of the step after it

    def _unpaired(self, x, level):
        return tf.reshape(x, [-1, self.kept[level]])


def normal_log_prob(noise, at):
    """log N(noise; 0, I) over the real steps of flat rows, `[B]`."""
    return -0.5 * at.rows.sums(tf.square(noise) + math.log(2.0 * math.pi))
