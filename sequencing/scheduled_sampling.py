"""Scheduled sampling: what a decoder is fed in training, part reference, part its own choices.

The choices are found first, without gradient; then the mixed sequence is read as a whole, as any target is. A choice
has no gradient anyway, so this is the loss and the gradient of a decoder that is fed step by step.

A decoder chooses without dropout, as it does in search; the source that it reads is the update's, dropout included.
A recurrent decoder chooses after what it was fed so far. Other decoders would have to be walked step by step for that:
they choose after the reference alone, in one more pass over the whole target.
Reference: Mihaylova and Martins, 2019, https://aclanthology.org/P19-2049
"""

import tensorflow as tf

from sequencing.dynamic_decode import dynamic_decode
from sequencing.feedback import TrainingFeedBack, choose_tokens, taught


def teacher_rate(config, step):
    """The chance of the reference token, a scalar float32.

    Args:
      config: `SamplingConfig`.
      step: scalar int, updates done.
    """
    done = tf.cast(tf.maximum(step - config.begin_step, 0), tf.float32) / float(config.decay_steps)
    share = {
        'constant': lambda: tf.ones([]),
        'linear': lambda: tf.maximum(1.0 - done, 0.0),
        'exponential': lambda: tf.exp(-done),
        'inverse_sigmoid': lambda: config.decay_steps / (config.decay_steps + tf.exp(done)),
    }[config.schedule]()
    least = config.teacher_rate if config.schedule == 'constant' else config.least_rate
    return least + (config.teacher_rate - least) * share


def mixed_inputs(model, encoded, batch, rate, seed, choice='argmax'):
    """What the decoder is fed.

    Args:
      model: `Seq2Seq`; encoded: its `EncoderOutput` of the batch.
      batch: `Batch`; rate: scalar float32.
      seed: `[2]` int32 that changes every update; what is drawn is keyed by it, the example and the place.
      choice: 'argmax' or 'sample'.
    Returns:
      `[B, T]` int32: BOS, then reference tokens or chosen ones; without gradient.
    """

    def mixed():
        if not model.decoder.recurrent:
            return _after_the_reference(model, encoded, batch, rate, seed, choice)
        decoder, steps = model.decoder, tf.shape(batch.trg_ids)[1]
        memory, state = decoder.memory(encoded), decoder.initial_state(encoded, 1, steps)
        feedback = TrainingFeedBack(batch.trg_ids, model.bos_id, rate, seed, batch.index, choice)
        return dynamic_decode(model, feedback, state, memory)

    return tf.cond(rate < 1.0, mixed, lambda: model.inputs(batch.trg_ids))


def _after_the_reference(model, encoded, batch, rate, seed, choice):
    features, _ = model.read(encoded, model.inputs(batch.trg_ids), batch.trg_mask)
    places = tf.where(batch.trg_mask)  # logits are made for real tokens only
    logits = model.logits(tf.gather_nd(features, places))
    steps = tf.range(tf.shape(batch.trg_ids)[1])[tf.newaxis]
    index = batch.index[:, tf.newaxis] + tf.zeros_like(steps, tf.int64)
    keys = tf.gather_nd(index, places), tf.cast(places[:, 1], tf.int32)
    own = choose_tokens(logits, choice, *tf.unstack(seed), *keys)
    own = tf.tensor_scatter_nd_update(batch.trg_ids, places, own)
    return model.inputs(tf.where(taught(rate, *tf.unstack(seed), index, steps), batch.trg_ids, own))
