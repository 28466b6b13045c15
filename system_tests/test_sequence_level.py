"""What is written earns more after sequence-level training than before."""

import tempfile

import tensorflow as tf

from sequencing.config import TransformerDecoderConfig
from tests.test_sequence_level import TrainingTestCase, tiny_config


class RewardTest(TrainingTestCase):
    def test_minimum_risk_raises_the_reward(self):
        first, last = self.check(tiny_config('mrt', self.draw.randrange(1000), alpha=1.0, samples=5), 70)
        self.assertGreater(last['reward'], first['reward'] + 0.1)

    def test_mixer_raises_the_reward(self):
        decoder = TransformerDecoderConfig(layers=1, size=8, heads=2, hidden_size=12)
        config = tiny_config('mixer', self.draw.randrange(1000), decoder=decoder, burn_in_step=1, increment_step=1)
        with tempfile.TemporaryDirectory() as folder:
            first, last = self.check(config, 150, folder)
        self.assertGreater(last['reward'], first['reward'] + 0.05)


if __name__ == '__main__':
    tf.test.main()
