"""The one loop over a decoder and a feedback."""

import tensorflow as tf


def dynamic_decode(model, feedback, state, memory):
    """Walks a model until its feedback is content.

    Args:
      model: has `step(ids [B, W], state, memory, time) -> (logits [B, W, N], state, weights [B, W, S])` and
        `reorder(state, parents [B, W])`.
      feedback: chooses what is fed; see `feedback.py`.
      state: the model's state before the first step, a nest of `[B, W, ...]`.
      memory: what the model's steps read of the source, a nest of `[B, ...]`.
    Returns:
      `feedback.finalize` of what happened.
    """
    ids, chosen = feedback.initialize()

    def body(time, ids, state, chosen):
        logits, state, weights = model.step(ids, state, memory, time)
        ids, parents, chosen = feedback.next(time, logits, weights, chosen)
        if parents is not None:
            state = model.reorder(state, parents)
        return time + 1, tf.ensure_shape(ids, [None, feedback.width]), state, chosen

    time, _, _, chosen = tf.while_loop(
        lambda time, ids, state, chosen: tf.logical_not(feedback.done(time, chosen)),
        body,
        (tf.constant(0), ids, state, chosen),
    )
    return feedback.finalize(time, chosen)
