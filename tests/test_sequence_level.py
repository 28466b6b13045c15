"""Sequence-level training: rewards against sacreBLEU, gradients against all that can be said."""

import dataclasses
import itertools
import math
import tempfile
import types

import numpy as np
import tensorflow as tf
from sacrebleu.metrics import BLEU, CHRF

from build_model import build_model, build_objective
from sequencing.config import (
    Config,
    RNNDecoderConfig,
    RNNEncoderConfig,
    Seq2SeqConfig,
    TrainConfig,
    TransformerDecoderConfig,
)
from sequencing.decode_options import DecodeOptions
from sequencing.feedback import RLTrainingFeedBack
from sequencing.model_folder import Checkpoints
from sequencing.optimizers import build_optimizer
from sequencing.options import ConfigError
from sequencing.rewards import characters_of, chrf, prefix_bleu
from sequencing.sequence_config import RLConfig
from sequencing.sequence_objective import Written, mixer_loss, read, risk, write
from sequencing.structures import Batch
from sequencing.training import TrainingState, Updater
from sequencing.vocab import Vocab
from tests.support import seeds, untraced

VOCAB = types.SimpleNamespace(size=6, bos_id=2, eos_id=3, tokens=list('pubexy'))
LIMIT = 2  # tokens of the longest output that can be said


def ragged(draw, rows):
    """Lists of ids as `[M, T]` int32, junk behind, and lengths `[M]`."""
    longest = max(map(len, rows)) + 1
    ids = [[*row, *draw.choices(range(8), k=longest - len(row))] for row in rows]
    return tf.constant(ids, tf.int32), tf.constant([len(row) for row in rows])


class RewardTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.draw = seeds(self)

    def sequences(self, count, ids, shortest=0):
        return [self.draw.choices(ids, k=self.draw.randint(shortest, 12)) for _ in range(count)]

    def test_the_bleu_of_every_prefix_is_sacrebleus(self):
        metric = BLEU(tokenize='none', smooth_method='exp', effective_order=True)
        said, wanted = self.sequences(40, range(4)), self.sequences(40, range(4), shortest=1)
        said[:2] = wanted[:2]  # some that are all right
        arrays = *ragged(self.draw, said), *ragged(self.draw, wanted)
        specs = [tf.TensorSpec([None] * x.shape.rank, tf.int32) for x in arrays]
        got = tf.function(prefix_bleu, input_signature=specs, autograph=False)(*arrays).numpy()
        text = lambda ids: ' '.join(map(str, ids))
        for row, mine, reference in zip(got, said, wanted):
            for t, value in enumerate(row):
                want = metric.sentence_score(text(mine[:t]), [text(reference)]).score / 100
                self.assertAllClose(value, want, atol=1e-5)
            deltas = np.diff(row[: len(mine) + 1])  # the rewards of MIXER add up to the whole
            self.assertAllClose(
                deltas.sum(), metric.sentence_score(text(mine), [text(reference)]).score / 100, atol=1e-5
            )

    def test_chrf_is_sacrebleus_of_the_decoded_text(self):
        metric = CHRF()
        for tokens in (['\u2581a', 'bä', '\u2581', 'c'], ['a@@', 'bc', 'dä@@', 'a'], ['ab', 'cä', 'a', 'd']):
            vocab = Vocab(tokens)
            said, wanted = self.sequences(15, range(4, 8)), self.sequences(15, range(4, 8), shortest=1)
            got = chrf(*ragged(self.draw, said), *ragged(self.draw, wanted), tf.constant(characters_of(vocab)))
            want = [metric.sentence_score(vocab.decode(a), [vocab.decode(b)]).score for a, b in zip(said, wanted)]
            self.assertAllClose(100 * got, want, atol=1e-3)


def tiny_config(kind, seed=1, decoder=None, **rl):
    return Config(
        seed=seed,
        model=Seq2SeqConfig(
            embedding_size=6,
            encoder=RNNEncoderConfig(state_size=8, dropout=0.3),
            decoder=decoder or RNNDecoderConfig(state_size=7, attention_size=5, readout_size=9, dropout=0.3),
        ),
        train=TrainConfig(mode='rl', learning_rate=2e-2, rl=RLConfig(kind=kind, **rl)),
    )


