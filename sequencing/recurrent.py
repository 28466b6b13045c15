"""Recurrent layers: LSTM, GRU and plain RNN, over whole sequences or a step at a time, with one set of weights.

A cell is what is left when the matrix products are taken out: a function from pre-activations and the old state to the
new state. Inputs of all steps are projected in one product before the loop. In the backward pass the loop only carries
the state's gradient (one product a step); the weights' gradients are one product over all steps after it. That is what
makes a loop of TensorFlow operations as fast as a fused kernel on CPUs.

States and gates are float32 even where products are made in bfloat16 or float16. In loops the kernels stand transposed:
oneDNN then multiplies a small batch two to three times as fast.

Gates are ordered as in PyTorch and cuDNN: LSTM input, forget, candidate, output; GRU reset, update, candidate, with the
reset gate applied to the projected state.
"""

from typing import NamedTuple

import tensorflow as tf

from sequencing.layers import glorot_uniform, matmul


class LSTMState(NamedTuple):
    output: tf.Tensor  # [..., H] float
    memory: tf.Tensor  # [..., H] float


class RNNState(NamedTuple):
    """State of GRU and plain RNN."""

    output: tf.Tensor  # [..., H] float


class LSTMCell:
    """Long short-term memory (Hochreiter and Schmidhuber, 1997; forget gate of Gers et al., 2000).

    i, f, o = sigmoid(...); g = tanh(...); memory' = f * memory + i * g; output' = o * tanh(memory')
    """

    gates = 4
    separate = False  # the projected input and state are only ever added
    state = LSTMState

    @staticmethod
    def pre_size(units):
        """Size of the pre-activations."""
        return 4 * units

    @staticmethod
    def combine(x_part, h_part, bias):
        """Pre-activations `[..., 4H]` from the projected input and the projected state."""
        return x_part + h_part

    @staticmethod
    def split_gradient(gradient):
        """The parts of the pre-activations' gradient that reach `x_part` and `h_part`, and `bias`."""
        return gradient, gradient, None

    @staticmethod
    def update(pre, state):
        i, f, g, o = tf.split(pre, 4, axis=-1)
        memory = tf.sigmoid(f) * state.memory + tf.sigmoid(i) * tf.tanh(g)
        return LSTMState(tf.sigmoid(o) * tf.tanh(memory), memory)


class GRUCell:
    """Gated recurrent unit (Cho et al., 2014), in the form of cuDNN.

    r, z = sigmoid(...); n = tanh(x_n + r * (h_n + bias)); output' = (1 - z) * n + z * output
    """

    gates = 3
    separate = True  # the candidate needs the projected state apart from the projected input
    state = RNNState

    @staticmethod
    def pre_size(units):
        return 4 * units

    @staticmethod
    def combine(x_part, h_part, bias):
        units = h_part.shape[-1] // 3
        x_gates, x_new = x_part[..., : 2 * units], x_part[..., 2 * units :]
        h_gates, h_new = h_part[..., : 2 * units], h_part[..., 2 * units :]
        return tf.concat([x_gates + h_gates, x_new, h_new + bias], axis=-1)

    @staticmethod
    def split_gradient(gradient):
        units = gradient.shape[-1] // 4
        gates, x_new, h_new = tf.split(gradient, [2 * units, units, units], axis=-1)
        return tf.concat([gates, x_new], axis=-1), tf.concat([gates, h_new], axis=-1), h_new

    @staticmethod
    def update(pre, state):
        r, z, x_new, h_new = tf.split(pre, 4, axis=-1)
        z = tf.sigmoid(z)
        return RNNState((1 - z) * tf.tanh(x_new + tf.sigmoid(r) * h_new) + z * state.output)


class PlainCell:
    """output' = tanh(...) (Elman, 1990)."""

    gates = 1
    separate = False
    state = RNNState

    @staticmethod
    def pre_size(units):
        return units

    combine = LSTMCell.combine
    split_gradient = LSTMCell.split_gradient

    @staticmethod
    def update(pre, state):
        return RNNState(tf.tanh(pre))


CELLS = {'lstm': LSTMCell, 'gru': GRUCell, 'rnn': PlainCell}


def zero_state(cell, shape, dtype):
    """The state of `cell` with zeros of `shape` in every field, for inputs of `dtype`."""
    return cell.state(*[tf.zeros(shape, state_dtype(dtype)) for _ in cell.state._fields])


def state_dtype(dtype):
    """The dtype of states and gates, for inputs of `dtype`."""
    return tf.float32 if dtype.size < 4 else dtype


