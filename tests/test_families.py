"""What every autoregressive model promises: learning, independence of the batch, scores, and any line of text."""

import dataclasses
import tempfile

import numpy as np
import tensorflow as tf

from sequencing.config import DataConfig, TrainConfig
from sequencing.model_folder import Checkpoints
from sequencing.optimizers import build_optimizer
from sequencing.shortlist import Shortlist
from sequencing.structures import Batch
from sequencing.training import TrainingState, Updater
from sequencing.translator import pad
from tests.families import FAMILIES, WORDS, make_translator
from tests.support import seeds

ODD_LINES = ['', '   ', 'a b c', 'never seen words', '\u0085', 'a\u2028b', 'a \x0c b', '\ufeff', 'a' * 300, 'h']


class Promises:
    """The tests of one family; subclasses name it."""

    family = None
    sharpen = 3.0  # makes the choices of random weights more decided

    def setUp(self):
        super().setUp()
        self.draw = seeds(self)

    def lines(self, count, longest=9):
        return [' '.join(self.draw.choices(WORDS, k=self.draw.randint(1, longest))) for _ in range(count)]

    def whole_of_2000(self):
        return ' '.join(self.draw.choices(WORDS, k=2000))

    def test_it_learns_to_copy(self):
        translator = self.trained_to_copy(lambda: self.lines(64, longest=5))
        test = self.lines(100, longest=5)
        for mode in ('greedy', 'beam'):
            right = sum(a == b for a, b in zip(translator.translate(test, decode=mode), test))
            self.assertGreaterEqual(right, 90, f'{self.family}, {mode}')

    def trained_to_copy(self, lines):
        """A `Translator` after `steps` updates, each of the lines that `lines` gives next."""
        train = TrainConfig(learning_rate=5e-3, clip_norm=1.0, warmup_steps=20, schedule='cosine', max_steps=self.steps)
        translator = make_translator(self.family, self.draw.randrange(1000), train=train)
        model, vocab = translator.model, translator.trg_vocab
        optimizer = build_optimizer(train)
        optimizer.build(model.trainable_variables)
        update = Updater(model, optimizer, TrainingState(1), train, 1)
        for _ in range(self.steps):
            rows = [np.append(ids, vocab.eos_id) for ids in vocab.encode_lines(lines())]
            ids, mask = pad(rows, vocab.pad_id)
            update([Batch(*map(tf.constant, (ids, mask, ids, mask, np.arange(len(rows)))))])
        return translator

    def test_a_training_restored_from_its_checkpoint_goes_on_to_the_bit(self):
        train = TrainConfig(optimizer='adamw', learning_rate=1e-2, warmup_steps=3, label_smoothing=0.1, ema=0.9)
        parts = {name: dataclasses.replace(part, layers=1, dropout=0.2)
                 for name, part in zip(('encoder', 'decoder'), FAMILIES[self.family])}  # fmt: skip
        vocab = make_translator(self.family, 1).src_vocab
        batches = []
        for _ in range(4):
            rows = [np.append(ids, vocab.eos_id) for ids in vocab.encode_lines(self.lines(5))]
            ids, mask = pad(rows, vocab.pad_id)
            batches.append([Batch(*map(tf.constant, (ids, mask, ids[::-1], mask[::-1], np.arange(5))))])
        with tempfile.TemporaryDirectory() as folder:
            weights = []
            for seed in (self.draw.randrange(1000), 1001):
                model = make_translator(self.family, seed, network=parts, train=train).model
                optimizer, state = build_optimizer(train), TrainingState(1)
                optimizer.build(model.trainable_variables)
                checkpoints = Checkpoints(folder, model, optimizer, state, keep=1)
                update = Updater(model, optimizer, state, train, 7)
                if not weights:  # the first one writes a checkpoint half-way and goes on, the second one restores it
                    update(batches[0])
                    update(batches[1])
                    checkpoints.save()
                else:
                    self.assertIsNotNone(checkpoints.restore())
                update(batches[2])
                update(batches[3])
                weights.append([v.numpy() for v in (*model.variables, *optimizer.variables)])
        for one, two in zip(*weights, strict=True):
            np.testing.assert_array_equal(one, two)

    def test_a_line_gets_the_same_whatever_else_is_in_the_batch(self):
        translator = make_translator(self.family, self.draw.randrange(1000), sharpen=self.sharpen)
        lines = self.lines(7)
        order = self.draw.sample(range(7), 7)
        for mode in ('greedy', 'beam', 'sample'):
            results = list(translator.stream(lines, decode=mode))
            shuffled = list(translator.stream([lines[i] for i in order], decode=mode))
            alone = [next(translator.stream([line], decode=mode)) for line in lines[:3]]
            pairs = [(shuffled[place], results[i]) for place, i in enumerate(order)] + list(zip(alone, results))
            for got, want in pairs:
                self.assertEqual(got.outputs[0].translation, want.outputs[0].translation)
                self.assertNear(got.outputs[0].score, want.outputs[0].score, 1e-4 * max(1, abs(want.outputs[0].score)))

    def test_reported_scores_are_those_of_the_scorer_and_beam_one_is_greedy(self):
        translator = make_translator(self.family, self.draw.randrange(1000), sharpen=self.sharpen)
        lines = self.lines(6)
        greedy = list(translator.stream(lines, decode='greedy'))
        beam_one = list(translator.stream(lines, decode='beam', beam_size=1))
        beam = list(translator.stream(lines, decode='beam', beam_size=3, nbest=3))
        for a, b in zip(greedy, beam_one):
            self.assertEqual(a.outputs[0].tokens, b.outputs[0].tokens)
        sources, targets, scores = [], [], []
        for results in (greedy, beam):
            for line, result in zip(lines, results):
                for output in result.outputs:
                    sources.append(line)
                    targets.append(output.tokens)
                    scores.append(output.score)
        for got, want in zip(translator.score(sources, targets), scores):
            self.assertNear(got, want, 1e-5 * max(1, abs(want)))

    def test_a_source_of_2000_tokens_is_read_whole(self):
        translator = make_translator(self.family, self.draw.randrange(1000))
        line = self.whole_of_2000()
        words = translator.src_vocab.pieces(translator.src_vocab.encode(line))
        self.assertLen(words, 2000)
        options = {'decode': 'beam', 'max_length': 4, 'max_src_length': 2500}
        (result,) = translator.stream([line], **options)
        self.assertEqual((result.source_tokens, result.source_truncated), (words, False))
        output = result.outputs[0]
        model = translator.model
        src, trg = [
            tf.constant([[*ids, translator.src_vocab.eos_id]])
            for ids in (translator.src_vocab.encode(line), translator.trg_vocab.ids_of(output.tokens))
        ]
        whole = Batch(src, tf.ones_like(src, tf.bool), trg, tf.ones_like(trg, tf.bool), tf.constant([0], tf.int64))
        score = float(tf.function(model.score, autograph=False)(whole)[0][0])
        self.assertNear(output.score, score, 1e-4 * max(1, abs(score)))

    def test_any_line_has_its_answer_in_its_place(self):
        translator = make_translator(self.family, self.draw.randrange(1000), sharpen=self.sharpen)
        results = list(translator.stream(ODD_LINES, decode='greedy', max_length=5, max_src_length=20))
        self.assertEqual(len(results), len(ODD_LINES))
        for line, result in zip(ODD_LINES, results):
            if not line.strip():
                self.assertEqual(result.outputs[0].translation, '')
            self.assertNotIn('\n', result.outputs[0].translation)
        plain = translator.translate(['a b c'], decode='greedy', max_length=5)
        self.assertEqual(results[2].outputs[0].translation, plain[0])