def pairs(draw, sentences, longest=5):
    """A `Batch` of random pairs."""
    random = np.random.default_rng(draw.randrange(2**31))
    lengths = random.integers(1, longest + 1, [2, sentences])
    masks = np.arange(longest + 1) < lengths[..., np.newaxis] + 1
    ids = np.where(masks, random.integers(4, 6, masks.shape), 0)
    ids = np.where(np.arange(longest + 1) == lengths[..., np.newaxis], VOCAB.eos_id, ids).astype('int32')
    return Batch(*map(tf.constant, (ids[0], masks[0], ids[1], masks[1], np.arange(sentences))))


class EnumerationTest(tf.test.TestCase):
    """Everything that can be said in two tokens, each with its probability."""

    def setUp(self):
        super().setUp()
        self.draw = seeds(self)
        self.config = tiny_config('mixer', self.draw.randrange(1000))
        self.model = build_model(self.config, VOCAB, VOCAB)
        for variable in self.model.trainable_variables:  # far from uniform, the baseline far from zero
            variable.assign_add(tf.random.stateless_normal(variable.shape, [self.draw.randrange(999), 1]) * 0.3)
        self.source = tf.constant([[4, 5, 5, 3]])
        self.reference = self.draw.choices([4, 5], k=3)
        others = [i for i in range(VOCAB.size) if i != VOCAB.eos_id]
        self.said = [list(said) for n in range(LIMIT + 1) for said in itertools.product(others, repeat=n)]
        metric = BLEU(tokenize='none', smooth_method='exp', effective_order=True)
        text = lambda ids: ' '.join(map(str, ids))
        self.score = lambda said: metric.sentence_score(text(said), [text(self.reference)]).score / 100
        self.rewards = list(map(self.score, self.said))
        self.assertGreater(max(self.rewards), 0)

    def log_probs(self):
        """log p of each token of each sequence, EOS included, `[rows, LIMIT + 1]`, step by step."""
        (ids, mask, _), _ = self.written()
        source = tf.repeat(self.source, len(self.said), axis=0)
        memory, state = self.model.start(source, source > 0, 1, LIMIT + 1)
        fed, columns = tf.fill([len(self.said), 1], VOCAB.bos_id), []
        for time in range(LIMIT + 1):
            logits, state, _ = self.model.step(fed, state, memory, time)
            column = tf.gather(tf.nn.log_softmax(logits[:, 0]), ids[:, time], batch_dims=1)
            columns.append(tf.where(mask[:, time], column, 0.0))
            fed = ids[:, time : time + 1]
        return tf.stack(columns, axis=1)

    def probabilities(self, given=()):
        """p of each sequence; of tokens in `given`, and of EOS at the limit, it is 1."""
        fits = [float(said[: len(given)] == list(given)) for said in self.said]
        return tf.exp(tf.reduce_sum(self.log_probs()[:, len(given) : LIMIT], axis=1)) * fits

    def written(self):
        """All sequences as rows, the encoded source and the reference a row each."""
        ids = [[*said, VOCAB.eos_id, *[0] * (LIMIT - len(said))] for said in self.said]
        lengths = tf.constant([len(said) for said in self.said])
        rows = len(self.said)
        reference = tf.repeat(tf.constant([[*self.reference, VOCAB.eos_id]]), rows, axis=0)
        return (
            Written(tf.constant(ids), tf.sequence_mask(lengths + 1, LIMIT + 1), lengths),
            Written(reference, reference > 0, tf.fill([rows], 3)),
        )

    def gradients(self, tape, value):
        """Of all weights but the baseline's."""
        others = {id(v) for v in self.model.baseline.trainable_variables}
        found = tape.gradient(value, [v for v in self.model.trainable_variables if id(v) not in others])
        return list(map(tf.convert_to_tensor, found))

    def test_the_mean_of_mixers_gradients_is_that_of_the_expected_reward(self):
        for given in ([], self.reference[:1]):
            with tf.GradientTape() as tape:
                chances = self.probabilities(given)
                want = -tf.reduce_sum(chances * self.rewards)
                if given:
                    want -= self.log_probs()[self.said.index(given), 0]
            self.assertAllClose(tf.reduce_sum(chances), 1.0, atol=1e-5)
            want = self.gradients(tape, want)
            written, references = self.written()
            with tf.GradientTape(persistent=True) as tape:
                encoded = self.model.encode(self.source, self.source > 0)
                encoded = tf.nest.map_structure(lambda x: tf.repeat(x, len(self.said), axis=0), encoded)
                start, limits = [tf.fill([len(self.said)], n) for n in (len(given), LIMIT)]
                loss, _, rewards, _, drawn = mixer_loss(self.model, encoded, written, references, start, limits)
                value = tf.reduce_sum(tf.stop_gradient(chances) * loss)
                expected, squares = self.model.baseline(read(self.model, encoded, written)[0]), 0.0
                for row, (said, chance) in enumerate(zip(self.said, tf.stop_gradient(chances))):
                    for t in range(len(given), min(len(said) + 1, LIMIT)):  # every token that was drawn
                        squares += chance * (expected[row, t] - (self.score(said) - self.score(said[:t]))) ** 2
            weights = self.model.baseline.trainable_variables
            for one, two in zip(tape.gradient(value, weights), tape.gradient(squares, weights), strict=True):
                self.assertAllClose(one, two, rtol=1e-4, atol=2e-5)
            self.assertAllClose(rewards, self.rewards, atol=1e-5)
            drawn_tokens = [max(min(len(said) + 1, LIMIT) - len(given), 0) for said in self.said]
            self.assertAllEqual(tf.math.count_nonzero(drawn, axis=1), drawn_tokens)
            for one, two in zip(self.gradients(tape, value), want, strict=True):
                self.assertAllClose(one, two, atol=2e-5)

    def test_the_risk_among_all_sequences_is_the_expected_one(self):
        written, _ = self.written()
        rows, alpha = len(self.said), self.draw.choice([1.0, 0.3])

        with tf.GradientTape() as tape:
            # EOS at the limit counts here: candidates are scored as any sentence
            powers = tf.exp(alpha * tf.reduce_sum(self.log_probs(), axis=1))
            want = tf.reduce_sum(powers * (1 - tf.constant(self.rewards))) / tf.reduce_sum(powers)
        wanted = self.gradients(tape, want)
        twice = Written(*[tf.concat([x, x[5:9]], axis=0) for x in written])  # equal candidates count once
        rewards = tf.constant([*self.rewards, *self.rewards[5:9]])
        with tf.GradientTape() as tape:
            encoded = self.model.encode(self.source, self.source > 0)
            got, _ = risk(self.model, encoded, twice, rewards, rows + 4, alpha)
        self.assertAllClose(got, [want], atol=1e-5)
        for one, two in zip(self.gradients(tape, got), wanted, strict=True):
            self.assertAllClose(one, two, atol=2e-5)

    def test_samples_keep_the_prefix_and_are_as_frequent_as_likely(self):
        rows, given = 4000, self.reference[:1]
        encoded = self.model.encode(self.source, self.source > 0)
        encoded = tf.nest.map_structure(lambda x: tf.repeat(x, rows, axis=0), encoded)
        reference = tf.repeat(tf.constant([[*self.reference, VOCAB.eos_id]]), rows, axis=0)
        for drawn_steps, begun in ((9, []), (3, given)):
            feedback = RLTrainingFeedBack(
                reference, reference > 0, VOCAB.bos_id, VOCAB.eos_id, drawn_steps, tf.fill([rows], LIMIT),
                self.draw.randrange(1000), tf.range(rows, dtype=tf.int64),
            )  # fmt: skip
            found = write(self.model, encoded, feedback)
            rows_found = [ids[:n].tolist() for ids, n in zip(found.ids.numpy(), found.lengths.numpy())]
            for said, chance in zip(self.said, self.probabilities(begun).numpy()):
                share = rows_found.count(said) / rows
                self.assertLess(abs(share - chance), 5 * math.sqrt(chance * (1 - chance) / rows) + 2e-3)


