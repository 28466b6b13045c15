"""Every family learns toy tasks through the real commands, from a random seed, to a bar."""

import os
import tempfile
import unittest

from sequencing.translator import load
from tests.support import seeds
from tests.toy import TASKS, start, train_command, write_task

SETTINGS = ('train.max_steps=1500', 'train.batch_size=64', 'train.schedule=cosine', 'train.warmup_steps=50',
            'train.learning_rate=4e-3', 'train.clip_norm=1.0', 'train.save_every=500', 'train.validate_every=500',
            'train.log_every=100', 'model.encoder.state_size=96', 'model.decoder.state_size=96',
            'model.decoder.attention_size=48', 'model.decoder.readout_size=48', 'model.embedding_size=32')  # fmt: skip


class LearningTest(unittest.TestCase):
    def test_the_rnn_learns_to_copy_reverse_and_sort(self):
        random = seeds(self)
        for task in TASKS:
            with tempfile.TemporaryDirectory() as folder, self.subTest(task):
                config = write_task(os.path.join(folder, 'data'), task, random, longest=10, train=20_000, dev=200)
                model_dir = os.path.join(folder, 'model')
                seed = f'seed={random.randrange(1000)}'
                process = start(train_command(config, model_dir, *SETTINGS, seed))
                output, _ = process.communicate()
                self.assertEqual(process.returncode, 0, output)
                with open(f'{folder}/data/dev.src') as src, open(f'{folder}/data/dev.trg') as trg:
                    source, target = src.read().splitlines(), trg.read().splitlines()
                for mode in ('greedy', 'beam'):
                    right = sum(a == b for a, b in zip(load(model_dir).translate(source, decode=mode), target))
                    self.assertGreaterEqual(right, 180, f'{task}, {mode}: {right} of 200 lines\n{output[-2000:]}')


if __name__ == '__main__':
    unittest.main()
