"""A recurrent layer that is fed the context it attended to at the step before, over whole targets, made for training.

As in `recurrent.scan`, the backward loop carries only what has to go from step to step: the gradients of state, context
and keys. The gradients of all weights and of the values are one product each over all steps, after the loop; the
elementwise parts are computed again instead of stored.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from sequencing.layers import matmul
from sequencing.recurrent import cell_gradient, flat, previous_states, stacked, time_loop, time_steps


class _Inputs(NamedTuple):
    """Every tensor that receives a gradient."""

    x_parts: tf.Tensor  # [T, B, gates * H], the projected tokens
    kernel: tf.Tensor  # [H + V, gates * H], of [output, context]
    bias: tf.Tensor  # [H] candidate bias of a GRU, or a scalar that nothing reads
    query_kernel: tf.Tensor  # [H, K]
    keys: tf.Tensor  # [B, S, K]
    values: tf.Tensor  # [B, S, V]
    own: Any  # what the attention learns besides, a list
    initial: Any  # state before the first step, fields [B, H]


class _Saved(NamedTuple):
    """What the forward loop leaves for the backward one, each `[T, B, ...]`."""

    states: Any
    contexts: tf.Tensor
    weights: tf.Tensor
    pres: tf.Tensor
    queries: tf.Tensor


def attention_scan(layer, attention, embedded, memory, initial):
    """Reads whole targets.

    Args:
      layer: `RecurrentLayer` over `[embedded, context]`.
      attention: an `Attention` whose queries are the layer's outputs.
      embedded: `[B, T, E]` float.
      memory: `AttentionMemory` with values `[B, S, V]`.
      initial: state of the layer, fields `[B, H]`.
    Returns:
      outputs `[B, T, H]`, contexts `[B, T, V]`, attention weights `[B, T, S]`.
    """
    dtype, cell = embedded.dtype, layer.cell
    recurrent_kernel, candidate_bias = layer.weights(dtype)
    input_kernel = tf.cast(layer.kernel, dtype)
    token_size = embedded.shape[-1]
    x_parts = matmul(embedded, input_kernel[:token_size]) + tf.cast(layer.bias, dtype)
    query_kernel, *own = attention.weights(dtype)
    inputs = _Inputs(
        x_parts=tf.transpose(x_parts, [1, 0, 2]),
        kernel=tf.concat([recurrent_kernel, input_kernel[token_size:]], axis=0),
        bias=tf.zeros([], dtype) if candidate_bias is None else candidate_bias,
        query_kernel=query_kernel, keys=memory.keys, values=memory.values, own=own, initial=initial,
    )  # fmt: skip

    def compare(query, keys, own):
        return attention.compare(query[:, tf.newaxis], keys, memory.mask, *own)[:, 0]

    @tf.custom_gradient
    def run(*inputs):
        inputs = _Inputs(*inputs)
        saved = _forward(cell, compare, inputs)

        def gradient(*upstream):
            return tuple(_backward(cell, compare, inputs, saved, *upstream))

        return (saved.states.output, saved.contexts, saved.weights), gradient

    return tuple(tf.transpose(x, [1, 0, 2]) for x in run(*inputs))


def _forward(cell, compare, inputs):
    units, value_size = inputs.initial.output.shape[-1], inputs.values.shape[-1]
    size = len(cell.state._fields)

    def body(t, carry):
        state, context, arrays = carry
        if cell.separate:
            x_part = inputs.x_parts[t] + tf.matmul(context, inputs.kernel[units:])
            pre = cell.combine(x_part, tf.matmul(state.output, inputs.kernel[:units]), inputs.bias)
        else:  # one product for state and context together
            pre = inputs.x_parts[t] + tf.matmul(tf.concat([state.output, context], axis=-1), inputs.kernel)
        state = cell.state(*[tf.ensure_shape(new, [None, units]) for new in cell.update(pre, state)])
        query = tf.matmul(state.output, inputs.query_kernel)
        weights = compare(query, inputs.keys, inputs.own)
        context = tf.ensure_shape(_weighted(weights, inputs.values), [None, value_size])
        written = [*state, context, weights, pre, query]
        return state, context, [array.write(t, x) for array, x in zip(arrays, written)]

    steps = tf.shape(inputs.x_parts)[0]
    no_context = tf.zeros([tf.shape(inputs.values)[0], value_size], inputs.values.dtype)
    start = (inputs.initial, no_context, _arrays(size + 4, steps, no_context.dtype))
    arrays = time_loop(time_steps(steps, reverse=False), body, start)[2]
    sizes = [units] * size + [value_size, None, cell.pre_size(units), inputs.query_kernel.shape[1]]
    saved = [stacked(array, last) for array, last in zip(arrays, sizes)]
    return _Saved(cell.state(*saved[:size]), *saved[size:])


def _backward(cell, compare, inputs, saved, d_outputs, d_contexts, d_weights):
    """The gradients of `_Inputs`, given those of outputs, contexts and weights, each `[T, B, ...]`."""
    units = inputs.initial.output.shape[-1]
    previous = previous_states(saved.states, inputs.initial, reverse=False)
    previous_contexts = tf.concat([tf.zeros_like(saved.contexts[:1]), saved.contexts[:-1]], axis=0)
    kernel_t, query_kernel_t = tf.transpose(inputs.kernel), tf.transpose(inputs.query_kernel)
    always = tf.ones([1, 1], tf.bool)

    def body(t, carry):
        d_state, d_context, d_keys, d_own, arrays = carry
        d_context += d_contexts[t]
        d_compared = d_weights[t] + tf.squeeze(tf.matmul(d_context[:, tf.newaxis], inputs.values, transpose_b=True), 1)
        with tf.GradientTape() as tape:
            query = saved.queries[t]
            tape.watch([query, inputs.keys, *inputs.own])
            compared = compare(query, inputs.keys, inputs.own)
        d_query, d_keys_t, *d_own_t = tape.gradient(compared, [query, inputs.keys, *inputs.own], d_compared)
        d_state[0] += d_outputs[t] + tf.matmul(d_query, query_kernel_t)
        old = cell.state(*[field[t] for field in previous])
        d_pre, d_old = cell_gradient(cell, saved.pres[t], old, always, d_state)
        if cell.separate:
            d_x, d_h, _ = cell.split_gradient(d_pre)
            d_output, d_fed = tf.matmul(d_h, kernel_t[:, :units]), tf.matmul(d_x, kernel_t[:, units:])
        else:
            both = tf.matmul(d_pre, kernel_t)
            d_output, d_fed = both[:, :units], both[:, units:]
        d_old[0] += d_output
        arrays = [array.write(t, x) for array, x in zip(arrays, [d_pre, d_query, d_context])]
        return d_old, d_fed, d_keys + d_keys_t, [total + d for total, d in zip(d_own, d_own_t)], arrays

    steps = tf.shape(saved.pres)[0]
    start = ([tf.zeros_like(field) for field in inputs.initial], tf.zeros_like(saved.contexts[0]),
             tf.zeros_like(inputs.keys), [tf.zeros_like(o) for o in inputs.own],
             _arrays(3, steps, saved.pres.dtype))  # fmt: skip
    d_initial, _, d_keys, d_own, arrays = time_loop(time_steps(steps, reverse=True), body, start)
    d_pres = stacked(arrays[0], saved.pres.shape[-1])
    d_queries = stacked(arrays[1], saved.queries.shape[-1])
    d_x, d_h, d_bias = cell.split_gradient(d_pres)
    return _Inputs(
        x_parts=d_x,
        kernel=tf.concat([
            tf.matmul(flat(previous.output), flat(d_h), transpose_a=True),
            tf.matmul(flat(previous_contexts), flat(d_x), transpose_a=True),
        ], axis=0),
        bias=tf.reduce_sum(d_bias, axis=[0, 1]) if cell.separate else tf.zeros_like(inputs.bias),
        query_kernel=tf.matmul(flat(saved.states.output), flat(d_queries), transpose_a=True),
        keys=d_keys,
        values=tf.einsum('tbs,tbv->bsv', saved.weights, arrays[2].stack()),
        own=d_own,
        initial=d_initial,
    )  # fmt: skip


def _weighted(weights, values):
    return tf.squeeze(tf.matmul(weights[:, tf.newaxis], values), axis=1)


def _arrays(count, steps, dtype):
    return [tf.TensorArray(dtype, steps, element_shape=[None, None]) for _ in range(count)]
