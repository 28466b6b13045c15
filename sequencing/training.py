"""One update: losses and gradients of some batches, summed, checked, clipped, applied."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sequencing.structures import Batch

BATCH_SIGNATURE = Batch(
    src_ids=tf.TensorSpec([None, None], tf.int32),
    src_mask=tf.TensorSpec([None, None], tf.bool),
    trg_ids=tf.TensorSpec([None, None], tf.int32),
    trg_mask=tf.TensorSpec([None, None], tf.bool),
    index=tf.TensorSpec([None], tf.int64),
)


class Totals(NamedTuple):
    """Sums since the last progress line, as plain numbers."""

    loss: float
    nll: float
    tokens: float
    sentences: float
    updates: float
    gradient_norm: float


class TrainingState(tf.Module):
    """Everything that has to survive a restart, beside weights and optimizer; saved in every checkpoint."""

    def __init__(self, position_size):
        super().__init__(name='training_state')
        self.step = tf.Variable(0, dtype=tf.int64, name='step')
        self.position = tf.Variable(np.zeros(position_size, np.int64), name='position')  # in the data
        self.best_score = tf.Variable(-np.inf, dtype=tf.float64, name='best_score')
        self.best_step = tf.Variable(0, dtype=tf.int64, name='best_step')
        self.validated_step = tf.Variable(0, dtype=tf.int64, name='validated_step')  # the last one
        self.rounds_without_gain = tf.Variable(0, dtype=tf.int64, name='rounds_without_gain')
        self.skipped = tf.Variable(0, dtype=tf.int64, name='skipped')  # updates, for non-finite gradients
        self.skipped_in_a_row = tf.Variable(0, dtype=tf.int64, name='skipped_in_a_row')
        self.totals = tf.Variable(np.zeros(len(Totals._fields)), dtype=tf.float64, name='totals')

    def take_totals(self):
        """The sums since they were last taken."""
        totals = Totals(*self.totals.numpy().tolist())
        self.totals.assign(tf.zeros_like(self.totals))
        return totals


class Updater(tf.Module):
    """Turns batches into updates.

    The gradient of an update is that of the summed loss of all its batches, divided by their real target tokens: how
    they were cut into batches makes no difference. An update with a non-finite gradient is skipped and counted.

    Args:
      model: has `loss(batch, seed) -> LossParts` and `trainable_variables`.
      optimizer: a Keras optimizer, already built on those variables.
      state: `TrainingState`.
      train: `TrainConfig`; seed: of dropout.
    """

    def __init__(self, model, optimizer, state, train, seed):
        super().__init__(name='updater')
        self.model, self.optimizer, self.state = model, optimizer, state
        self.clip_norm, self.accumulate, self.seed = train.clip_norm, train.accumulate, seed
        self.variables_to_train = model.trainable_variables
        if train.accumulate > 1:
            self.sums = [tf.Variable(tf.zeros_like(v), trainable=False) for v in self.variables_to_train]
            self.counts = tf.Variable(tf.zeros([4]), trainable=False)
        signature = [BATCH_SIGNATURE, tf.TensorSpec([], tf.int64)]
        self._update = tf.function(self._update_once, input_signature=signature, autograph=False)
        self._add = tf.function(self._add_one, input_signature=signature, autograph=False)
        self._finish = tf.function(self._apply_sums, input_signature=[], autograph=False)

    def __call__(self, batches):
        """Makes one update from `accumulate` batches."""
        if self.accumulate == 1:
            self._update(batches[0], 0)
            return
        for i, batch in enumerate(batches):
            self._add(batch, i)
        self._finish()

    def gradients(self, batch, part):
        """Gradients of the summed loss as dense tensors, and the `LossParts`."""
        seed = tf.cast(tf.stack([tf.constant(self.seed, tf.int64), self.state.step * self.accumulate + part]), tf.int32)
        with tf.GradientTape() as tape:
            parts = self.model.loss(batch, seed)
        gradients = tape.gradient(parts.loss, self.variables_to_train, unconnected_gradients='zero')
        # Dense, because the norm of a sparse gradient would count repeated rows apart.
        return [tf.convert_to_tensor(gradient) for gradient in gradients], parts

    def _update_once(self, batch, part):
        gradients, parts = self.gradients(batch, part)
        self._apply(gradients, tf.stack(parts))

    def _add_one(self, batch, part):
        gradients, parts = self.gradients(batch, part)
        for total, gradient in zip(self.sums, gradients):
            total.assign_add(gradient)
        self.counts.assign_add(tf.stack(parts))

    def _apply_sums(self):
        self._apply([tf.identity(total) for total in self.sums], tf.identity(self.counts))
        for total in [*self.sums, self.counts]:
            total.assign(tf.zeros_like(total))

    def _apply(self, gradients, parts):
        """Divides, checks, clips and applies summed gradients; `parts` is a stacked `LossParts`."""
        state = self.state
        norm = tf.linalg.global_norm(gradients) / parts[2]
        finite = tf.logical_and(tf.math.is_finite(norm), tf.math.is_finite(parts[0]))
        scale = 1.0 / parts[2]
        if self.clip_norm:
            scale *= tf.minimum(1.0, self.clip_norm / tf.maximum(norm, 1e-12))

        def update():
            self.optimizer.apply([gradient * scale for gradient in gradients], self.variables_to_train)
            sums = tf.concat([parts, [1.0, norm]], axis=0)
            state.totals.assign_add(tf.cast(sums, tf.float64))
            state.skipped_in_a_row.assign(0)
            return tf.constant(0)

        def skip():
            state.skipped.assign_add(1)
            state.skipped_in_a_row.assign_add(1)
            return tf.constant(0)

        tf.cond(finite, update, skip)
        state.step.assign_add(1)


def exchange_with_averages(optimizer, variables):
    """Swaps weights and their moving averages; called twice it leaves everything as it was."""
    for variable, average in zip(variables, optimizer._model_variables_moving_average):
        weights = tf.identity(variable)
        variable.assign(average.value)
        average.value.assign(weights)
