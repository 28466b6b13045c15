"""Every family learns toy tasks, and one tagging, through the real commands, from a random seed, to a bar."""

import os
import tempfile
import unittest

from sequencing.text import read_lines
from sequencing.translator import load
from tests.support import seeds
from tests.toy import ROOT, start, train_command, write_task
from tools import tag_accuracy
from tools.make_tag_data import write_tag_data

TRAINING = ('train.max_steps=1500', 'train.batch_size=64', 'train.schedule=cosine', 'train.clip_norm=1.0',
            'train.save_every=500', 'train.validate_every=500', 'train.log_every=100')  # fmt: skip
RNN_TRAINING = ('train.warmup_steps=50', 'train.learning_rate=4e-3')
OTHER_TRAINING = ('train.warmup_steps=200', 'train.learning_rate=2e-3')
FLOW = """

def config_learning_flow():
    toy = config_toy()
    still = dict(dropout=0.0, word_dropout=0.0)
    return dataclasses.replace(
        toy,
        model=FlowSeqConfig(
            embedding_size=128, latent_size=128, hidden_size=256, tie_output=True,
            encoder=FlowTransformerEncoderConfig(layers=3, heads=4, dropout=0.0, embedding_dropout=0.0),
            posterior=FlowTransformerPosteriorConfig(layers=1, heads=4, embedding_dropout=0.0, **still),
            decoder=FlowTransformerDecoderConfig(layers=3, heads=4, copy_source=True, **still),
            length=SoftmaxLengthConfig(dropout=0.0),
            prior=FlowPriorConfig(steps=(1,), factors=(), hidden_size=64, heads=4),
        ),
        train=TrainConfig(
            learning_rate=1.5e-3, schedule='cosine', beta_2=0.98, warmup_steps=50, clip_norm=1.0, batch_size=64,
            batch_unit='sentences', max_steps=3500, validate_every=1000, save_every=1000, log_every=100,
            flow=FlowTrainConfig(
                reconstruction_steps=300, reconstruction_warmup=200, kl_warmup_steps=50, glancing=1.0,
                glancing_to=0.1,
            ),
        ),
    )
"""
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

    config = 'config_toy'
    training = TRAINING
    modes = MODES
    sentences = {'longest': 10}
    bars = {'copy': 0.9, 'reverse': 0.9, 'sort': 0.9}

    def learns(self, task):
        random = seeds(self)
        with tempfile.TemporaryDirectory() as folder:
            config = write_task(f'{folder}/data', task, random, train=20_000, dev=200, **self.sentences)
            with open(config, 'a') as file:
                file.write(FLOW)
            model_dir, seed = os.path.join(folder, 'model'), f'seed={random.randrange(1000)}'
            settings = (*self.training, *self.settings, seed)
            process = start(train_command(config, model_dir, *settings, config=self.config))
            output, _ = process.communicate()
            self.assertEqual(process.returncode, 0, output)
            with open(f'{folder}/data/dev.src') as src, open(f'{folder}/data/dev.trg') as trg:
                source, target = src.read().splitlines(), trg.read().splitlines()
            for mode, options in self.modes.items():
                translations = load(model_dir).translate(source, decode=mode, **options)
                right = sum(a == b for a, b in zip(translations, target)) / len(target)
                print(f'{type(self).__name__} {task}, {mode}: {right:.1%} of the lines, {seed}')
                self.assertGreaterEqual(right, self.bars[task], f'{task}, {mode}\n{output[-2000:]}')

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


class FlowTest(Learning, unittest.TestCase):
    config = 'config_learning_flow'
    training = settings = ()
    modes = {'argmax': {}}
    sentences = {'words': [f'w{i}' for i in range(20)], 'shortest': 4, 'longest': 20}
    bars = {'copy': 0.95, 'reverse': 0.95, 'sort': 0.9}


class CharacterTest(Learning, unittest.TestCase):
    """Attention via attention, between the characters of the same text."""

    settings = (*RNN_TRAINING, 'model.embedding_size=32', 'model.encoder.kind=ava', 'model.encoder.state_size=96',
                *RNN_DECODER, 'model.decoder.attention=via', 'data.src_vocab.kind=characters',
                'data.trg_vocab.kind=characters')  # fmt: skip


class SubwordsToCharactersTest(Learning, unittest.TestCase):
    settings = (*RNN_TRAINING, 'model.embedding_size=32', *rnn('encoder'), *RNN_DECODER, 'data.src_vocab.kind=unigram',
                'data.src_vocab.size=40', 'data.trg_vocab.kind=characters', 'decode.length_ratio=12.0')  # fmt: skip


class TaggingTest(unittest.TestCase):
    def test_a_small_model_tags_sentences_it_has_not_seen(self):
        """What `config_word2pos` makes of the demo's English in a few minutes."""
        settings = {
            'data.dev_src': '', 'data.dev_trg': '[]', 'model.embedding_size': 64, 'model.encoder.state_size': 128,
            'model.decoder.state_size': 128, 'model.decoder.attention_size': 64, 'model.decoder.readout_size': 64,
            'train.max_steps': 2500, 'train.learning_rate': 4e-3, 'train.batch_size': 900, 'train.warmup_steps': 50,
            'train.schedule': 'cosine', 'seed': seeds(self).randrange(1000),
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            data, model_dir = os.path.join(folder, 'data'), os.path.join(folder, 'model')
            write_tag_data(data, seed=3)
            given = [f'{field}={value}' for field, value in settings.items()]
            process = start(train_command(os.path.join(ROOT, 'config_example.py'), model_dir, f'data.folder={data}',
                                          *given, config='config_word2pos'))  # fmt: skip
            output, _ = process.communicate()
            self.assertEqual(process.returncode, 0, output)
            words, tags = [list(read_lines(os.path.join(data, f'test.{side}'))) for side in ('words', 'tags')]
            right, places, *_ = tag_accuracy.count(zip(load(model_dir).translate(words), tags))
        print(f'tagging: {right} of {places} tags, seed {settings["seed"]}')
        self.assertGreater(right / places, 0.97, output[-2000:])


if __name__ == '__main__':
    unittest.main()
