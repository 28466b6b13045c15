"""Keras optimizers with the update in one fused operation, and the course of the learning rate."""

import keras
import tensorflow as tf

from sequencing.distribution import tf_variable


class InEveryReplica:
    """A Keras optimizer that takes gradients as they are, summed over replicas already, checked and clipped, and whose
    replicas each move their own copies of the variables.

    Keras would add gradients up once more, and have the replicas walk through the variables together, which costs more
    to trace the more variables there are: a deep flow has thousands. So what is common to all is computed once, too.
    """

    def apply_where(self, chosen, gradients, variables):
        """An update where `chosen`, scalar bool, holds; otherwise nothing moves.

        There is no branch: its thousands of variables would take longer to trace than all else. Instead the rates are
        such that nothing moves, and gradients are zero.

        Args:
          gradients: dense tensors; finite if `chosen`, otherwise zero.
          variables: those that the optimizer was built on, or some of them.
        """
        numbers = self._numbers(chosen, tf.where(chosen, tf.cast(self.learning_rate, tf.float32), 0.0))
        for gradient, variable in zip(gradients, map(tf_variable, variables), strict=True):
            self._move(variable, tf.cast(gradient, tf.float32), *numbers)
        if self.use_ema:
            self._update_averages(chosen, self._trainable_variables)
        self.iterations.assign_add(tf.cast(chosen, self.iterations.dtype))

    def apply(self, grads, trainable_variables=None):
        """As Keras's."""
        self.apply_where(tf.constant(True), grads, trainable_variables or self._trainable_variables)

    def _numbers(self, chosen, rate):
        """What `_move` needs beside a variable and its gradient, the same for all variables."""
        return (rate,)

    def _update_averages(self, chosen, variables):
        kept = tf.where(self.iterations.value > 0, self.ema_momentum, 0.0)  # the first average is what there is
        kept = tf.where(chosen, kept, 1.0)
        for variable, average in zip(variables, self._model_variables_moving_average):
            average.assign(kept * average.value + (1.0 - kept) * variable)


class SGD(InEveryReplica, keras.optimizers.SGD):
    """Keras's, without momentum."""

    def _move(self, variable, gradient, rate):
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)


class FusedAdam(InEveryReplica, keras.optimizers.Adam):
    """Adam and AdamW whose update is one TensorFlow kernel a variable, and one for decay: three to four times as fast
    on CPUs.

    State, options and formulas are those of Keras (Kingma and Ba, 2015, end of section 2; AMSGrad: Reddi et al., 2018;
    decoupled weight decay: Loshchilov and Hutter, 2019).
    """

    def _numbers(self, chosen, rate):
        step = tf.cast(self.iterations.value + 1, tf.float32)
        numbers = {  # made once and not anew for each variable
            'lr': rate,
            'beta1_power': self.beta_1**step,
            'beta2_power': self.beta_2**step,
            'beta1': tf.where(chosen, self.beta_1, 1.0),
            'beta2': tf.where(chosen, self.beta_2, 1.0),
            'epsilon': tf.constant(self.epsilon, tf.float32),
        }
        return numbers, rate * (self.weight_decay or 0.0)

    def _apply_weight_decay(self, variables):
        """Nothing: it is part of `_move`."""

    def _move(self, variable, gradient, numbers, decay):
        if self.weight_decay and self._use_weight_decay(variable):
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=decay, delta=variable)
        place = self._get_variable_index(variable)
        slots = {'m': self._momentums[place].value.handle, 'v': self._velocities[place].value.handle}
        if self.amsgrad:
            vhat = self._velocity_hats[place].value.handle
            tf.raw_ops.ResourceApplyAdamWithAmsgrad(var=variable.handle, **slots, vhat=vhat, grad=gradient, **numbers)
        else:
            tf.raw_ops.ResourceApplyAdam(var=variable.handle, **slots, grad=gradient, **numbers)


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to the peak, from 0 or the share `warmup_from` of it, then a course.

    With i updates done and W of warm-up:
        constant      peak
        inverse_sqrt  peak * sqrt(W / i)          (Vaswani et al., 2017)
        cosine        peak * (1 + cos(pi * p)) / 2, p the share of decay_steps that has passed since warm-up
        exponential   peak * decay_rate ** ((i - W) / decay_steps)

    Args:
      train: `TrainConfig`.
      warmup_steps, steps: of the phase, where training has several; those of the configuration by default.
      rate: share of the configured peak.
    """

    def __init__(self, train, warmup_steps=None, steps=None, rate=1.0):
        self.train, self.rate = train, rate
        self.warmup_steps = train.warmup_steps if warmup_steps is None else warmup_steps
        self.decay_steps = train.decay_steps or max((steps or train.max_steps) - self.warmup_steps, 1)

    def __call__(self, step):
        train = self.train
        done = tf.cast(step, tf.float32)
        warmup = float(max(self.warmup_steps, 1))
        since = tf.maximum(done - self.warmup_steps, 0.0) / self.decay_steps
        if train.schedule == 'inverse_sqrt':
            factor = tf.sqrt(warmup / tf.maximum(done, warmup))
        elif train.schedule == 'cosine':
            factor = (1.0 + tf.cos(3.14159265 * tf.minimum(since, 1.0))) / 2.0
        elif train.schedule == 'exponential':
            factor = train.decay_rate**since
        else:
            factor = 1.0
        rising = train.warmup_from + (1.0 - train.warmup_from) * (done + 1.0) / warmup
        return self.rate * train.learning_rate * tf.where(done < self.warmup_steps, rising, factor)

    def get_config(self):
        steps = self.decay_steps + self.warmup_steps
        return {'train': self.train, 'warmup_steps': self.warmup_steps, 'steps': steps, 'rate': self.rate}


def early_end(train, phases):
    """The first update whose rate is 0 though its phase goes on, counted from 0; None where there is no such update.

    Args:
      train: `TrainConfig`; phases: of the objective, each with a course of the rate of its own.
    """
    if train.schedule != 'cosine' or not train.decay_steps:
        return None
    ends = ((phase, phase.warmup_steps + train.decay_steps) for phase in phases)
    return min((phase.first + end for phase, end in ends if end < phase.steps), default=None)


def build_optimizer(train):
    """The optimizer of a `TrainConfig`. Clipping is not its business: it belongs after gradients are summed."""
    rate = LearningRate(train)
    ema = {'use_ema': True, 'ema_momentum': train.ema} if train.ema else {}
    if train.optimizer == 'sgd':
        return SGD(rate, **ema)
    decay = train.weight_decay if train.optimizer == 'adamw' and train.weight_decay else None
    return FusedAdam(rate, weight_decay=decay, beta_1=train.beta_1, beta_2=train.beta_2, epsilon=train.epsilon,
                     amsgrad=train.amsgrad, **ema)  # fmt: skip
