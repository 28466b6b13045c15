"""A recurrent layer that is fed the context it attended to at the step before, over whole targets, made for training.

As in `recurrent.scan`, the backward loop carries only what has to go from step to step: the gradients of state and
context. Those of all weights, keys and values are taken over all steps at once, after the loop. The elementwise parts
of the cell are computed again. What the attention compared, `[T, B, S, K]`, is by far the most to compute again, and to
store: it is stored, unless `recompute` asks for the other.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from sequencing.layers import matmul
from sequencing.recurrent import arrays, cell_gradient, flat, previous_states, stacked, time_loop, time_steps


class _Inputs(NamedTuple):
    """Every tensor that receives a gradient."""

    x_parts: tf.Tensor  # [T, B, gates * H], the projected tokens
    kernel: tf.Tensor  # [H + V, gates * H], of [output, context]
    bias: tf.Tensor  # [H] candidate bias of a GRU, or a scalar that nothing reads
    query_kernel: tf.Tensor  # [H, K]
    keys: tf.Tensor  # [B, S, K]
    values: tf.Tensor  # [B, S, V]
    own: Any  # what the attention has learnt besides, a list
    initial: Any  # state before the first step, fields [B, H]


class _Saved(NamedTuple):
    """What the forward loop leaves for the backward one, each `[T, B, ...]`."""

    states: Any
    pres: tf.Tensor
    contexts: tf.Tensor
    weights: tf.Tensor
    queries: tf.Tensor
    energies: tf.Tensor
    compared: Any  # [T, B, S, K], or None


def attention_scan(layer, attention, embedded, memory, initial, recompute=False):
    """Reads whole targets.

    Args:
      layer: `RecurrentLayer` over `[embedded, context]`.
      attention: an `Attention` whose queries are the layer's outputs.
      embedded: `[B, T, E]` float.
      memory: `AttentionMemory` with values `[B, S, V]`.
      initial: state of the layer, fields `[B, H]`.
      recompute: compare again in the backward loop, which takes longer, in place of T * B * S * K stored numbers.
    Returns:
      outputs `[B, T, H]`, contexts `[B, T, V]`, attention weights `[B, T, S]`.
    """
    dtype, cell = embedded.dtype, layer.cell
    recurrent_kernel, candidate_bias = layer.weights(dtype)
    input_kernel = tf.cast(layer.kernel, dtype)
    token_size = embedded.shape[-1]
    of_tokens, of_context = tf.split(input_kernel, [token_size, input_kernel.shape[0] - token_size])
    x_parts = matmul(embedded, of_tokens) + tf.cast(layer.bias, dtype)
    query_kernel, *own = attention.weights(dtype)
    inputs = _Inputs(
        x_parts=tf.transpose(x_parts, [1, 0, 2]),
        kernel=tf.concat([recurrent_kernel, of_context], axis=0),
        bias=tf.zeros([], initial.output.dtype) if candidate_bias is None else candidate_bias,
        query_kernel=query_kernel, keys=memory.keys, values=memory.values, own=own, initial=initial,
    )  # fmt: skip

    @tf.custom_gradient
    def run(*inputs):
        inputs = _Inputs(*inputs)
        saved = _forward(cell, attention, memory.mask, inputs, attention.has_compared and not recompute)

        def gradient(*upstream):
            return tuple(_backward(cell, attention, memory.mask, inputs, saved, *upstream))

        return (saved.states.output, saved.contexts, saved.weights), gradient

    return tuple(tf.transpose(tf.cast(x, dtype), [1, 0, 2]) for x in run(*inputs))


def _forward(cell, attention, mask, inputs, stores):
    units, value_size = inputs.initial.output.shape[-1], inputs.values.shape[-1]
    dtype, wide = inputs.values.dtype, inputs.initial.output.dtype
    kernel_t, query_kernel_t = tf.transpose(inputs.kernel), tf.transpose(inputs.query_kernel)

    def body(t, carry):
        state, context, written = carry
        output, x_part = tf.cast(state.output, dtype), tf.cast(inputs.x_parts[t], wide)
        if cell.separate:
            x_part += tf.cast(tf.matmul(context, kernel_t[:, units:], transpose_b=True), wide)
            h_part = tf.matmul(output, kernel_t[:, :units], transpose_b=True)
        else:  # one product for state and context together
            h_part = tf.matmul(tf.concat([output, context], axis=-1), kernel_t, transpose_b=True)
        pre = cell.combine(x_part, tf.cast(h_part, wide), inputs.bias)
        state = cell.state(*[tf.ensure_shape(new, [None, units]) for new in cell.update(pre, state)])
        query = tf.matmul(tf.cast(state.output, dtype), query_kernel_t, transpose_b=True)
        energies, compared = attention.match(tf.expand_dims(query, 1), inputs.keys, mask, *inputs.own)
        weights = tf.squeeze(attention.normalise(energies, mask), axis=1)
        context = tf.squeeze(tf.matmul(tf.expand_dims(weights, 1), inputs.values), axis=1)
        context = tf.ensure_shape(context, [None, value_size])
        parts = [*state, pre, context, weights, query, tf.squeeze(energies, axis=1)]
        if stores:
            parts.append(tf.squeeze(compared, axis=1))
        return state, context, [array.write(t, x) for array, x in zip(written, parts)]

    steps, size = tf.shape(inputs.x_parts)[0], len(cell.state._fields)
    no_context = tf.zeros([tf.shape(inputs.values)[0], value_size], dtype)
    start = (inputs.initial, no_context, arrays(steps, *[wide] * (size + 1), *[dtype] * 4))
    if stores:
        start[2].extend(arrays(steps, dtype, shape=(None, None, None)))
    written = time_loop(time_steps(steps, reverse=False), body, start)[2]
    sizes = [units] * size + [cell.pre_size(units), value_size, None, inputs.query_kernel.shape[1], None]
    saved = [stacked(array, last) for array, last in zip(written, sizes)]
    compared = None
    if stores:
        compared = tf.ensure_shape(written[-1].stack(), [None, None, None, inputs.keys.shape[2]])
    return _Saved(cell.state(*saved[:size]), *saved[size:], compared)


def _backward(cell, attention, mask, inputs, saved, d_outputs, d_contexts, d_weights):
    """The gradients of `_Inputs`, given those of outputs, contexts and weights, each `[T, B, ...]`."""
    units = inputs.initial.output.shape[-1]
    dtype, wide = inputs.values.dtype, inputs.initial.output.dtype
    previous = previous_states(saved.states, inputs.initial, reverse=False)
    previous_contexts = tf.concat([tf.zeros_like(saved.contexts[:1]), saved.contexts[:-1]], axis=0)
    always = tf.ones([1, 1], tf.bool)
    again = attention.has_compared and saved.compared is None  # then each step adds what it means for the source

    def body(t, carry):
        d_state, d_context, d_source, written = carry
        d_context += d_contexts[t]
        of_context = tf.matmul(tf.expand_dims(d_context, 1), inputs.values, transpose_b=True)
        with tf.GradientTape() as tape:
            energies = tf.expand_dims(saved.energies[t], 1)
            tape.watch(energies)
            weights = attention.normalise(energies, mask)
        d_energies = tape.gradient(weights, energies, tf.expand_dims(d_weights[t], 1) + of_context)
        d_energies = tf.squeeze(d_energies, axis=1)
        if again:
            _, compared = attention.match(saved.queries[t][:, tf.newaxis], inputs.keys, mask, *inputs.own)
            compared = tf.squeeze(compared, axis=1)
            d_keys, d_own = attention.source_gradients(
                d_energies[tf.newaxis], compared[tf.newaxis], saved.queries[t][tf.newaxis], mask, *inputs.own
            )
            d_source = [total + tf.cast(d, wide) for total, d in zip(d_source, [d_keys, *d_own])]
        else:
            compared = None if saved.compared is None else saved.compared[t]
        d_query = attention.query_gradient(d_energies, compared, inputs.keys, mask, *inputs.own)
        d_state[0] += d_outputs[t] + tf.cast(tf.matmul(d_query, inputs.query_kernel, transpose_b=True), wide)
        old = cell.state(*[field[t] for field in previous])
        d_pre, d_old = cell_gradient(cell, saved.pres[t], old, always, d_state)
        d_x, d_h, d_bias = cell.split_gradient(d_pre)
        d_x, d_h = tf.cast(d_x, dtype), tf.cast(d_h, dtype)
        if cell.separate:
            d_output = tf.matmul(d_h, inputs.kernel[:units], transpose_b=True)
            d_fed = tf.matmul(d_x, inputs.kernel[units:], transpose_b=True)
        else:
            both = tf.matmul(d_h, inputs.kernel, transpose_b=True)
            d_output, d_fed = both[:, :units], both[:, units:]
        d_old[0] += tf.cast(d_output, wide)
        parts = [d_h, d_query, d_context, d_energies] + ([d_x, d_bias] if cell.separate else [])
        return d_old, d_fed, d_source, [array.write(t, x) for array, x in zip(written, parts)]

    steps = tf.shape(saved.pres)[0]
    start = ([tf.zeros_like(field) for field in inputs.initial], tf.zeros_like(saved.contexts[0]),
             [tf.zeros_like(part, wide) for part in (inputs.keys, *inputs.own)] if again else [],
             arrays(steps, *[dtype] * 4, *([dtype, wide] if cell.separate else [])))  # fmt: skip
    d_initial, _, d_source, written = time_loop(time_steps(steps, reverse=True), body, start)
    d_h = stacked(written[0], cell.gates * units)
    d_x = stacked(written[4], cell.gates * units) if cell.separate else d_h
    d_queries = stacked(written[1], saved.queries.shape[-1])
    if not again:
        d_keys, d_own = attention.source_gradients(written[3].stack(), saved.compared, saved.queries, mask, *inputs.own)
        d_source = [d_keys, *d_own]
    d_keys, *d_own = [tf.cast(part, dtype) for part in d_source]
    outputs = [flat(tf.cast(states, dtype)) for states in (previous.output, saved.states.output)]
    return _Inputs(
        x_parts=d_x,
        kernel=tf.concat([
            tf.matmul(outputs[0], flat(d_h), transpose_a=True),
            tf.matmul(flat(previous_contexts), flat(d_x), transpose_a=True),
        ], axis=0),
        bias=tf.reduce_sum(written[5].stack(), axis=[0, 1]) if cell.separate else tf.zeros_like(inputs.bias),
        query_kernel=tf.matmul(outputs[1], flat(d_queries), transpose_a=True),
        keys=d_keys,
        values=tf.einsum('tbs,tbv->bsv', saved.weights, written[2].stack()),
        own=d_own,
        initial=d_initial,
    )  # fmt: skip
