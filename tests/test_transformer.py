"""Transformer encoder and decoder: against NumPy, and what they promise."""

import itertools
import math

import numpy as np
import tensorflow as tf

from sequencing.layers import store_for_decoding
from sequencing.transformer import FeedForward, TransformerDecoder, TransformerEncoder
from tests.decoder_support import (
    attend_slowly,
    check_causal,
    check_encoder_padding,
    check_source_padding,
    check_steps_equal_whole,
    check_unknown_shapes,
    floats,
    linear,
    ragged_mask,
    randomise,
    source,
)
from tests.support import seeds

VARIANTS = [
    dict(activation='relu', pre_norm=True, positions='sinusoidal'),
    dict(activation='gelu', pre_norm=False, positions='learned', max_positions=4),
    dict(activation='swiglu', pre_norm=True, positions='rotary'),
    dict(activation='relu', pre_norm=False, positions='none', scale_embedding=False),
]


def make_encoder(random, **options):
    encoder = TransformerEncoder(5, size=12, heads=3, hidden_size=14, layers=2, **options)
    randomise(random, encoder)
    return encoder


def make_decoder(random, **options):
    decoder = TransformerDecoder(5, 7, size=12, heads=3, hidden_size=14, layers=2, **options)
    randomise(random, decoder)
    return decoder


def normal(x, layer):
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + layer.epsilon)
    return (x - x.mean(axis=-1, keepdims=True)) / deviation * layer.scale.numpy() + layer.shift.numpy()


class FeedForwardTest(tf.test.TestCase):
    def test_activations(self):
        random = seeds(self)
        x = floats(random, 4, 3)
        functions = {
            'relu': lambda h: np.maximum(h, 0),
            'gelu': lambda h: h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2))),
            'swiglu': lambda h: h[:, :5] / (1 + np.exp(-h[:, :5])) * h[:, 5:],
        }
        for name, function in functions.items():
            layer = FeedForward(3, 5, name)
            randomise(random, layer)
            expected = linear(function(linear(x, layer.inner)), layer.outer)
            self.assertAllClose(layer(x), expected, atol=1e-5)
        with self.assertRaisesRegex(ValueError, 'relu, gelu, swiglu'):
            FeedForward(3, 5, 'tanh')


