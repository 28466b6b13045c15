"""Multi-head attention, against one loop over everything."""

import numpy as np
import tensorflow as tf

from sequencing.multi_head_attention import (
    HeadAttention,
    SelfAttention,
    SourceAttention,
    SourceProjection,
    causal_penalty,
    source_penalty,
)
from tests.decoder_support import attend_slowly, floats, linear, ragged_mask, randomise
from tests.support import seeds


class MultiHeadAttentionTest(tf.test.TestCase):
    def test_self_attention_is_the_slow_loop(self):
        random = seeds(self)
        layer = SelfAttention(6, 3)
        randomise(random, layer)
        x, mask = floats(random, 2, 5, 6), ragged_mask(random, 2, 5)
        flat = tf.reshape(x, [10, 6])
        for causal in (False, True):
            found = layer(flat, 2, causal_penalty(5) if causal else source_penalty(mask))
            for b in range(2):
                queries, keys, values = np.split(linear(x[b], layer.projection), 3, axis=-1)
                see = (lambda t, s: s <= t) if causal else (lambda t, s, b=b: bool(mask[b, s]))
                expected = linear(attend_slowly(queries, keys, values, 3, see)[0], layer.output)
                self.assertAllClose(found[5 * b : 5 * b + 5], expected, atol=1e-5)

    def test_source_attention_is_the_slow_loop_in_every_layer(self):
        random = seeds(self)
        source, layer = SourceProjection(7, 6, 2, layers=3), SourceAttention(6, 2)
        randomise(random, source)
        randomise(random, layer)
        outputs, mask, x = floats(random, 2, 5, 7), ragged_mask(random, 2, 5), floats(random, 2, 4, 6)
        for i, (keys, values) in enumerate(source(outputs)):
            found, weights = layer(tf.reshape(x, [8, 6]), (2, -1), keys, values, source_penalty(mask))
            for b in range(2):
                parts = np.split(linear(outputs[b], source.projection), 6, axis=-1)
                expected, expected_weights = attend_slowly(
                    linear(x[b], layer.query), parts[2 * i], parts[2 * i + 1], 2, lambda t, s, b=b: bool(mask[b, s])
                )
                self.assertAllClose(found[4 * b : 4 * b + 4], linear(expected, layer.output), atol=1e-5)
                self.assertAllClose(weights[b], expected_weights, atol=1e-6)

    def test_an_empty_source_gives_numbers(self):
        keys = tf.zeros([1, 2, 3, 4])
        nothing = source_penalty(tf.zeros([1, 3], bool))
        found, weights = HeadAttention(8, 2)(tf.ones([1, 2, 5, 4]), keys, keys + 2.0, nothing)
        self.assertAllClose(found, np.full([1, 2, 5, 4], 2.0))
        self.assertAllClose(tf.reduce_sum(weights, axis=-1), np.ones([1, 2, 5]))

    def test_attention_dropout_drops_weights_and_keeps_their_mean(self):
        random = seeds(self)
        compare = HeadAttention(8, 2, dropout=0.25)
        queries, values = tf.zeros([3, 2, 5, 4]), tf.ones([3, 2, 400, 4])
        seed = tf.constant([random.randrange(2**31), 1])
        found = compare(queries, values, values, None, seed)[0]
        # Each of 400 equal weights stays with chance 3/4: the sum has deviation sqrt(1/3 / 400) = 0.029.
        self.assertAllClose(found, np.ones([3, 2, 5, 4]), atol=0.2)
        self.assertGreater(float(tf.math.reduce_std(found)), 0.005)

    def test_bfloat16_stays_near_float32(self):
        random = seeds(self)
        layer = SelfAttention(8, 2)
        x = floats(random, 6, 8)
        narrow = layer(tf.cast(x, tf.bfloat16), 2, None)
        self.assertEqual(narrow.dtype, tf.bfloat16)
        self.assertAllClose(tf.cast(narrow, tf.float32), layer(x, 2, None), atol=0.1)

    def test_heads_that_do_not_divide_are_refused(self):
        with self.assertRaisesRegex(ValueError, '3 heads cannot share 8 units'):
            SelfAttention(8, 3)
