"""Gated convolutions: against NumPy loops, and what they promise."""

import itertools

import numpy as np
import tensorflow as tf

from sequencing.convolutional import HALF, ConvDecoder, ConvEncoder, GatedConvolution
from tests.decoder_support import (
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


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def convolve_slowly(layer, x):
    """A window at each step of `[T, D]`, gathered frame by frame."""
    kernel = layer.linear.kernel
    kernel = kernel(tf.float32).numpy() if callable(kernel) else kernel.numpy()
    kernel = kernel.reshape([layer.width, layer.size, 2 * layer.size])
    y = np.tile(layer.linear.bias.numpy().astype(np.float64), [len(x), 1])
    for t in range(len(x)):
        for i in range(layer.width):
            if 0 <= t + i - layer.before < len(x):
                y[t] += x[t + i - layer.before] @ kernel[i]
    return y[:, : layer.size] * sigmoid(y[:, layer.size :])


def make_encoder(random, **options):
    encoder = ConvEncoder(5, 6, layers=2, **options)
    randomise(random, encoder)
    return encoder


def make_decoder(random, **options):
    decoder = ConvDecoder(5, 7, 6, layers=2, **options)
    randomise(random, decoder)
    return decoder


class ConvolutionalTest(tf.test.TestCase):
    def test_convolution_is_the_slow_loop(self):
        random = seeds(self)
        x = floats(random, 5, 3)
        for causal, width in ((False, 3), (False, 5), (True, 2), (True, 4), (True, 1)):
            layer = GatedConvolution(3, width, causal, random.random() < 0.5, 0.0)
            randomise(random, layer)
            self.assertAllClose(layer(x[tf.newaxis])[0], convolve_slowly(layer, x.numpy()), atol=1e-5)

    def test_weight_norm_is_length_times_direction(self):
        random = seeds(self)
        layer = GatedConvolution(3, 3, True, True, 0.0)
        randomise(random, layer)
        lengths = np.linalg.norm(layer.linear.kernel(tf.float32), axis=0)
        self.assertAllClose(lengths, np.abs(layer.linear.gain.numpy()), atol=1e-5)

    def test_encoder_is_numpy(self):
        random = seeds(self)
        encoder = make_encoder(random)
        embedded = floats(random, 4, 5)
        placed = encoder.input(embedded[tf.newaxis])[0].numpy()
        x = linear(placed, encoder.enter)
        for layer in encoder.layers:
            x = (x + convolve_slowly(layer, x)) * HALF
        expected = (linear(x, encoder.leave) + placed) * HALF
        self.assertAllClose(encoder(embedded[tf.newaxis], tf.ones([1, 4], bool)).outputs[0], expected, atol=1e-4)

    def test_decoder_is_numpy(self):
        random = seeds(self)
        decoder = make_decoder(random, width=2)
        embedded, outputs = floats(random, 4, 5), floats(random, 3, 7)
        placed = decoder.input(embedded[tf.newaxis])[0].numpy()
        x = linear(placed, decoder.enter)
        parts = np.split(linear(outputs, decoder.source.projection), 4, axis=-1)
        for i, layer in enumerate(decoder.layers):
            gated = convolve_slowly(layer.convolution, x)
            scores = (linear(gated, layer.query) + placed) * HALF @ parts[2 * i].T / np.sqrt(6)
            weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
            found = linear(weights @ parts[2 * i + 1] * np.sqrt(3), layer.output)
            x = ((gated + found) * HALF + x) * HALF
        encoded = source(random, 1, 3, 7)._replace(outputs=outputs[tf.newaxis])
        features, shown = decoder(embedded[tf.newaxis], encoded, tf.ones([1, 4], bool))
        self.assertAllClose(features[0], linear(x, decoder.leave), atol=1e-4)
        self.assertAllClose(shown[0], weights, atol=1e-5)

    def test_encoder_ignores_padding(self):
        random = seeds(self)
        for norm in (False, True):
            check_encoder_padding(self, random, make_encoder(random, weight_norm=norm, width=5), 5)

    def test_steps_with_caches_are_the_whole(self):
        random = seeds(self)
        for (window, norm), width in itertools.product(((3, False), (4, True), (1, False)), (1, 3)):
            with self.subTest(window=window, norm=norm, width=width):
                decoder = make_decoder(random, width=window, weight_norm=norm)
                check_steps_equal_whole(self, random, decoder, 5, source(random, 2, 4, 7), width)

    def test_decoder_sees_no_future_and_no_padding(self):
        random = seeds(self)
        decoder, encoded = make_decoder(random), source(random, 3, 4, 7)
        check_causal(self, random, decoder, 5, encoded)
        check_source_padding(self, random, decoder, 5, encoded)

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

    def test_bfloat16_stays_near_float32(self):
        random = seeds(self)
        encoder = make_encoder(random)
        embedded, mask = floats(random, 2, 6, 5), tf.ones([2, 6], bool)
        narrow = encoder(tf.cast(embedded, tf.bfloat16), mask).outputs
        self.assertEqual(narrow.dtype, tf.bfloat16)
        wide = encoder(embedded, mask).outputs  # far from 1, so that only shares say something
        self.assertLess(tf.norm(tf.cast(narrow, tf.float32) - wide) / tf.norm(wide), 0.06)

    def test_wrong_sizes_are_refused(self):
        with self.assertRaisesRegex(ValueError, 'odd number of steps; got 4'):
            ConvEncoder(5, 6, width=4)
        with self.assertRaisesRegex(ValueError, r'\[B, T, 5\]'):
            ConvEncoder(5, 6)(tf.zeros([2, 3, 4]), tf.ones([2, 3], bool))
