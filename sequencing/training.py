"""One update: losses and gradients of some batches, summed, checked, clipped, applied."""

import contextlib
import types

import numpy as np
import tensorflow as tf

from sequencing.distribution import Distribution, StopVotes, tf_variable
from sequencing.structures import Batch, LossParts

BATCH_SIGNATURE = Batch(
    src_ids=tf.TensorSpec([None, None], tf.int32),
    src_mask=tf.TensorSpec([None, None], tf.bool),
    trg_ids=tf.TensorSpec([None, None], tf.int32),
    trg_mask=tf.TensorSpec([None, None], tf.bool),
    index=tf.TensorSpec([None], tf.int64),
)


FIRST_LOSS_SCALE = 2.0**15
_MANY_OPERATIONS = 15000  # of an update on one device, which Grappler takes longer to rewrite than it is worth
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
    their sentences: how they were cut into batches, and these into the shares of replicas, makes no difference. Every
    replica gathers its own gradients; they are added up over all replicas once an update, and only then looked at. An
    update with a non-finite gradient is skipped and counted. In float16 the loss is scaled up so that small gradients
    survive (Micikevicius et al., 2018); the scale halves when they overflow and doubles after 2000 updates without.

    Args:
      model: has `loss(batch, seed) -> LossParts` and `trainable_variables`.
      optimizer: from `optimizers.build_optimizer`, already built on those variables.
      state: `TrainingState`.
      train: `TrainConfig`; seed: of dropout.
      loss: called with batch, seed and the number of updates done, in place of `model.loss`; gives a NamedTuple of sums
        that begins like `LossParts`.
      variables: those that are trained, in place of all of the model's.
      scale_loss: for float16.
      distribution: `Distribution` that model and optimizer were made in; one device by default.
    """

    def __init__(self, model, optimizer, state, train, seed, loss=None, variables=None, scale_loss=False,
                 distribution=None):  # fmt: skip
        super().__init__(name='updater')
        self.loss = loss or (lambda batch, seed, step: model.loss(batch, seed))
        self.optimizer, self.state, self.scale_loss = optimizer, state, scale_loss
        self.clip_norm, self.accumulate, self.seed = train.clip_norm, train.accumulate, seed
        self.divisor = LossParts._fields.index(train.divisor)
        self.variables_to_train = variables or model.trainable_variables
        self.distribution = distribution or Distribution()
        self.count_size = len(state.fields) - 2
        self._deep = {}  # by name of a function, once it is traced
        if train.accumulate > 1:
            with self.distribution.scope():
                self.sums = [_sum_in_each_replica(v.shape, v.dtype) for v in self.variables_to_train]
                self.counts = _sum_in_each_replica([self.count_size])
        shares = (BATCH_SIGNATURE,) * self.distribution.replicas.local
        votes = tf.TensorSpec([len(StopVotes._fields)], tf.float32)
        self._update = tf.function(self._update_once, input_signature=[shares, votes], autograph=False)
        signature = [shares, tf.TensorSpec([], tf.int64)]
        self._add = tf.function(self._add_one, input_signature=signature, autograph=False)
        self._finish = tf.function(self._apply_sums, input_signature=[votes], autograph=False)

    def __call__(self, batches, votes=None):
        """Makes one update.

        Args:
          batches: `accumulate` of them, each a `Batch`, or a tuple with one for every replica of this worker.
          votes: `StopVotes` of this worker.
        Returns:
          float32 vector, the `StopVotes` of all workers added up.
        """
        batches = [(batch,) if isinstance(batch, Batch) else tuple(batch) for batch in batches]
        votes = tf.constant(np.array(votes or StopVotes(), np.float32))
        if self.accumulate == 1:
            return self._run('_update', batches[0], votes)
        for i, shares in enumerate(batches):
            self._run('_add', shares, i)
        return self._run('_finish', votes)

    def _run(self, name, *given):
        """Calls a function of this object; one with very many operations without having its graph rewritten first.

        TensorFlow's rewriting (Grappler) takes minutes for the graph of a deep flow, and finds little there: what is
        worth it is in the functions that couplings share, which are rewritten each on its own.
        """
        function = getattr(self, name)
        if tf.config.functions_run_eagerly():
            return function(*given)
        if name not in self._deep:  # traced here, and the functions inside, which are so rewritten
            operations = len(function.get_concrete_function().graph.get_operations())
            self._deep[name] = operations > _MANY_OPERATIONS * self.distribution.replicas.local
        with as_traced() if self._deep[name] else contextlib.nullcontext():
            return function(*given)

    def gradients(self, batch, part):
        """Gradients of the summed loss as dense tensors, and the sums as the loss gives them.

        Args:
          batch: `Batch`; part: scalar int64, its number among the batches of this update, counted over all replicas.
        """
        many = self.accumulate * self.distribution.replicas.total
        seed = tf.cast(tf.stack([tf.constant(self.seed, tf.int64), self.state.step * many + part]), tf.int32)
        with tf.GradientTape() as tape:
            parts = self.loss(batch, seed, self.state.step)
            if self.distribution.replicas.total > 1:  # a replica may have got a stand-in, which counts for nothing
                real = tf.reduce_all(batch.index >= 0)
                parts = type(parts)(*[tf.where(real, x, tf.zeros_like(x)) for x in parts])
            minimised = parts.loss * self.state.loss_scale if self.scale_loss else parts.loss
        gradients = tape.gradient(minimised, self.variables_to_train, unconnected_gradients='zero')
        # Dense, because the norm of a sparse gradient would count repeated rows apart.
        return [tf.convert_to_tensor(gradient) for gradient in gradients], parts

    def _update_once(self, shares, votes):
        def in_replica():
            gradients, sums = self._of_this_replica(shares, 0)
            return self._reduced(gradients, sums, votes)

        return self._apply(*self.distribution.run(in_replica))

    def _add_one(self, shares, number):
        def in_replica():
            gradients, sums = self._of_this_replica(shares, number)
            for total, gradient in zip(self.sums, gradients):
                total.assign_add(gradient)
            self.counts.assign_add(sums)

        self.distribution.run(in_replica)

    def _apply_sums(self, votes):
        def in_replica():
            reduced = self._reduced([tf.identity(total) for total in self.sums], tf.identity(self.counts), votes)
            for total in [*self.sums, self.counts]:
                total.assign(tf.zeros_like(total))
            return reduced

        return self._apply(*self.distribution.run(in_replica))

    def _of_this_replica(self, shares, number):
        """Gradients and flat sums of the asking replica's share of batch `number` of an update."""
        replica, replicas = self.distribution.replica_id(), self.distribution.replicas
        gradients, sums = self.gradients(shares[replica - replicas.first], number * replicas.total + replica)
        return gradients, _flat(sums)

    def _reduced(self, gradients, sums, votes):
        """Adds up over all replicas: gradients, their global norm, and sums with the votes of all workers behind."""
        speaks = self.distribution.replica_id() == self.distribution.replicas.first  # for its worker
        counts = tf.concat([sums, votes if speaks else tf.zeros_like(votes)], axis=0)
        *gradients, counts = self.distribution.all_reduce_sum([*gradients, counts])
        return gradients, tf.linalg.global_norm(gradients), counts

    def _apply(self, gradients, norm, counts):
        """Divides, checks, clips and applies summed gradients; arguments as each replica has them from `_reduced`."""
        state, distribution = self.state, self.distribution
        norm, counts = distribution.local_copy(norm), distribution.local_copy(counts)
        parts, votes = counts[: self.count_size], counts[self.count_size :]
        scale = 1.0 / parts[self.divisor]
        if self.scale_loss:
            scale /= state.loss_scale
        norm *= scale
        finite = tf.logical_and(tf.math.is_finite(norm), tf.math.is_finite(parts[0]))
        if self.clip_norm:
            scale *= tf.minimum(1.0, self.clip_norm / tf.maximum(norm, 1e-12))
        scale = tf.where(finite, scale, 0.0)  # with which `multiply_no_nan` makes even NaN zero

        def apply(gradients):
            gradients = [tf.math.multiply_no_nan(gradient, scale) for gradient in gradients]
            self.optimizer.apply_where(finite, gradients, self.variables_to_train)

        distribution.run(apply, gradients)
        sums = tf.concat([parts, [1.0, norm]], axis=0)
        state.totals.assign_add(tf.cast(tf.where(finite, sums, tf.zeros_like(sums)), tf.float64))
        skipped = tf.cast(tf.logical_not(finite), tf.int64)
        state.skipped.assign_add(skipped)
        state.skipped_in_a_row.assign((state.skipped_in_a_row + 1) * skipped)
        if self.scale_loss:
            self._adapt_scale(finite)
        state.step.assign_add(1)
        return votes

    def _adapt_scale(self, finite):
        state = self.state
        row = tf.where(finite, state.finite_in_a_row + 1, 0)
        grows = row >= _SCALE_PATIENCE
        factor = tf.where(grows, 2.0, tf.where(finite, 1.0, 0.5))
        state.loss_scale.assign(tf.clip_by_value(state.loss_scale * factor, 1.0, 2.0**24))
        state.finite_in_a_row.assign(tf.where(grows, tf.zeros_like(row), row))


@contextlib.contextmanager
def as_traced():
    """Graphs that are called within are not rewritten; functions in them are, if they were traced outside.

    The option belongs to the process, so no other thread should make its first call meanwhile.
    """
    options = tf.config.optimizer
    before = options.get_experimental_options().get('disable_meta_optimizer', False)
    options.set_experimental_options({'disable_meta_optimizer': True})
    try:
        yield
    finally:
        options.set_experimental_options({'disable_meta_optimizer': before})


def _sum_in_each_replica(shape, dtype=tf.float32):
    """A variable that every replica adds to on its own."""
    return tf.Variable(tf.zeros(shape, dtype), trainable=False, synchronization=tf.VariableSynchronization.ON_READ,
                       aggregation=tf.VariableAggregation.SUM)  # fmt: skip


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
        variable.assign(tf_variable(average))
        tf_variable(average).assign(weights)
