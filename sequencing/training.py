"""One update: losses and gradients of some batches, summed, checked, clipped, applied."""

import types

import numpy as np
import tensorflow as tf

from sequencing.structures import Batch, LossParts

BATCH_SIGNATURE = Batch(
    src_ids=tf.TensorSpec([None, None], tf.int32),
    src_mask=tf.TensorSpec([None, None], tf.bool),
    trg_ids=tf.TensorSpec([None, None], tf.int32),
    trg_mask=tf.TensorSpec([None, None], tf.bool),
    index=tf.TensorSpec([None], tf.int64),
)


FIRST_LOSS_SCALE = 2.0**15
_SCALE_PATIENCE = 2000  # finite updates in a row after which the loss scale doubles


class TrainingState(tf.Module):
    """Everything that has to survive a restart, beside weights and optimizer; saved in every checkpoint.

    Args:
      position_size: numbers that make a position in the data.
      parts: names of the sums that a loss gives.
    """

    def __init__(self, position_size, parts=LossParts._fields):
        super().__init__(name='training_state')
        self.fields = (*parts, 'updates', 'gradient_norm')
        self.step = tf.Variable(0, dtype=tf.int64, name='step')
        self.position = tf.Variable(np.zeros(position_size, np.int64), name='position')  # in the data
        self.best_score = tf.Variable(-np.inf, dtype=tf.float64, name='best_score')
        self.best_step = tf.Variable(0, dtype=tf.int64, name='best_step')
        self.validated_step = tf.Variable(0, dtype=tf.int64, name='validated_step')  # the last one
        self.rounds_without_gain = tf.Variable(0, dtype=tf.int64, name='rounds_without_gain')
        self.skipped = tf.Variable(0, dtype=tf.int64, name='skipped')  # updates, for non-finite gradients
        self.skipped_in_a_row = tf.Variable(0, dtype=tf.int64, name='skipped_in_a_row')
        self.phases_begun = tf.Variable(0, dtype=tf.int64, name='phases_begun')
        self.warm = tf.Variable(False, name='warm')  # every weight comes from another model: none is set from data
        self.loss_scale = tf.Variable(FIRST_LOSS_SCALE, dtype=tf.float32, name='loss_scale')  # float16 only
        self.finite_in_a_row = tf.Variable(0, dtype=tf.int64, name='finite_in_a_row')  # at this loss scale
        self.totals = tf.Variable(np.zeros(len(self.fields)), dtype=tf.float64, name='totals')

    def read_totals(self):
        """The sums since they were last taken, as numbers under the names of `parts`, `updates`, `gradient_norm`."""
        return types.SimpleNamespace(**dict(zip(self.fields, self.totals.numpy().tolist())))

    def take_totals(self):
        """As `read_totals`, and begins anew."""
        totals = self.read_totals()
        self.totals.assign(tf.zeros_like(self.totals))
        return totals


class Updater(tf.Module):
    """Turns batches into updates.

    The gradient of an update is that of the summed loss of all its batches, divided by their real target tokens, or by
    their sentences: how they were cut into batches makes no difference. An update with a non-finite gradient is skipped
    and counted. In float16 the loss is scaled up so that small gradients survive (Micikevicius et al., 2018); the scale
    halves when they overflow and doubles after 2000 updates without.

    Args:
      model: has `loss(batch, seed) -> LossParts` and `trainable_variables`.
      optimizer: a Keras optimizer, already built on those variables.
      state: `TrainingState`.
      train: `TrainConfig`; seed: of dropout.
      loss: called with batch, seed and the number of updates done, in place of `model.loss`; gives a NamedTuple of sums
        that begins like `LossParts`.
      variables: those that are trained, in place of all of the model's.
      scale_loss: for float16.
    """

    def __init__(self, model, optimizer, state, train, seed, loss=None, variables=None, scale_loss=False):
        super().__init__(name='updater')
        self.loss = loss or (lambda batch, seed, step: model.loss(batch, seed))
        self.optimizer, self.state, self.scale_loss = optimizer, state, scale_loss
        self.clip_norm, self.accumulate, self.seed = train.clip_norm, train.accumulate, seed
        self.divisor = LossParts._fields.index(train.loss_unit)
        self.variables_to_train = variables or model.trainable_variables
        if train.accumulate > 1:
            self.sums = [tf.Variable(tf.zeros_like(v), trainable=False) for v in self.variables_to_train]
            self.counts = tf.Variable(tf.zeros([len(state.fields) - 2]), trainable=False)
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
        """Gradients of the summed loss as dense tensors, and the sums as the loss gives them."""
        seed = tf.cast(tf.stack([tf.constant(self.seed, tf.int64), self.state.step * self.accumulate + part]), tf.int32)
        with tf.GradientTape() as tape:
            parts = self.loss(batch, seed, self.state.step)
            minimised = parts.loss * self.state.loss_scale if self.scale_loss else parts.loss
        gradients = tape.gradient(minimised, self.variables_to_train, unconnected_gradients='zero')
        # Dense, because the norm of a sparse gradient would count repeated rows apart.
        return [tf.convert_to_tensor(gradient) for gradient in gradients], parts

    def _update_once(self, batch, part):
        gradients, parts = self.gradients(batch, part)
        self._apply(gradients, _flat(parts))

    def _add_one(self, batch, part):
        gradients, parts = self.gradients(batch, part)
        for total, gradient in zip(self.sums, gradients):
            total.assign_add(gradient)
        self.counts.assign_add(_flat(parts))

    def _apply_sums(self):
        self._apply([tf.identity(total) for total in self.sums], tf.identity(self.counts))
        for total in [*self.sums, self.counts]:
            total.assign(tf.zeros_like(total))

    def _apply(self, gradients, parts):
        """Divides, checks, clips and applies summed gradients; `parts` are the sums in one tensor."""
        state = self.state
        scale = 1.0 / parts[self.divisor]
        if self.scale_loss:
            scale /= state.loss_scale
        norm = tf.linalg.global_norm(gradients) * scale
        finite = tf.logical_and(tf.math.is_finite(norm), tf.math.is_finite(parts[0]))
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
        if self.scale_loss:
            self._adapt_scale(finite)
        state.step.assign_add(1)

    def _adapt_scale(self, finite):
        state = self.state
        row = tf.where(finite, state.finite_in_a_row + 1, 0)
        grows = row >= _SCALE_PATIENCE
        factor = tf.where(grows, 2.0, tf.where(finite, 1.0, 0.5))
        state.loss_scale.assign(tf.clip_by_value(state.loss_scale * factor, 1.0, 2.0**24))
        state.finite_in_a_row.assign(tf.where(grows, tf.zeros_like(row), row))


def _flat(parts):
    """A NamedTuple of scalars and vectors as one vector."""
    return tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)


def reset(optimizer):
    """Forgets what an optimizer gathered: it is as new."""
    for variable in optimizer.variables:
        variable.assign(tf.zeros_like(variable))


def exchange_with_averages(optimizer, variables):
    """Swaps weights and their moving averages; called twice it leaves everything as it was."""
    for variable, average in zip(variables, optimizer._model_variables_moving_average):
        weights = tf.identity(variable)
        variable.assign(average.value)
        average.value.assign(weights)