class RecurrentLayer(tf.Module):
    """One recurrent layer in one direction.

    Args:
      cell: 'lstm', 'gru' or 'rnn'.
      input_size, state_size: sizes D and H of inputs and state.
    """

    def __init__(self, cell, input_size, state_size, name='recurrent'):
        super().__init__(name=name)
        self.cell = CELLS[cell]
        self.state_size = state_size
        self.turned = None  # transposed kernels, once `store_for_decoding` made them
        gates = self.cell.gates
        with self.name_scope:
            self.kernel = tf.Variable(glorot_uniform([input_size, gates * state_size]), name='kernel')
            blocks = [tf.linalg.qr(tf.random.normal([state_size, state_size]))[0] for _ in range(gates)]
            self.recurrent_kernel = tf.Variable(tf.concat(blocks, axis=1), name='recurrent_kernel')
            bias = tf.zeros([gates * state_size])
            if self.cell is LSTMCell:  # remember by default (Jozefowicz et al., 2015)
                bias = tf.tensor_scatter_nd_update(
                    bias, tf.range(state_size, 2 * state_size)[:, tf.newaxis], tf.ones([state_size])
                )
            self.bias = tf.Variable(bias, name='bias')
            self.candidate_bias = (
                tf.Variable(tf.zeros([state_size]), name='candidate_bias') if self.cell is GRUCell else None
            )

    def weights(self, dtype):
        """The recurrent kernel `[H, gates * H]` in `dtype`, and GRU's candidate bias `[H]` (or None)."""
        bias = None if self.candidate_bias is None else tf.cast(self.candidate_bias, state_dtype(dtype))
        return tf.cast(self.recurrent_kernel, dtype), bias

    def project(self, inputs):
        """Inputs `[..., D]` to their part of the pre-activations, `[..., gates * H]`."""
        return matmul(inputs, tf.cast(self.kernel, inputs.dtype)) + tf.cast(self.bias, inputs.dtype)

    def __call__(self, inputs, mask, initial_state=None, reverse=False):
        """Reads whole sequences.

        Args:
          inputs: `[B, T, D]` float.
          mask: `[B, T]` bool; at padding the state stays as it is and the output is zero.
          initial_state: state of `[B, H]` floats, zeros by default.
          reverse: read from the last real step to the first.
        Returns:
          outputs `[B, T, H]` and the final state, fields `[B, H]`.
        """
        kernel, bias = self.weights(inputs.dtype)
        if initial_state is None:
            initial_state = zero_state(self.cell, [tf.shape(inputs)[0], self.state_size], inputs.dtype)
        projected = tf.transpose(self.project(inputs), [1, 0, 2])
        steps_mask = tf.expand_dims(tf.transpose(tf.cast(mask, tf.float32)) > 0, 2)  # oneDNN transposes no bools
        states, final = scan(self.cell, projected, kernel, bias, initial_state, steps_mask, reverse)
        outputs = tf.transpose(tf.cast(states.output, inputs.dtype), [1, 0, 2])
        outputs = tf.where(mask[:, :, tf.newaxis], outputs, tf.zeros([], inputs.dtype))
        outputs.set_shape([inputs.shape[0], inputs.shape[1], self.state_size])
        return outputs, final

    def step(self, inputs, state):
        """Reads one step: `[..., D]` floats and a state of `[..., H]` floats; returns the new state."""
        dtype, wide = inputs.dtype, state.output.dtype
        output = tf.cast(state.output, dtype)
        if self.turned:
            x_part = matmul(inputs, self.turned[0], transposed=True) + tf.cast(self.bias, dtype)
            h_part = matmul(output, self.turned[1], transposed=True)
        else:
            x_part = self.project(inputs)
            h_part = matmul(output, tf.cast(self.recurrent_kernel, dtype))
        bias = None if self.candidate_bias is None else tf.cast(self.candidate_bias, wide)
        return self.cell.update(self.cell.combine(tf.cast(x_part, wide), tf.cast(h_part, wide), bias), state)

    def store_for_decoding(self, dtype):
        """See `layers.store_for_decoding`; whole sequences still read the variables."""
        self.turned = [tf.transpose(tf.cast(kernel, dtype)) for kernel in (self.kernel, self.recurrent_kernel)]


def scan(cell, x_parts, kernel, bias, initial_state, mask, reverse=False):
    """Runs a cell over time.

    Args:
      cell: one of the cell classes.
      x_parts: `[T, B, gates * H]` float, projected inputs, in the dtype of the products.
      kernel: `[H, gates * H]`; bias: `[H]` or None, as `RecurrentLayer.weights` gives them.
      initial_state: state of `[B, H]` floats of `state_dtype`.
      mask: `[T, B, 1]` bool; where False, the state stays as it is.
    Returns:
      the states after each step, fields `[T, B, H]`, and the final state, fields `[B, H]`.
    """
    has_bias = bias is not None
    wide = initial_state.output.dtype
    bias = bias if has_bias else tf.zeros([], wide)

    @tf.custom_gradient
    def run(x_parts, kernel, bias, *initial):
        states, pres, final = _scan_forward(cell, x_parts, kernel, bias, cell.state(*initial), mask, reverse)

        def gradient(*upstream):
            size = len(cell.state._fields)
            d_x, d_h, d_bias, d_initial, previous = _scan_backward(
                cell, kernel, pres, states, cell.state(*initial), mask, reverse, upstream[:size], upstream[size:]
            )
            d_kernel = tf.matmul(flat(tf.cast(previous.output, kernel.dtype)), flat(d_h), transpose_a=True)
            d_bias = tf.reduce_sum(d_bias, axis=[0, 1]) if has_bias else tf.zeros_like(bias)
            return (d_x, d_kernel, d_bias, *d_initial)

        return (*states, *final), gradient

    results = run(x_parts, kernel, bias, *initial_state)
    size = len(cell.state._fields)
    return cell.state(*results[:size]), cell.state(*results[size:])