class TrainingTestCase(tf.test.TestCase):
    """Trains tiny models; `system_tests/test_sequence_level.py` has bars for what they learn."""

    def setUp(self):
        super().setUp()
        self.draw = seeds(self)

    def make(self, config):
        model = build_model(config, VOCAB, VOCAB)
        objective = build_objective(model, config, VOCAB)
        optimizer, state = build_optimizer(config.train), TrainingState(1, objective.parts)
        optimizer.build(model.trainable_variables)
        loss = lambda batch, seed, step: objective.loss(objective.phases[0], batch, seed, step)
        update = Updater(model, optimizer, state, config.train, config.seed, loss=loss)
        return model, objective, optimizer, state, update

    def check(self, config, updates, folder=None):
        """Trains on one batch; with a folder, a training restored from it goes on to the bit."""
        batch, reports = pairs(self.draw, 12), []
        model, objective, optimizer, state, update = self.make(config)
        for n in range(updates):
            if folder and n == updates - 3:
                Checkpoints(folder, model, optimizer, state, keep=1).save()
            if n in (10, updates - 13):
                state.take_totals()
            if n in (20, updates - 3):
                reports.append(objective.report(objective.phases[0], state.read_totals(), n))
            update([batch])
        self.assertEqual(update._update.experimental_get_tracing_count(), 1)
        if folder:
            restored, _, optimizer, state, update = self.make(config)
            self.assertIsNotNone(Checkpoints(folder, restored, optimizer, state, keep=1).restore())
            for _ in range(3):
                update([batch])
            for one, two in zip(restored.variables, model.variables, strict=True):
                np.testing.assert_array_equal(one, two)
        return reports