class RNNTest(Promises, tf.test.TestCase):
    family, steps = 'rnn', 400


class TransformerTest(Promises, tf.test.TestCase):
    family, steps = 'transformer', 400


class ConvTest(Promises, tf.test.TestCase):
    family, steps = 'conv', 400
    sharpen = 1.0  # its residuals add up: more, and float32 has no digits left for the promises


class AvaTest(Promises, tf.test.TestCase):
    family, steps = 'ava', 100

    def test_it_learns_to_copy(self):
        """Eight lines by heart; system_tests have the rest, for whom characters are many steps."""
        lines = self.lines(8, longest=5)
        right = sum(a == b for a, b in zip(self.trained_to_copy(lambda: lines).translate(lines), lines))
        self.assertGreaterEqual(right, 7)

    def lines(self, count, longest=9):
        """Letters, some of them together as words."""
        together = lambda line: ''.join(letter + self.draw.choice(['', ' ']) for letter in line.split()).strip()
        return list(map(together, super().lines(count, longest)))

    def whole_of_2000(self):
        return ' '.join(''.join(self.draw.choices(WORDS, k=3)) for _ in range(500)) + 'a'


class RNNToTransformerTest(Promises, tf.test.TestCase):
    family, steps = 'rnn_to_transformer', 400


class TransformerToRNNTest(Promises, tf.test.TestCase):
    family, steps = 'transformer_to_rnn', 400


class SharedTableTest(tf.test.TestCase):
    """One table for source, target and output layer."""

    def setUp(self):
        super().setUp()
        self.draw = seeds(self)

    def make(self):
        network, data = {'share_embeddings': True, 'tie_output': True}, DataConfig(joint_vocab=True)
        return make_translator('transformer', self.draw.randrange(1000), network=network, data=data)

    def test_there_is_one_table_and_it_scores_tokens(self):
        model = self.make().model
        tables = [v for v in model.trainable_variables if v.shape == [12, 32]]
        self.assertLen(tables, 1)
        model.output_bias.assign(np.random.default_rng(self.draw.randrange(1000)).normal(size=12))
        features = np.random.default_rng(5).normal(size=[2, 3, 32]).astype('float32')
        want = features @ tables[0].numpy().T + model.output_bias.numpy()
        self.assertAllClose(model.logits(tf.constant(features)), want, rtol=1e-4, atol=1e-5)

    def test_search_and_scorer_agree_with_and_without_a_shortlist_of_everything(self):
        translator = self.make()
        lines = [' '.join(self.draw.choices(WORDS, k=n)) for n in (3, 7, 1)]
        vocabs = translator.src_vocab, translator.trg_vocab
        pairs = [(a, b) for a in range(4, 12) for b in range(4, 12)]
        every = Shortlist(*zip(*pairs), [1.0] * len(pairs), *vocabs)
        free = list(translator.stream(lines, max_length=6))
        scores = translator.score(lines, [result.outputs[0].tokens for result in free])
        for result, again, score in zip(free, translator.stream(lines, shortlist=every, max_length=6), scores):
            output = result.outputs[0]
            self.assertEqual(again.outputs[0].tokens, output.tokens)
            self.assertNear(again.outputs[0].score, output.score, 1e-5 * max(1, abs(score)))
            self.assertNear(output.score, score, 1e-5 * max(1, abs(score)))


class FamilyListTest(tf.test.TestCase):
    def test_every_family_is_tested(self):
        tested = {kind.family for kind in Promises.__subclasses__()}
        self.assertEqual(tested, set(FAMILIES))


if __name__ == '__main__':
    tf.test.main()