def flat(x):
    """`[..., D]` as `[rows, D]`."""
    return tf.reshape(x, [-1, x.shape[-1]])


def arrays(steps, *dtypes, shape=(None, None)):
    """A TensorArray of `steps` matrices for each dtype; exports want their shape as far as it is known."""
    return [tf.TensorArray(dtype, steps, element_shape=shape) for dtype in dtypes]


def time_loop(steps, body, carry):
    """`carry = body(t, carry)` for t in `steps`, a 1-D range; carry is a nest of tensors and TensorArrays."""
    count = tf.size(steps)
    return tf.while_loop(
        lambda i, carry: i < count,
        lambda i, carry: (i + 1, body(steps[i], carry)),
        (0, carry),
        maximum_iterations=count,
    )[1]


def time_steps(count, reverse):
    """Step numbers in reading order."""
    return tf.range(count - 1, -1, -1) if reverse else tf.range(count)


def _scan_forward(cell, x_parts, kernel, bias, initial, mask, reverse):
    units, dtype, wide = kernel.shape[0], kernel.dtype, initial.output.dtype
    kernel_t = tf.transpose(kernel)

    def body(t, carry):
        state, state_arrays, pre_array = carry
        h_part = tf.matmul(tf.cast(state.output, dtype), kernel_t, transpose_b=True)
        pre = cell.combine(tf.cast(x_parts[t], wide), tf.cast(h_part, wide), bias)
        new = cell.state(*[tf.where(mask[t], n, o) for n, o in zip(cell.update(pre, state), state)])
        new = cell.state(*[tf.ensure_shape(n, [None, units]) for n in new])
        return new, [a.write(t, n) for a, n in zip(state_arrays, new)], pre_array.write(t, pre)

    steps, size = tf.shape(x_parts)[0], len(cell.state._fields)
    state_arrays = arrays(steps, *[wide] * size, shape=(x_parts.shape[1], units))
    start = (initial, state_arrays, *arrays(steps, wide, shape=(x_parts.shape[1], cell.pre_size(units))))
    final, state_arrays, pre_array = time_loop(time_steps(steps, reverse), body, start)
    states = cell.state(*[stacked(array, units) for array in state_arrays])
    return states, stacked(pre_array, cell.pre_size(units)), final


def stacked(array, size):
    """A TensorArray of `[B, size]` as `[T, B, size]`."""
    return tf.ensure_shape(array.stack(), [None, None, size])


def previous_states(states, initial, reverse):
    """The state that each step started from, fields `[T, B, H]`."""
    return type(initial)(*[
        tf.concat([s[1:], i[tf.newaxis]], axis=0) if reverse else tf.concat([i[tf.newaxis], s[:-1]], axis=0)
        for s, i in zip(states, initial)
    ])  # fmt: skip


def _scan_backward(cell, kernel, pres, states, initial, mask, reverse, d_states, d_final):
    """Gradients of `scan`: of x_parts, of the projected states, of the bias a step, of the initial state."""
    previous = previous_states(states, initial, reverse)
    dtype, wide = kernel.dtype, pres.dtype

    def body(t, carry):
        d_state, written = carry
        d_state = [d + upstream[t] for d, upstream in zip(d_state, d_states)]
        d_pre, d_old = cell_gradient(cell, pres[t], cell.state(*[p[t] for p in previous]), mask[t], d_state)
        d_x, d_h, d_bias = cell.split_gradient(d_pre)
        d_h = tf.cast(d_h, dtype)
        d_old[0] += tf.cast(tf.matmul(d_h, kernel, transpose_b=True), wide)
        parts = [d_h, tf.cast(d_x, dtype), d_bias] if cell.separate else [d_h]
        return d_old, [array.write(t, d) for array, d in zip(written, parts)]

    steps = tf.shape(pres)[0]
    start = (list(d_final), arrays(steps, dtype, *([dtype, wide] if cell.separate else [])))
    d_initial, written = time_loop(time_steps(steps, not reverse), body, start)
    d_h = stacked(written[0], cell.gates * kernel.shape[0])
    d_x = stacked(written[1], cell.gates * kernel.shape[0]) if cell.separate else d_h
    return d_x, d_h, written[2].stack() if cell.separate else None, d_initial, previous


def cell_gradient(cell, pre, old, mask, d_new):
    """Gradients of one masked update with respect to pre-activations and old state, the update computed again."""
    with tf.GradientTape() as tape:
        tape.watch([pre, *old])
        new = [tf.where(mask, n, o) for n, o in zip(cell.update(pre, old), old)]
    gradients = tape.gradient(new, [pre, *old], output_gradients=list(d_new), unconnected_gradients='zero')
    return gradients[0], gradients[1:]