class TransformerTest(tf.test.TestCase):
    def read_slowly(self, encoder, embedded):
        """A whole encoder on one sentence `[S, E]`, layer by layer in NumPy."""
        x = encoder.input(embedded[np.newaxis])[0].numpy().astype(np.float64)
        for layer in encoder.layers:
            for name in ('self', 'feed'):
                part = layer.self_attention if name == 'self' else layer.feed_forward
                residual = getattr(layer, f'{name}_residual')
                read = normal(x, residual.norm) if residual.pre_norm else x
                if name == 'self':
                    queries, keys, values = np.split(linear(read, part.projection), 3, axis=-1)
                    found = linear(attend_slowly(queries, keys, values, 3, lambda t, s: True)[0], part.output)
                else:
                    found = linear(np.maximum(linear(read, part.inner), 0), part.outer)
                x = x + found
                x = x if residual.pre_norm else normal(x, residual.norm)
        return normal(x, encoder.final_norm) if encoder.final_norm else x

    def test_encoder_is_numpy(self):
        random = seeds(self)
        for pre_norm in (True, False):
            encoder = make_encoder(random, pre_norm=pre_norm)
            embedded = floats(random, 4, 5)
            outputs = encoder(embedded[tf.newaxis], tf.ones([1, 4], bool)).outputs[0]
            self.assertAllClose(outputs, self.read_slowly(encoder, embedded), atol=1e-4)

    def test_encoder_ignores_padding(self):
        random = seeds(self)
        for options in VARIANTS:
            check_encoder_padding(self, random, make_encoder(random, **options), 5)

    def test_steps_with_caches_are_the_whole(self):
        random = seeds(self)
        for options, width in itertools.product(VARIANTS, (1, 3)):
            with self.subTest(width=width, **options):
                encoded = source(random, 2, 4, 7)
                check_steps_equal_whole(self, random, make_decoder(random, **options), 5, encoded, width)

    def test_decoder_sees_no_future_and_no_padding(self):
        random = seeds(self)
        for options in VARIANTS:
            decoder, encoded = make_decoder(random, **options), source(random, 3, 4, 7)
            check_causal(self, random, decoder, 5, encoded)
            check_source_padding(self, random, decoder, 5, encoded)

    def test_order_matters_where_positions_tell_it(self):
        random = seeds(self)
        embedded, mask = floats(random, 1, 5, 5), tf.ones([1, 5], bool)
        for options in VARIANTS:
            encoder = make_encoder(random, **options)
            forwards = encoder(embedded, mask).outputs
            backwards = encoder(embedded[:, ::-1], mask).outputs[:, ::-1]
            apart = float(tf.reduce_max(tf.abs(forwards - backwards)))
            if options['positions'] == 'none':
                self.assertLess(apart, 1e-4)
            else:
                self.assertGreater(apart, 1e-2)

    def test_one_trace_for_all_shapes(self):
        random = seeds(self)
        encoder, decoder = make_encoder(random), make_decoder(random)
        embedded, mask = floats(random, 3, 6, 5), ragged_mask(random, 3, 6)
        check_unknown_shapes(self, lambda e, m: encoder(e, m).outputs, embedded, mask)
        encoded = source(random, 3, 4, 7)
        check_unknown_shapes(
            self,
            lambda e, m, outputs, seen: decoder(e, encoded._replace(outputs=outputs, mask=seen), m),
            embedded, mask, encoded.outputs, encoded.mask,
        )  # fmt: skip

    def test_recomputing_changes_no_gradient(self):
        random = seeds(self)
        options = dict(dropout=0.2, attention_dropout=0.2, hidden_dropout=0.2)
        decoder = make_decoder(random, **options)
        encoded, mask = source(random, 2, 4, 7), tf.ones([2, 6], bool)
        # The order of float32 sums may differ between the two.
        embedded, direction = (tf.cast(floats(random, 2, 6, size), tf.float64) for size in (5, 12))
        encoded = encoded._replace(outputs=tf.cast(encoded.outputs, tf.float64))

        @tf.function(autograph=False)
        def gradients():
            with tf.GradientTape() as tape:
                tape.watch(encoded.outputs)
                features = decoder(embedded, encoded, mask, tf.constant([3, 4]))[0]
            return tape.gradient(features, [encoded.outputs, *decoder.trainable_variables], direction)

        plain = gradients()
        decoder.recompute = True
        gradients = tf.function(gradients.python_function, autograph=False)
        for first, second in zip(plain, gradients()):
            self.assertAllClose(tf.convert_to_tensor(first), tf.convert_to_tensor(second), atol=1e-5)

    def test_dropout_follows_its_seed(self):
        random = seeds(self)
        encoder = make_encoder(random, dropout=0.3, attention_dropout=0.3, hidden_dropout=0.3)
        embedded, mask = floats(random, 2, 6, 5), tf.ones([2, 6], bool)
        first, same, other, none = [
            encoder(embedded, mask, seed if seed is None else tf.constant(seed)).outputs
            for seed in ([1, 2], [1, 2], [1, 3], None)
        ]
        self.assertAllEqual(first, same)
        self.assertNotAllClose(first, other, atol=1e-2)
        self.assertNotAllClose(first, none, atol=1e-2)

    def test_bfloat16_stays_near_float32(self):
        random = seeds(self)
        encoder, decoder = make_encoder(random), make_decoder(random)
        embedded, mask, encoded = floats(random, 2, 6, 5), tf.ones([2, 6], bool), source(random, 2, 4, 7)
        narrow = encoded._replace(outputs=tf.cast(encoded.outputs, tf.bfloat16))
        for wide, close in (
            (encoder(embedded, mask).outputs, encoder(tf.cast(embedded, tf.bfloat16), mask).outputs),
            (decoder(embedded, encoded, mask)[0], decoder(tf.cast(embedded, tf.bfloat16), narrow, mask)[0]),
        ):
            self.assertEqual(close.dtype, tf.bfloat16)
            self.assertAllClose(tf.cast(close, tf.float32), wide, atol=0.3)

    def test_weights_stored_for_decoding_say_the_same(self):
        random = seeds(self)
        for options in VARIANTS:
            encoder, decoder = make_encoder(random, **options), make_decoder(random, **options)
            embedded, mask, encoded = floats(random, 2, 6, 5), ragged_mask(random, 2, 6), source(random, 2, 4, 7)
            before = encoder(embedded, mask).outputs, decoder(embedded, encoded, mask)[0]
            for part in (encoder, decoder):
                store_for_decoding(part, tf.float32)
            after = encoder(embedded, mask).outputs, decoder(embedded, encoded, mask)[0]
            self.assertAllClose(before, after, atol=5e-5)
            for width in (1, 3):
                check_steps_equal_whole(self, random, decoder, 5, encoded, width)

    def test_wrong_sizes_are_refused(self):
        random = seeds(self)
        with self.assertRaisesRegex(ValueError, r'\[B, T, 5\]'):
            make_encoder(random)(tf.zeros([2, 3, 6]), tf.ones([2, 3], bool))
        with self.assertRaisesRegex(ValueError, 'in pairs; a head has 3'):
            TransformerEncoder(5, size=9, heads=3, hidden_size=4, layers=1, positions='rotary')
