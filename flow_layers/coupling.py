"""Couplings: one part of the latent is changed, with parameters that a network reads off the other part."""

import tensorflow as tf

from flow_layers.bijector import SequenceBijector
from flow_layers.one_trace import OneTrace, structure, traces_apart
from sequencing.blocks import choose_rows


class FeatureSplit:
    """Cuts the channels of every step in two; one part conditions, the other changes.

    Args:
      depth: channels D.
      order: 'up' changes the second part, 'down' the first.
      factor: D // factor channels change.
      interleaved: parts are the even and the odd channels instead of the first and the last.
    """

    def __init__(self, depth, order, factor=2, interleaved=False):
        _check_order(order)
        if not 2 <= factor <= depth or interleaved and (factor != 2 or depth % 2):
            raise ValueError(f'{depth} channels cannot be split by {factor}, interleaved={interleaved}')
        self.order, self.interleaved = order, interleaved
        self.changed_size = depth // factor
        self.condition_size = depth - self.changed_size

    def divide(self, x, at):
        """Flat rows to (what conditions, its `Conditions`, what changes, its `Conditions`)."""
        if self.interleaved:  # slices with a stride take a third longer on CPUs, both ways together
            parts = tf.unstack(tf.reshape(x, [-1, self.changed_size, 2]), axis=2)
        else:
            sizes = [self.condition_size, self.changed_size]
            parts = tf.split(x, sizes if self.order == 'up' else sizes[::-1], axis=1)
        condition, changed = parts if self.order == 'up' else parts[::-1]
        return condition, at, changed, at

    def join(self, condition, changed, at):
        """The inverse of `divide`."""
        parts = (condition, changed) if self.order == 'up' else (changed, condition)
        if self.interleaved:
            return tf.reshape(tf.stack(parts, axis=2), [-1, self.condition_size + self.changed_size])
        return tf.concat(parts, axis=1)


class TimeSplit:
    """Cuts the steps in two, even and odd; T has to be even.

    Args:
      depth: channels D.
      order: 'up' changes the odd steps, 'down' the even ones.
    """

    def __init__(self, depth, order):
        _check_order(order)
        self.order, self.depth = order, depth
        self.changed_size = self.condition_size = depth

    def divide(self, x, at):
        if isinstance(at.rows.time, int) and at.rows.time % 2:
            raise ValueError(f'steps are coupled in pairs: T has to be even; got {at.rows.time}')
        even, odd = tf.unstack(tf.reshape(x, [-1, 2, self.depth]), axis=1)
        even, odd = (even, at.even()), (odd, at.odd())
        return (*even, *odd) if self.order == 'up' else (*odd, *even)

    def join(self, condition, changed, at):
        parts = (condition, changed) if self.order == 'up' else (changed, condition)
        return tf.reshape(tf.stack(parts, axis=1), [-1, self.depth])


def _check_order(order):
    if order not in ('up', 'down'):
        raise ValueError(f"order is 'up' or 'down'; got {order!r}")


class Coupling(SequenceBijector):
    """Changes one part of the latent, element by element; the other part passes and says how.

        forward: y_changed = transform(x_changed, p), y_condition = x_condition
        inverse: x_changed = transform^-1(y_changed, p)
            with p = conditioner(x_condition, source)
        log-det: the sum over real elements of log|d transform / d x_changed|

    A sentence with no real step in its conditioning part (one step, coupled in time) is left as it is.
    Reference: Dinh et al., 2017, https://arxiv.org/abs/1605.08803

    Args:
      split: `FeatureSplit` or `TimeSplit`.
      transform: `Transform`.
      conditioner: `Conditioner`, `(x [N, split.condition_size], Conditions) -> [N, transform.parameters *
        split.changed_size]`, N rows of the conditioning part.
    """

    def __init__(self, split, transform, conditioner, name='coupling'):
        super().__init__(name)
        self.split, self.transform, self.conditioner = split, transform, conditioner

    def forward_rows(self, x, at):
        return self._change('forward', x, at)

    def inverse_rows(self, y, at):
        return self._change('inverse', y, at)

    def _change(self, direction, x, at):
        condition, condition_at, old, old_at = self.split.divide(x, at)
        if not traces_apart():
            new, log_det = self._changed(direction, condition, condition_at, old, old_at)
        else:
            key = direction, structure([self.transform, self.conditioner]), old_at
            trace = condition_at.rows.kept(key, lambda: self._trace(direction, condition_at, old_at))
            new, log_det = trace(self.conditioner, condition, old)
        return self.split.join(condition, new, at), log_det

    def _trace(self, direction, condition_at, old_at):
        """`_changed` for all couplings like this one, under the same conditions."""

        def changed(condition, old):
            return self._changed(direction, condition, condition_at, old, old_at)

        return OneTrace(self.conditioner, changed)

    def _changed(self, direction, condition, condition_at, old, old_at):
        """What changes, afterwards, and the log-det `[B]`."""
        parameters = self.conditioner(condition_at.rows.only_real(condition), condition_at)
        real = _changing(condition_at, old_at)
        # 0 at padding, whatever is there: no infinity that a choice would hide but its gradient would not. Parameters
        # are finite there, for the conditioner sees only what is real.
        within = choose_rows(real, old, tf.zeros_like(old))
        new, log_slope = getattr(self.transform, direction)(within, tf.cast(parameters, old.dtype))
        log_det = tf.zeros([], old.dtype)
        if log_slope is not None:  # a row's sum first: there is less to choose from
            sums = tf.where(real, tf.reduce_sum(log_slope, axis=1, keepdims=True), tf.zeros([], old.dtype))
            log_det = tf.reduce_sum(tf.reshape(sums, [old_at.rows.batch, -1]), axis=1)
        return choose_rows(real, new, old), log_det

    def initialise_rows(self, x, at, over_padding=False):
        condition, condition_at, _, _ = self.split.divide(x, at)
        self.conditioner.initialise(condition_at.rows.only_real(condition), condition_at, over_padding)
        return self.forward_rows(x, at)[0]


def _changing(condition_at, changed_at):
    """The rows that change, `[N, 1]` bool."""
    if condition_at is changed_at:
        return changed_at.rows.real

    def make():
        conditioned = tf.reduce_any(condition_at.rows.mask, axis=1, keepdims=True)
        return tf.reshape(changed_at.rows.mask & conditioned, [-1, 1])

    return changed_at.rows.kept('changing', make)