class TrainingTest(TrainingTestCase):
    def test_minimum_risk_trains_with_one_trace(self):
        for report in self.check(tiny_config('mrt', self.draw.randrange(1000), alpha=1.0, samples=5), 24):
            self.assertBetween(report['reward'], 0.0, 1.0)

    def test_cold_samples_are_greedy_translations(self):
        config = tiny_config('mrt', self.draw.randrange(1000), samples=3, temperature=1e-7, reference=False)
        model, objective, *_ = self.make(config)
        batch, phase = pairs(self.draw, 7), objective.phases[0]
        lengths = tf.math.count_nonzero(batch.trg_mask, axis=1, dtype=tf.int32) - 1
        limits = tf.cast(tf.cast(lengths, tf.float32) * config.train.rl.max_length_ratio, tf.int32) + 5
        found = model.translate(batch.src_ids, batch.src_mask, limits, DecodeOptions(decode='greedy'))
        bleu = prefix_bleu(found.ids[:, 0], found.lengths[:, 0], batch.trg_ids, lengths)[:, -1]
        parts = objective.loss(phase, batch, None, tf.constant(1, tf.int64))
        self.assertAllClose(parts.reward / 3, tf.reduce_sum(bleu), rtol=1e-5)

    def test_mixer_restored_goes_on_to_the_bit(self):
        decoder = TransformerDecoderConfig(layers=1, size=8, heads=2, hidden_size=12)
        config = tiny_config('mixer', self.draw.randrange(1000), decoder=decoder, burn_in_step=1, increment_step=1)
        with tempfile.TemporaryDirectory() as folder:
            first, last = self.check(config, 24, folder)
        self.assertEqual((first['drawn_steps'], last['drawn_steps']), (19, 20))
        self.assertGreater(last['baseline_error'], 0.0)

    def test_the_burn_in_is_likelihood_for_as_many_updates_as_it_says(self):
        model, objective, *_ = self.make(tiny_config('mixer', burn_in_step=3, increment_step=2))
        self.assertAllEqual(list(map(objective.drawn_steps, range(8))), [0, 0, 0, 1, 1, 2, 2, 3])
        batch = pairs(self.draw, 7)
        parts, first = [objective.loss(objective.phases[0], batch, None, tf.constant(n, tf.int64)) for n in (2, 3)]
        self.assertAllClose([parts.loss, parts.nll], [model.loss(batch).nll] * 2, rtol=1e-5)
        self.assertEqual((float(parts.policy_tokens), float(parts.written)), (0, float(parts.tokens)))
        self.assertGreater(float(first.policy_tokens), 0)

    @untraced()
    def test_how_an_update_is_cut_into_batches_changes_no_sample(self):
        batch = pairs(self.draw, 9)
        for config in (tiny_config('mixer', increment_step=1), tiny_config('mrt', alpha=1.0, samples=3)):
            ends = []
            for cuts in ([(0, 9)], [(0, 2), (2, 9)]):
                train = dataclasses.replace(config.train, optimizer='sgd', learning_rate=1.0, accumulate=len(cuts))
                model, _, _, state, update = self.make(dataclasses.replace(config, train=train))
                before = [v.numpy() for v in model.trainable_variables]
                state.step.assign(3)  # mixer draws four tokens a sentence
                update([Batch(*[field[begin:end] for field in batch]) for begin, end in cuts])
                totals = state.read_totals()
                self.assertEqual(totals.sentences, 9)
                self.assertEqual(totals.tokens, float(tf.math.count_nonzero(batch.trg_mask)))
                ends.append([[totals.reward, totals.written], *[v.numpy() for v in model.trainable_variables]])
            for whole, parts in zip(*ends, strict=True):
                self.assertAllClose(whole, parts, rtol=0, atol=1e-5)
            self.assertGreater(max(np.abs(a - b).max() for a, b in zip(before, ends[0][1:])), 1e-3)

    def test_what_cannot_be_is_refused(self):
        with self.assertRaisesRegex(ConfigError, 'train.rl.reward'):
            tiny_config('mixer', reward='chrf')


if __name__ == '__main__':
    tf.test.main()
