"""What a training minimises: its phases, the loss in each, and what has to happen before a phase begins.

An objective gives `nmt_train.py` one view of every kind of model. Its losses are sums over a batch, so that batches,
accumulation steps and replicas add up before anything is divided; the first four are those of `LossParts`.
"""

from typing import NamedTuple

import tensorflow as tf

from sequencing.scheduled_sampling import mixed_inputs, teacher_rate
from sequencing.structures import LossParts


class Phase(NamedTuple):
    """A stretch of updates with one loss and one course of the learning rate."""

    name: str
    first: int  # update that it begins with
    steps: int  # how many updates it has
    warmup_steps: int  # over which the learning rate rises
    variables: list  # that it trains
    rate: float = 1.0  # the peak of its learning rate, as a share of the configured one


def phase_at(objective, update):
    """The phase that an update, counted from 0, belongs to."""
    return [phase for phase in objective.phases if phase.first <= update][-1]


class Likelihood:
    """Maximum likelihood of an autoregressive model, in one phase, with scheduled sampling where it is configured.

    Args:
      model: `Seq2Seq`; config: `Config`.
    """

    parts = LossParts._fields
    length_unit = 0  # see `build_inputs.build_parallel_inputs`
    nll_unit = 'tokens'  # the part that counts what `nll` sums over

    def __init__(self, model, config):
        self.model, self.seed = model, config.seed
        train = config.train
        self.sampling = train.sampling
        self.teaches = train.sampling.teacher_rate == 1 and train.sampling.schedule == 'constant'
        self.phases = [Phase('likelihood', 0, train.max_steps, train.warmup_steps, model.trainable_variables)]

    def begin(self, phase, inputs):
        """Prepares the model for `phase`, given `ParallelInputs`."""

    def loss(self, phase, batch, seed, step):
        """Sums over a batch, in nats.

        Args:
          phase: `Phase`; batch: `Batch`.
          seed: `[2]` int32 for dropout, different for every batch; None for nothing random, teacher forcing included.
          step: scalar int64, updates done so far in all phases.
        """
        if self.teaches or seed is None:
            return self.model.loss(batch, seed)
        rate = teacher_rate(self.sampling, step)
        # Choices belong to (seed, update, pair), however the pairs of an update are cut into batches and replicas.
        draws = tf.stack([tf.constant(self.seed, tf.int32), tf.cast(step, tf.int32)])
        return self.model.loss(batch, seed, mix=lambda *read: mixed_inputs(*read, rate, draws, self.sampling.choice))

    def validation_loss(self, phase, batch):
        """As `loss`, without dropout, after the reference alone."""
        return self.model.loss(batch)

    def translates(self, phase):
        """Whether the model can translate by itself in this phase; else it has `reconstruct`."""
        return True

    def report(self, phase, totals, step):
        """What there is to say beside loss and nll, name to number; most important first.

        Args:
          totals: has the sums since the last line under the names of `parts`; step: updates done.
        """
        return {} if self.teaches else {'teacher_rate': float(teacher_rate(self.sampling, max(step - 1, 0)))}
