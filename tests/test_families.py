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
GREEDY, SAMPLE, BEAM = {'decode': 'greedy'}, {'decode': 'sample'}, {'decode': 'beam', 'beam_size': 3, 'nbest': 3}


class Promises:
    """The tests of one family; subclasses name it.

    They share one model, so that each of its graphs is traced once; every test draws weights of its own for it.
    """

    family = None
    sharpen = 3.0  # makes the choices of random weights more decided
    steps = 400  # updates that it may take to learn
    bar = 0.9  # share of lines that it has to copy then

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.translator = cls.make(1)

    @classmethod
    def tearDownClass(cls):
        del cls.translator
        super().tearDownClass()

    @classmethod
    def make(cls, seed, sharpen=1.0):
        train = TrainConfig(optimizer='adamw', weight_decay=1e-3, learning_rate=5e-3, clip_norm=1.0, warmup_steps=20,
                            schedule='cosine', max_steps=cls.steps + 9, ema=0.9)  # fmt: skip
        parts = {name: dataclasses.replace(part, dropout=0.03)
                 for name, part in zip(('encoder', 'decoder'), FAMILIES[cls.family])}  # fmt: skip
        return make_translator(cls.family, seed, sharpen=sharpen, network=parts, train=train)

    def setUp(self):
        super().setUp()
        self.draw = seeds(self)

    def draw_weights(self, sharpen):
        drawn = self.make(self.draw.randrange(1000), sharpen).model
        for variable, value in zip(self.translator.model.variables, drawn.variables, strict=True):
            variable.assign(value)

    def lines(self, count, longest=9):
        return [' '.join(self.draw.choices(WORDS, k=self.draw.randint(1, longest))) for _ in range(count)]

    def whole_of_2000(self):
        return ' '.join(self.draw.choices(WORDS, k=2000))

    def task(self):
        """What gives the lines of an update, and two lists of lines that are to be copied: when the first is, training
        ends; the second is the test."""
        return lambda: self.lines(64, longest=5), self.lines(200, longest=5), self.lines(100, longest=5)

    def test_it_learns_to_copy_and_a_training_restored_from_its_checkpoint_goes_on_to_the_bit(self):
        lines, watched, test = self.task()
        vocab = self.translator.trg_vocab

        def batch():
            rows = [np.append(ids, vocab.eos_id) for ids in vocab.encode_lines(lines())]
            ids, mask = pad(rows, vocab.pad_id)
            return Batch(*map(tf.constant, (ids, mask, ids, mask, np.arange(len(rows)))))

        self.draw_weights(1.0)
        update, checkpoints, everything = self.training(self.translator)
        done = 0
        while done < self.steps and self.share_right(watched, GREEDY) < 0.99:  # far above the bar, not by luck
            for _ in range(self.steps // 8):
                update([batch()])
            done += self.steps // 8
        for mode in (GREEDY, BEAM):
            self.assertGreaterEqual(self.share_right(test, mode), self.bar, f'{self.family}, {mode}, {done} updates')
        last, folder = [batch(), batch()], tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        checkpoints(folder.name).save()
        restored_update, restored_checkpoints, restored = self.training(self.make(1001))
        self.assertIsNotNone(restored_checkpoints(folder.name).restore())
        for one in last:
            update([one])
            restored_update([one])
        for one, two in zip(everything(), restored(), strict=True):
            np.testing.assert_array_equal(one, two)

    def training(self, translator):
        """What makes an update, what makes `Checkpoints` in a folder, and what gives all weights and averages."""
        model, train = translator.model, translator.config.train
        optimizer, state = build_optimizer(train), TrainingState(1)
        optimizer.build(model.trainable_variables)
        checkpoints = lambda folder: Checkpoints(folder, model, optimizer, state, keep=1)
        everything = lambda: [v.numpy() for v in (*model.variables, *optimizer.variables, *state.variables)]
        return Updater(model, optimizer, state, train, 7), checkpoints, everything

    def share_right(self, lines, mode):
        return np.mean([a == b for a, b in zip(self.translator.translate(lines, **mode), lines)])

    def test_a_line_gets_the_same_whatever_else_is_in_the_batch(self):
        self.draw_weights(self.sharpen)
        stream, lines = self.translator.stream, self.lines(7)
        order = self.draw.sample(range(7), 7)
        for mode in (GREEDY, BEAM, SAMPLE):
            results = list(stream(lines, **mode))
            shuffled = list(stream([lines[i] for i in order], **mode))
            alone = [next(stream([line], **mode)) for line in lines[:3]]
            pairs = [(shuffled[place], results[i]) for place, i in enumerate(order)] + list(zip(alone, results))
            for got, want in pairs:
                self.assertEqual(got.outputs[0].translation, want.outputs[0].translation)
                self.assertNear(got.outputs[0].score, want.outputs[0].score, 1e-4 * max(1, abs(want.outputs[0].score)))

    def test_reported_scores_are_those_of_the_scorer_and_beam_one_is_greedy(self):
        self.draw_weights(self.sharpen)
        translator, lines = self.translator, self.lines(6)
        greedy = list(translator.stream(lines, **GREEDY))
        beam_one = list(translator.stream(lines, decode='beam', beam_size=1))
        beam = list(translator.stream(lines, **BEAM))
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
        self.draw_weights(1.0)
        translator, line = self.translator, self.whole_of_2000()
        words = translator.src_vocab.pieces(translator.src_vocab.encode(line))
        self.assertLen(words, 2000)
        (result,) = translator.stream([line], **BEAM, max_length=4, max_src_length=2500)
        self.assertEqual((result.source_tokens, result.source_truncated), (words, False))
        output, model = result.outputs[0], translator.model
        src, trg = [
            tf.constant([[*ids, translator.src_vocab.eos_id]])
            for ids in (translator.src_vocab.encode(line), translator.trg_vocab.ids_of(output.tokens))
        ]
        whole = Batch(src, tf.ones_like(src, tf.bool), trg, tf.ones_like(trg, tf.bool), tf.constant([0], tf.int64))
        score = float(tf.function(model.score, autograph=False)(whole)[0][0])
        self.assertNear(output.score, score, 1e-4 * max(1, abs(score)))

    def test_any_line_has_its_answer_in_its_place(self):
        self.draw_weights(self.sharpen)
        results = list(self.translator.stream(ODD_LINES, **GREEDY, max_length=5, max_src_length=20))
        self.assertEqual(len(results), len(ODD_LINES))
        for line, result in zip(ODD_LINES, results):
            if not line.strip():
                self.assertEqual(result.outputs[0].translation, '')
            self.assertNotIn('\n', result.outputs[0].translation)
        plain = self.translator.translate(['a b c'], **GREEDY, max_length=5)
        self.assertEqual(results[2].outputs[0].translation, plain[0])


class RNNTest(Promises, tf.test.TestCase):
    family = 'rnn'


class TransformerTest(Promises, tf.test.TestCase):
    family = 'transformer'


class ConvTest(Promises, tf.test.TestCase):
    family = 'conv'
    sharpen = 1.0  # its residuals add up: more, and float32 has no digits left for the promises


class AvaTest(Promises, tf.test.TestCase):
    family, steps, bar = 'ava', 104, 7 / 8

    def task(self):
        """Eight lines by heart; system_tests have the rest, for whom characters are many steps."""
        lines = self.lines(8, longest=5)
        return lambda: lines, lines, lines

    def lines(self, count, longest=9):
        """Letters, some of them together as words."""
        together = lambda line: ''.join(letter + self.draw.choice(['', ' ']) for letter in line.split()).strip()
        return list(map(together, super().lines(count, longest)))

    def whole_of_2000(self):
        return ' '.join(''.join(self.draw.choices(WORDS, k=3)) for _ in range(500)) + 'a'


class RNNToTransformerTest(Promises, tf.test.TestCase):
    family = 'rnn_to_transformer'


class TransformerToRNNTest(Promises, tf.test.TestCase):
    family = 'transformer_to_rnn'


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
