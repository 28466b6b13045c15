"""Length predictors of both kinds against plain loops."""

import math
import unittest

import numpy as np
import tensorflow as tf

from sequencing.length_predictors import LogisticLength, SoftmaxLength
from tests.flow_support import random_normal
from tests.support import seeds


class LengthTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        tf.random.set_seed(self.random.randrange(2**31))
        self.context = random_normal(self.random, [5, 6])
        self.src = np.array([1, 2, 5, 9, 14], np.int32)

    def test_softmax_against_a_loop(self):
        reach, unit, smoothing = 7, 3, 0.2
        predictor = SoftmaxLength(6, reach, unit, label_smoothing=smoothing)
        logits = predictor.raw(self.context).numpy()
        trg = np.array([30, 3, 1, 6, 3], np.int32)
        smoothed, plain = predictor.loss(self.context, tf.constant(self.src), tf.constant(trg))
        lengths, log_probs = predictor.predict(self.context, tf.constant(self.src), 2)
        for i, source in enumerate(self.src.tolist()):
            classes = {
                source + k - reach: logits[i, k] for k in range(2 * reach + 1) if (source + k - reach) % unit == 0
            }
            total = np.logaddexp.reduce(list(classes.values()))
            target = math.ceil(max(int(trg[i]), source - reach) / unit) * unit
            target = min(target, source + reach) // unit * unit
            nll = total - classes[target]
            self.assertAllClose(plain[i], nll, 1e-6, 1e-6)
            mean = np.mean([total - value for value in classes.values()])
            self.assertAllClose(smoothed[i], (1 - smoothing) * nll + smoothing * mean, 1e-6, 1e-6)
            best = sorted(((value - total, n) for n, value in classes.items() if n > 0), reverse=True)[:2]
            self.assertAllEqual(lengths[i], [n for _, n in best])
            self.assertAllClose(log_probs[i], [value for value, _ in best], 1e-6, 1e-6)

    def test_longer_lengths_are_cut_and_stand_once(self):
        for predictor in (SoftmaxLength(6, 7, 3), LogisticLength(6, 7, 3, mixtures=2)):
            for longest in (3, 6, 12, 99):
                free, free_logs = predictor.predict(self.context, tf.constant(self.src), predictor.most_lengths)
                cut, cut_logs = predictor.predict(self.context, tf.constant(self.src), predictor.most_lengths, longest)
                for i in range(len(self.src)):
                    best = {}  # of each length that is left, its likeliest
                    for length, log_prob in zip(free[i].numpy().tolist(), free_logs[i].numpy().tolist()):
                        if log_prob > -math.inf:
                            best[min(length, longest)] = max(log_prob, best.get(min(length, longest), -math.inf))
                    wanted = sorted(((log_prob, length) for length, log_prob in best.items()), reverse=True)
                    found = np.isfinite(cut_logs[i])
                    self.assertEqual(cut[i].numpy()[found].tolist(), [length for _, length in wanted])
                    self.assertAllClose(cut_logs[i].numpy()[found], [log_prob for log_prob, _ in wanted])

    def test_the_nearest_length_is_one_that_is_predicted(self):
        """For either kind: a length that can be told is its own nearest, and others are rounded up to one, or down to
        the largest."""
        sources = [1, 2, 3, 5, 8, 9, 14]
        context = random_normal(self.random, [len(sources), 6])
        for reach, unit in ((4, 1), (5, 2), (6, 2), (4, 3), (7, 3), (4, 4), (9, 4)):
            softmax, logistic = SoftmaxLength(6, reach, unit), LogisticLength(6, reach, unit, mixtures=2)
            ends = {  # the largest length of a source of `n` tokens
                softmax: lambda n: (n + reach) // unit * unit,
                logistic: lambda n: -(-(n + reach) // unit) * unit,
            }
            for predictor, largest in ends.items():
                found = predictor.predict(context, tf.constant(sources), predictor.most_lengths)
                for source, lengths, log_probs in zip(sources, *[x.numpy() for x in found]):
                    told = sorted(lengths[np.isfinite(log_probs)].tolist())
                    self.assertEqual(told[-1], largest(source))
                    wanted = np.arange(1, source + 2 * reach + 3 * unit)
                    got = predictor.expressible(tf.fill(wanted.shape, source), tf.constant(wanted, tf.int32))
                    want = [min((n for n in told if n >= length), default=told[-1]) for length in wanted]
                    self.assertAllEqual(got, want, msg=f'{predictor.name} of {source}, {reach}, {unit}')

    def test_logistic_is_a_distribution_of_differences(self):
        predictor = LogisticLength(6, 7, 2, mixtures=3)
        for scale in (1.0, 6.0):
            predictor.output.kernel.assign(scale * random_normal(self.random, [6, 9], tf.float32))
            all_differences = tf.tile(tf.range(-7, 8)[tf.newaxis], [5, 1])
            log_probs = predictor.log_probs(self.context, all_differences)
            self.assertAllClose(tf.reduce_logsumexp(log_probs, axis=1), np.zeros(5), atol=2e-3)

    def test_logistic_against_a_loop(self):
        reach, unit = 6, 4
        predictor = LogisticLength(6, reach, unit, mixtures=2)
        raw = predictor.raw(self.context).numpy()
        lengths, log_probs = predictor.predict(self.context, tf.constant(self.src), 2)
        for i, source in enumerate(self.src.tolist()):
            weights, means, scales = np.split(raw[i], 3)
            weights = np.exp(weights) / np.exp(weights).sum()
            best = {}
            for difference in range(-reach, reach + 1):
                below, above = [
                    1 / (1 + np.exp(-(difference / reach + shift - means) / np.exp(scales)))
                    for shift in (-0.5 / reach, 0.5 / reach)
                ]
                below = below if difference > -reach else 0.0
                above = above if difference < reach else 1.0
                length = max(unit, math.ceil((source + difference) / unit) * unit)
                best[length] = max(best.get(length, 0.0), float(np.sum(weights * (above - below))))
            ranked = sorted(best.items(), key=lambda item: -item[1])[:2]
            self.assertAllEqual(lengths[i], [length for length, _ in ranked])
            self.assertAllClose(log_probs[i], [math.log(p) for _, p in ranked], 1e-4, 1e-4)


if __name__ == '__main__':
    unittest.main()
