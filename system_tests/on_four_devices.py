"""What `test_distribution.py` runs in a process of its own: the long forms of `tests/on_four_devices.py`."""

import unittest

import numpy as np

from sequencing.distribution import Distribution
from tests import on_four_devices

WAYS = [(1, 3), (2, 1), (3, 2), (4, 1), (4, 2), (4, 3)]  # devices, and batches an update


class TracedReplicasTest(on_four_devices.ReplicasTest):
    """As there, with `tf.function`, as training is, and larger models."""

    eager, large = False, True


class LongReplicasTest(on_four_devices.ReplicasTestCase):
    large = True

    def test_every_family_has_the_same_gradient_on_any_number_of_replicas(self):
        for family in ('rnn', 'transformer', 'flow'):
            with self.subTest(family):
                self.check_same_gradient(family, WAYS)


class TenUpdatesTest(on_four_devices.ReplicasTestCase):
    def test_ten_updates_end_at_the_same_weights(self):
        for family in ('rnn', 'transformer', 'flow'):
            with self.subTest(family):
                self.check_updates(*self.prepare(family, batches=10, learning_rate=0.1, clip_norm=0.5, ema=0.7))

    def check_updates(self, config, vocab, start, batches):
        ends = []
        for distribution in (Distribution(), on_four_devices.cpus(2), on_four_devices.cpus(4)):
            training = on_four_devices.Training(config, vocab, distribution, start, dropout=False)
            for batch in batches:
                training.do(batch)
            averages = on_four_devices.copies(distribution, training.optimizer._model_variables_moving_average)
            ends.append(training.weights() + [average[0] for average in averages])
        self.assertGreater(max(np.abs(new - old).max() for new, old in zip(ends[0], start)), 0.01)
        for several in ends[1:]:
            for got, want in zip(several, ends[0], strict=True):
                self.assertAllClose(got, want, atol=1e-5)


if __name__ == '__main__':
    unittest.main()
