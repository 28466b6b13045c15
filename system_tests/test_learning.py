"""Every autoregressive family learns toy tasks through the real commands, from a random seed, to a bar."""

import os
import tempfile
import unittest

from sequencing.translator import load
from tests.support import seeds
from tests.toy import start, train_command, write_task

TRAINING = ('train.max_steps=1500', 'train.batch_size=64', 'train.schedule=cosine', 'train.clip_norm=1.0',
            'train.save_every=500', 'train.validate_every=500', 'train.log_every=100')  # fmt: skip
RNN_TRAINING = ('train.warmup_steps=50', 'train.learning_rate=4e-3')
OTHER_TRAINING = ('train.warmup_steps=200', 'train.learning_rate=2e-3')
MODES = {'greedy': {}, 'beam': {}, 'sample': {'temperature': 0.5}}


def rnn(part, *more):
    return (f'model.{part}.kind=rnn', f'model.{part}.state_size=96', *more)


def transformer(part):
    return (f'model.{part}.kind=transformer', f'model.{part}.layers=2', f'model.{part}.size=64',
            f'model.{part}.heads=4', f'model.{part}.hidden_size=256', f'model.{part}.dropout=0.0')  # fmt: skip


def conv(part):
    return (f'model.{part}.kind=conv', f'model.{part}.layers=4', f'model.{part}.size=64', f'model.{part}.dropout=0.0')


RNN_DECODER = rnn('decoder', 'model.decoder.attention_size=48', 'model.decoder.readout_size=48')


class Learning:
    """The tests of one family; subclasses say which settings make it."""

    def learns(self, task):
        random = seeds(self)
        with tempfile.TemporaryDirectory() as folder:
            config = write_task(os.path.join(folder, 'data'), task, random, longest=10, train=20_000, dev=200)
            model_dir = os.path.join(folder, 'model')
            seed = f'seed={random.randrange(1000)}'
            process = start(train_command(config, model_dir, *TRAINING, *self.settings, seed))
            output, _ = process.communicate()
            self.assertEqual(process.returncode, 0, output)
            with open(f'{folder}/data/dev.src') as src, open(f'{folder}/data/dev.trg') as trg:
                source, target = src.read().splitlines(), trg.read().splitlines()
            for mode, options in MODES.items():
                right = sum(a == b for a, b in zip(load(model_dir).translate(source, decode=mode, **options), target))
                print(f'{type(self).__name__} {task}, {mode}: {right} of 200 lines, {seed}')
                self.assertGreaterEqual(right, 180, f'{task}, {mode}: {right} of 200 lines\n{output[-2000:]}')

    def test_copy(self):
        self.learns('copy')

    def test_reverse(self):
        self.learns('reverse')

    def test_sort(self):
        self.learns('sort')


class RNNTest(Learning, unittest.TestCase):
    settings = (*RNN_TRAINING, 'model.embedding_size=32', *rnn('encoder'), *RNN_DECODER)


class TransformerTest(Learning, unittest.TestCase):
    settings = (*OTHER_TRAINING, 'model.embedding_size=64', *transformer('encoder'), *transformer('decoder'))


class ConvolutionalTest(Learning, unittest.TestCase):
    settings = (*OTHER_TRAINING, 'model.embedding_size=64', *conv('encoder'), *conv('decoder'))


class RNNToTransformerTest(Learning, unittest.TestCase):
    settings = (*OTHER_TRAINING, 'model.embedding_size=64', *rnn('encoder'), *transformer('decoder'))


class TransformerToRNNTest(Learning, unittest.TestCase):
    settings = (*OTHER_TRAINING, 'model.embedding_size=64', *transformer('encoder'), *RNN_DECODER)


if __name__ == '__main__':
    unittest.main()
