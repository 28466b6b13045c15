"""Positions, against formulas by hand."""

import math

import numpy as np
import tensorflow as tf

from sequencing.positions import LearnedPositions, SinusoidalPositions, TokenInput, rotate, rotation
from tests.decoder_support import floats
from tests.support import seeds


class PositionsTest(tf.test.TestCase):
    def test_sinusoids_are_the_waves_of_the_formula_wherever_they_start(self):
        found = SinusoidalPositions(6)(2, 5, tf.float32).numpy()
        for row, place in enumerate(range(3, 8)):  # counted from 1
            rates = [10000.0 ** (-i / 2) for i in range(3)]
            expected = [math.sin(place * r) for r in rates] + [math.cos(place * r) for r in rates]
            self.assertAllClose(found[row], expected, atol=1e-6)

    def test_learned_positions_end_in_their_last_row(self):
        positions = LearnedPositions(4, 3)
        self.assertAllEqual(positions(1, 5, tf.float32), tf.gather(positions.table, [1, 2, 3, 3, 3]))

    def test_rotation_turns_pairs_by_their_angle(self):
        random = seeds(self)
        x = floats(random, 5, 6)
        turned = rotate(x, *rotation(3, 5, 6, tf.float32)).numpy()
        for row in range(5):
            for i in range(3):
                angle = (row + 3) * 10000.0 ** (-2 * i / 6)
                pair = complex(x[row, i], x[row, i + 3]) * complex(math.cos(angle), math.sin(angle))
                self.assertAllClose([turned[row, i], turned[row, i + 3]], [pair.real, pair.imag], atol=1e-5)

    def test_rotated_products_depend_on_distance_alone(self):
        random = seeds(self)
        query, key = floats(random, 1, 8), floats(random, 1, 8)

        def product(t, s):
            turned = [rotate(x, *rotation(place, 1, 8, tf.float32)) for x, place in ((query, t), (key, s))]
            return float(tf.reduce_sum(turned[0] * turned[1]))

        self.assertAllClose(product(9, 4), product(25, 20), atol=1e-4)

    def test_input_is_scaled_projected_and_placed(self):
        random = seeds(self)
        embedded = floats(random, 2, 5, 4)
        entry = TokenInput(4, 6)
        expected = embedded * 2.0 @ entry.projection.kernel + SinusoidalPositions(6)(3, 5, tf.float32)
        self.assertAllClose(entry(embedded, start=3), expected, atol=1e-5)
        same = entry(embedded, start=3, same_place=True)
        self.assertAllClose(same[:, 2], entry(embedded[:, 2:3], start=3)[:, 0], atol=1e-5)

    def test_input_refuses_what_it_was_not_made_for(self):
        with self.assertRaisesRegex(ValueError, r'\[B, T, 4\]; got \(2, 5, 3\)'):
            TokenInput(4, 4)(tf.zeros([2, 5, 3]))
        with self.assertRaisesRegex(ValueError, 'sinusoidal, learned, rotary'):
            TokenInput(4, 4, positions='cosine')

    def test_precision_is_that_of_the_input(self):
        for positions in ('sinusoidal', 'learned'):
            entry = TokenInput(4, 6, positions)
            for dtype in (tf.bfloat16, tf.float64):
                self.assertEqual(entry(tf.zeros([1, 2, 4], dtype)).dtype, dtype)
        self.assertAllClose(np.float32(rotation(0, 2, 4, tf.bfloat16)[0][0]), np.ones(4))
