"""Recurrent layers: fast loops and hand-made gradients against single steps and TensorFlow's own differentiation."""

import numpy as np
import tensorflow as tf

from sequencing.recurrent import CELLS, RecurrentLayer
from tests.support import seeds

B, T, D, H = 3, 5, 4, 7


def numpy_step(cell, layer, x, state):
    """One update in plain NumPy, float64."""
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    kernel, recurrent, bias = (v.numpy().astype('float64') for v in (layer.kernel, layer.recurrent_kernel, layer.bias))
    xs, hs = x @ kernel + bias, state[0] @ recurrent
    if cell == 'lstm':
        i, f, g, o = np.split(xs + hs, 4, axis=-1)
        memory = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(memory), memory
    if cell == 'gru':
        (xr, xz, xn), (hr, hz, hn) = np.split(xs, 3, axis=-1), np.split(hs, 3, axis=-1)
        z = sigmoid(xz + hz)
        new = np.tanh(xn + sigmoid(xr + hr) * (hn + layer.candidate_bias.numpy()))
        return ((1 - z) * new + z * state[0],)
    return (np.tanh(xs + hs),)


class RecurrentTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        random = seeds(self)
        tf.random.set_seed(random.randrange(2**31))
        self.random = np.random.default_rng(random.randrange(2**31))
        self.lengths = [T, 2, 0]

    def draw(self, *shape):
        return tf.constant(self.random.normal(size=shape), tf.float32)

    def layer(self, cell):
        layer = RecurrentLayer(cell, D, H)
        for variable in layer.trainable_variables:
            variable.assign_add(self.draw(*variable.shape) * 0.1)
        return layer, CELLS[cell].state(*[self.draw(B, H) for _ in CELLS[cell].state._fields])

    def test_a_layer_is_its_steps_in_plain_numpy(self):
        x, mask = self.draw(B, T, D), tf.sequence_mask(self.lengths, T)
        for cell in CELLS:
            for reverse in (False, True):
                layer, initial = self.layer(cell)
                outputs, final = layer(x, mask, initial, reverse)
                for b, length in enumerate(self.lengths):
                    state = tuple(field[b].numpy().astype('float64') for field in initial)
                    for t in range(length)[:: -1 if reverse else 1]:
                        state = numpy_step(cell, layer, x[b, t].numpy().astype('float64'), state)
                        self.assertAllClose(outputs[b, t], state[0], atol=1e-5)
                    for got, want in zip(final, state):
                        self.assertAllClose(got[b], want, atol=1e-5)
                    self.assertAllEqual(outputs[b, length:], tf.zeros([T - length, H]))

    def test_gradients_are_those_of_autodiff_through_single_steps(self):
        x, mask = self.draw(B, T, D), tf.sequence_mask(self.lengths, T)
        weights = self.draw(B, T, H)
        for cell in CELLS:
            for reverse in (False, True):
                layer, initial = self.layer(cell)

                def by_steps():
                    state, outputs = initial, [None] * T
                    for t in range(T)[:: -1 if reverse else 1]:
                        new = layer.step(x[:, t], state)
                        state = type(state)(*[tf.where(mask[:, t : t + 1], n, o) for n, o in zip(new, state)])
                        outputs[t] = tf.where(mask[:, t : t + 1], state.output, 0.0)
                    return tf.stack(outputs, axis=1), state

                @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, D])])
                def whole(x):
                    return layer(x, mask, initial, reverse)

                sources = [x, *initial, *layer.trainable_variables]
                results = []
                for run in (by_steps, lambda: whole(x)):
                    with tf.GradientTape() as tape:
                        tape.watch([x, *initial])
                        outputs, final = run()
                        loss = tf.reduce_sum(outputs * weights) + sum(tf.reduce_sum(f**2) for f in final)
                    results.append(tape.gradient(loss, sources))
                for got, want in zip(*results):
                    self.assertAllClose(got, want, atol=1e-4)

    def test_padding_changes_nothing(self):
        layer, initial = self.layer('lstm')
        x, mask = self.draw(B, T, D), tf.sequence_mask(self.lengths, T)
        other = tf.where(mask[:, :, tf.newaxis], x, self.draw(B, T, D))
        wider = tf.pad(other, [[0, 0], [0, 3], [0, 0]], constant_values=9.0)
        for reverse in (False, True):
            outputs, final = layer(x, mask, initial, reverse)
            padded, padded_final = layer(wider, tf.sequence_mask(self.lengths, T + 3), initial, reverse)
            self.assertAllClose(padded[:, :T], outputs, atol=1e-6)
            self.assertAllClose(padded_final, final, atol=1e-6)

    def test_bfloat16_stays_near_float32(self):
        x, mask = self.draw(B, T, D), tf.sequence_mask(self.lengths, T)
        for cell in CELLS:
            layer, _ = self.layer(cell)
            exact, _ = layer(x, mask)
            rough, final = layer(tf.cast(x, tf.bfloat16), mask)
            self.assertEqual(rough.dtype, tf.bfloat16)
            self.assertEqual(final.output.dtype, tf.float32)
            self.assertAllClose(tf.cast(rough, tf.float32), exact, atol=0.1)


if __name__ == '__main__':
    tf.test.main()
