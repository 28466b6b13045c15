"""Normalisation and dropout."""

import numpy as np
import tensorflow as tf

from sequencing.layers import Dropout, LayerNorm, LinearOp, LookUpOp, matmul, store_for_decoding
from tests.decoder_support import floats, randomise
from tests.support import seeds


def normalise_slowly(x, scale, shift, epsilon):
    mean = x.mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon) * scale + shift


class LayerNormTest(tf.test.TestCase):
    def test_values_at_every_rank_and_precision(self):
        random = seeds(self)
        norm = LayerNorm(7)
        randomise(random, norm)
        for shape in ([5, 7], [2, 3, 7], [2, 3, 4, 7]):
            x = 3 * floats(random, *shape) + 5
            expected = normalise_slowly(x.numpy().astype(np.float64), norm.scale.numpy(), norm.shift.numpy(), 1e-5)
            self.assertAllClose(norm(x), expected, atol=1e-5)
            self.assertAllClose(norm(tf.cast(x, tf.float64)), expected, atol=1e-6)
            narrow = norm(tf.cast(x, tf.bfloat16))
            self.assertEqual(narrow.dtype, tf.bfloat16)
            self.assertAllClose(tf.cast(narrow, tf.float32), expected, atol=0.2)

    def test_gradient_is_that_of_the_formula(self):
        random = seeds(self)
        norm = LayerNorm(7)
        randomise(random, norm)
        x, direction = tf.cast(floats(random, 2, 5, 7), tf.float64), tf.cast(floats(random, 2, 5, 7), tf.float64)

        def formula(x):
            mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
            normal = (x - mean) * tf.math.rsqrt(variance + norm.epsilon)
            return normal * tf.cast(norm.scale, x.dtype) + tf.cast(norm.shift, x.dtype)

        gradients = []
        for function in (norm, formula):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = function(x)
            gradients.append(tape.gradient(y, [x, norm.scale, norm.shift], direction))
        for ours, autodiff in zip(*gradients):
            self.assertAllClose(ours, autodiff, rtol=1e-6, atol=1e-6)

    def test_a_large_mean_costs_no_precision(self):
        random = seeds(self)
        x = floats(random, 3, 64)
        self.assertAllClose(LayerNorm(64)(x + 512.0), LayerNorm(64)(x), atol=2e-3)


class DropoutTest(tf.test.TestCase):
    def test_share_and_mean(self):
        random = seeds(self)
        x = tf.ones([400, 500])
        for rate in (0.003, 0.1, 0.5, 0.9):
            y = Dropout(rate)(x, tf.constant([random.randrange(2**31), 7])).numpy()
            share = (y == 0).mean()
            # 200,000 draws: six deviations, and a fiftieth of the rate for its rounding.
            self.assertLess(abs(share - rate), 0.02 * rate + 6 * (rate * (1 - rate) / 200_000) ** 0.5)
            kept = np.unique(y[y > 0])
            self.assertLen(kept, 1)
            self.assertAllClose(kept[0] * (1 - rate), 1.0, rtol=0.02)

    def test_gradient_passes_where_units_stay(self):
        random = seeds(self)
        x = tf.abs(floats(random, 6, 11)) + 0.1
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = Dropout(0.3)(x, tf.constant([random.randrange(2**31), 1]))
        self.assertAllClose(tape.gradient(y, x), y / x, rtol=1e-5)

    def test_one_mask_for_relu_and_dropout(self):
        random = seeds(self)
        x, seed, dropout = floats(random, 7, 13), tf.constant([random.randrange(2**31), 2]), Dropout(0.4)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            found, apart = dropout.of_relu(x, seed), dropout(tf.nn.relu(x), seed)
        self.assertAllEqual(found, apart)
        self.assertAllEqual(tape.gradient(found, x), tape.gradient(apart, x))
        self.assertAllEqual(dropout.of_relu(x), tf.nn.relu(x))
        overflown = tf.tensor_scatter_nd_update(tf.cast(x, tf.float16), [[0, 0]], [-float('inf')])
        self.assertEqual(dropout.of_relu(overflown, seed)[0, 0], 0.0)

    def test_seed_and_layer_decide_what_is_dropped(self):
        random = seeds(self)
        x, seed = tf.ones([9, 40]), random.randrange(2**31)
        first, second = Dropout(0.4, name='first'), Dropout(0.4, name='second')
        self.assertAllEqual(first(x, tf.constant([seed, 1])), first(x, tf.constant([seed, 1])))
        self.assertNotAllEqual(first(x, tf.constant([seed, 1])), first(x, tf.constant([seed, 2])))
        self.assertNotAllEqual(first(x, tf.constant([seed, 1])), second(x, tf.constant([seed, 1])))
        self.assertIs(first(x), x)

    def test_units_share_their_fate_along_an_axis(self):
        random = seeds(self)
        y = Dropout(0.5, broadcast_axes=(-1,))(tf.ones([5, 31, 4]), tf.constant([random.randrange(2**31), 3])).numpy()
        self.assertAllEqual(y.min(axis=-1), y.max(axis=-1))
        self.assertLen(np.unique(y), 2)


class LinearTest(tf.test.TestCase):
    def test_product_at_every_rank(self):
        random = seeds(self)
        kernel, bias = floats(random, 5, 3), floats(random, 3)
        for shape in ([4, 5], [2, 4, 5], [2, 3, 4, 5], [1031, 5]):  # more rows than bfloat16 can count
            x = floats(random, *shape)
            expected = np.einsum('...d,de->...e', x, kernel) + bias.numpy()
            self.assertAllClose(matmul(x, kernel, bias=bias), expected, atol=1e-5)
            self.assertAllClose(matmul(x, tf.transpose(kernel), transposed=True, bias=bias), expected, atol=1e-5)
            narrow = [tf.cast(part, tf.bfloat16) for part in (x, kernel, bias)]
            with tf.GradientTape() as tape:
                tape.watch(narrow)
                product = tf.function(lambda x, kernel, bias: matmul(x, kernel, bias=bias))(*narrow)
            self.assertEqual((product.dtype, product.shape), (tf.bfloat16, expected.shape))
            self.assertAllClose(tf.cast(product, tf.float32), expected, atol=0.2)
            d_bias = tape.gradient(product, narrow)[2]
            self.assertAllEqual(d_bias, tf.cast(tf.fill([3], float(np.prod(shape[:-1]))), tf.bfloat16))
            upstream = floats(random, *expected.shape)
            with tf.GradientTape() as tape:
                tape.watch(bias)
                product = matmul(x, kernel, bias=bias)
            d_bias = tape.gradient(product, bias, upstream)
            self.assertAllClose(d_bias, upstream.numpy().reshape(-1, 3).sum(axis=0), rtol=1e-4, atol=1e-4)

    def test_weights_stored_for_decoding_say_the_same(self):
        random = seeds(self)
        linear, table, x = LinearOp(5, 3), LookUpOp(7, 5), floats(random, 4, 5)
        before = linear(x), table(tf.constant([[6, 2]]))
        for part in (linear, table):
            store_for_decoding(part, tf.float32)
        self.assertAllClose(before, (linear(x), table(tf.constant([[6, 2]]))), atol=1e-6)
        self.assertEqual(linear(tf.cast(x, tf.float32)).dtype, tf.float32)
        kinds = {op.type for op in tf.function(linear, autograph=False).get_concrete_function(x).graph.get_operations()}
        self.assertIn('AddV2', kinds)  # apart from the product, and with nothing kept for a gradient
        self.assertNoCommonElements(kinds, {'BiasAdd', 'IdentityN'})
