"""The one loop over a decoder and a feedback."""

import tensorflow as tf


def dynamic_decode(model, feedback, state, memory):
    """Walks a model until its feedback is content.

    Sentences that have all they need leave the batch: whenever an eighth of those walked has ended, the others are
    gathered and walked on alone.

    Args:
      model: has `step(ids [B, W], state, memory, time) -> (logits [B, W, N], state, weights [B, W, S])` and
        `reorder(state, parents [B, W])`.
      feedback: chooses what is fed; see `feedback.py`. If `sentences_end`, its state has `finished`, a nest of
        `[B, ...]`, and arrays over steps that hold all sentences.
      state: the model's state before the first step, a nest of `[B, ...]`.
      memory: what the model's steps read of the source, a nest of `[B, ...]`.
    Returns:
      `feedback.finalize` of what happened.
    """
    ids, chosen = feedback.initialize()
    if not getattr(feedback, 'sentences_end', False):
        time, _, _, chosen = _walk(model, feedback, 0, tf.constant(0), ids, state, chosen, memory)
        return feedback.finalize(time, chosen)

    def walk_and_gather(time, rows, ids, state, chosen, memory, finished):
        part = feedback.of(rows)
        time, ids, state, chosen = _walk(model, part, tf.size(rows) * 7 // 8, time, ids, state, chosen, memory)
        finished = tf.nest.map_structure(
            lambda every, some: tf.tensor_scatter_nd_update(every, rows[:, tf.newaxis], some),
            finished, chosen.finished,
        )  # fmt: skip
        going_on = tf.where(part.growing(chosen))[:, 0]
        rest = tf.nest.map_structure(lambda x: _gather(x, going_on), (rows, ids, state, chosen, memory))
        return time, *rest, finished

    rows = tf.range(tf.shape(ids)[0])
    batch = tf.nest.map_structure(_of_any_size, (rows, ids, state, chosen, memory))
    time, _, _, _, chosen, _, finished = tf.while_loop(
        lambda time, rows, ids, state, chosen, *_: tf.logical_not(feedback.done(time, chosen, 0)),
        walk_and_gather,
        (tf.constant(0), *batch, chosen.finished),
    )
    return feedback.finalize(time, chosen._replace(finished=finished))


def _walk(model, feedback, enough, time, ids, state, chosen, memory):
    """Steps until the feedback is content, or no more than `enough` sentences go on."""

    def going_on(time, ids, state, chosen):
        return tf.logical_not(feedback.done(time, chosen, enough))

    def step(time, ids, state, chosen):
        logits, state, weights = model.step(ids, state, memory, time)
        ids, parents, chosen = feedback.next(time, logits, weights, chosen)
        if parents is not None:
            state = model.reorder(state, parents)
        return time + 1, tf.ensure_shape(ids, [None, feedback.width]), state, chosen

    return tf.while_loop(going_on, step, (time, ids, state, chosen))


def _gather(x, rows):
    """Some sentences of `[B, ...]`; arrays over steps keep those of all."""
    return x if isinstance(x, tf.TensorArray) else tf.gather(x, rows)


def _of_any_size(x):
    """`x` whose number of sentences shape inference does not know, so that a loop lets it shrink."""
    if isinstance(x, tf.TensorArray):
        return x
    x = tf.convert_to_tensor(x)
    if x.shape.rank == 0:
        raise ValueError(f'state and memory of a search are tensors [B, ...]; one of them is a scalar: {x}')
    return tf.raw_ops.PlaceholderWithDefault(input=x, shape=[None, *x.shape[1:]])
