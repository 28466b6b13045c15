"""What all flow layers share: the two directions, their log-dets, and the conditions they are given.

A layer is a `tfp.bijectors.Bijector` whose event is a whole sequence `[T, D]`, so log-dets have shape `[B]`.

    forward: latent z -> noise eps, the direction in which a density is computed (and layers are initialised)
    inverse: noise eps -> latent z, the direction in which latents are generated

    log p(z) = log N(forward(z); 0, I) + forward_log_det_jacobian(z)

As a distribution: `tfd.TransformedDistribution(masked_normal(mask, depth), tfb.Invert(flow))`.

Conditions are keywords of every direction: `mask` `[B, T]` bool (all True where it is not given), `memory` (a
`FlowMemory`, for layers that look at a source), `seed` (for dropout in training). Padding passes untouched and adds
nothing to a log-det, and what it holds changes nothing else.

Inside, layers hand each other flat rows `[B * T, D]` and a `Conditions`, and compute a direction together with its
log-det, so that nothing is computed twice: `forward_rows` and `inverse_rows` are what a layer implements.
"""

import abc
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from sequencing.blocks import Rows


class FlowMemory(NamedTuple):
    """The source that couplings look at. B sources may serve `B * n` latents, n for each source, next to each other."""

    outputs: tf.Tensor  # [B, S, D] float, its dtype is what conditioners compute in
    mask: tf.Tensor  # [B, S] bool
    projected: Any = ()  # what `prepare` of a folded flow made of it: (keys, values) of each conditioner


class Conditions:
    """All that a layer is told beside its input: rows, source, dropout seed; and the same for parts of the time axis.

    Args:
      rows: `Rows` of the latents.
      memory: `FlowMemory` or None.
      seed: `[2]` int32 or None.
    """

    def __init__(self, rows, memory=None, seed=None):
        self.rows, self.memory, self.seed = rows, memory, seed

    @property
    def dtype(self):
        """What conditioners compute in; None without a source."""
        return None if self.memory is None else self.memory.outputs.dtype

    def _with_mask(self, key, make_mask):
        return self.rows.kept(key, lambda: Conditions(Rows(make_mask()), self.memory, self.seed))

    def even(self):
        """Conditions of steps 0, 2, ..."""
        return self._with_mask('even', lambda: self.rows.mask[:, ::2])

    def odd(self):
        """Conditions of steps 1, 3, ..."""
        return self._with_mask('odd', lambda: self.rows.mask[:, 1::2])

    def paired(self):
        """Conditions where two neighbouring steps are one; a pair is real if either of the two is."""
        return self._with_mask('paired', lambda: self.rows.mask[:, ::2] | self.rows.mask[:, 1::2])

    def source(self):
        """`Rows` of the source and its flat outputs."""

        def make():
            rows = Rows(self.memory.mask)
            return rows, rows.flat(self.memory.outputs)

        return self.rows.kept('source', make)

    def source_bias(self):
        """The source's key bias, `[B, 1, 1, S]`."""
        return self.rows.kept('source_bias', lambda: Rows(self.memory.mask).key_bias(self.dtype))


class SequenceBijector(tfp.bijectors.Bijector):
    """Base of all flow layers; see the top of the file."""

    def __init__(self, name):
        super().__init__(forward_min_event_ndims=2, name=name)

    @abc.abstractmethod
    def forward_rows(self, x, at):
        """One layer in the density direction.

        Args:
          x: `[B * T, D]` float32 or float64.
          at: `Conditions`.
        Returns:
          `[B * T, D]`, and the log-det `[B]`, or a plain 0.0 where there is none.
        """

    @abc.abstractmethod
    def inverse_rows(self, y, at):
        """The other direction; its log-det is that of the inverse map."""

    def initialise_rows(self, x, at, over_padding=False):
        """Sets what is set from data, given rows `x` that come in; returns the rows that go out.

        Args:
          over_padding: let padding count in means and deviations, as the published implementation does.
        """
        return self.forward_rows(x, at)[0]

    def initialise(self, x, mask=None, memory=None, seed=None, over_padding=False):
        """Data-dependent initialisation, called once and by name; `[B, T, D]` in, `[B, T, D]` out."""
        at = _conditions(x, mask, memory, seed)
        return at.rows.padded(self.initialise_rows(at.rows.flat(x), at, over_padding))

    def forward_and_log_det(self, x, mask=None, memory=None, seed=None):
        """`forward(x)` and its log-det `[B]` at the price of one."""
        return self._both(self.forward_rows, x, mask, memory, seed)

    def inverse_and_log_det(self, y, mask=None, memory=None, seed=None):
        """`inverse(y)` and its log-det `[B]` at the price of one."""
        return self._both(self.inverse_rows, y, mask, memory, seed)

    def _both(self, direction, x, mask, memory, seed):
        at = _conditions(x, mask, memory, seed)
        y, log_det = direction(at.rows.flat(x), at)
        return at.rows.padded(y), log_det + tf.zeros([at.rows.batch], x.dtype)

    def _forward(self, x, mask=None, memory=None, seed=None):
        return self.forward_and_log_det(x, mask, memory, seed)[0]

    def _inverse(self, y, mask=None, memory=None, seed=None):
        return self.inverse_and_log_det(y, mask, memory, seed)[0]

    def _forward_log_det_jacobian(self, x, mask=None, memory=None, seed=None):
        return self.forward_and_log_det(x, mask, memory, seed)[1]

    def _inverse_log_det_jacobian(self, y, mask=None, memory=None, seed=None):
        return self.inverse_and_log_det(y, mask, memory, seed)[1]


def _conditions(x, mask, memory, seed):
    if mask is None:
        mask = tf.ones(tf.shape(x)[:2], tf.bool)
    return Conditions(Rows(mask), memory, seed)
