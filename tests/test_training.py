"""Updates: accumulation, clipping, skipping; optimizer against Keras; losses against NumPy."""

import itertools
import types
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from build_model import build_model
from sequencing import training
from sequencing.config import Config, RNNDecoderConfig, RNNEncoderConfig, Seq2SeqConfig, TrainConfig
from sequencing.diagnosis import first_nonfinite
from sequencing.losses import cross_entropy
from sequencing.objectives import Phase
from sequencing.optimizers import SGD, FusedAdam, LearningRate, build_optimizer, early_end
from sequencing.structures import Batch
from sequencing.training import FIRST_LOSS_SCALE, TrainingState, Updater, exchange_with_averages
from tests.support import seeds, untraced

VOCAB = types.SimpleNamespace(size=13, bos_id=2, eos_id=3, tokens=[str(i) for i in range(13)])


def small_config(**train):
    return Config(
        model=Seq2SeqConfig(
            embedding_size=6,
            encoder=RNNEncoderConfig(state_size=8, dropout=0.0),
            decoder=RNNDecoderConfig(state_size=7, attention_size=5, readout_size=9, dropout=0.0),
        ),
        train=TrainConfig(**{'optimizer': 'sgd', 'learning_rate': 0.1, **train}),
    )


def make_batch(random, sentences=8, longest=6):
    lengths = random.integers(1, longest + 1, [2, sentences])
    masks = np.arange(longest) < lengths[..., np.newaxis]
    ids = np.where(masks, random.integers(3, 13, masks.shape), 0).astype('int32')
    return Batch(ids[0], masks[0], ids[1], masks[1], np.arange(sentences))


def part_of(batch, rows):
    return Batch(*[tf.constant(field[rows]) for field in batch])


class UpdateTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.random = np.random.default_rng(seeds(self).randrange(2**31))

    def updater(self, config):
        model = build_model(config, VOCAB, VOCAB)
        optimizer = build_optimizer(config.train)
        optimizer.build(model.trainable_variables)
        state = TrainingState(4)
        return model, optimizer, state, Updater(model, optimizer, state, config.train, 1)

    def test_accumulated_parts_make_the_update_of_the_whole(self):
        batches = [make_batch(self.random) for _ in range(3)]
        whole, _, _, update_whole = self.updater(small_config())
        parts, _, state, update_parts = self.updater(small_config(accumulate=4))
        for batch in batches:
            update_whole([part_of(batch, slice(None))])
            update_parts([part_of(batch, slice(i, i + 2)) for i in range(0, 8, 2)])
        self.assertEqual(int(state.step), 3)
        for got, want in zip(parts.trainable_variables, whole.trainable_variables):
            self.assertAllClose(got, want, atol=1e-6)

    @untraced()
    def test_long_gradients_are_clipped_to_the_norm_and_short_ones_left_alone(self):
        batch = part_of(make_batch(self.random), slice(None))
        for clip in (1e-3, 1e3):
            model, _, state, update = self.updater(small_config(clip_norm=clip))
            before = [v.numpy() for v in model.trainable_variables]
            gradients, parts = update.gradients(batch, tf.constant(0, tf.int64))
            gradients = [g.numpy() / float(parts.tokens) for g in gradients]
            norm = np.sqrt(sum((g**2).sum() for g in gradients))
            update([batch])
            for variable, old, gradient in zip(model.trainable_variables, before, gradients):
                self.assertAllClose(variable, old - 0.1 * gradient * min(1.0, clip / norm), atol=1e-6)
            self.assertAllClose(state.take_totals().gradient_norm, norm, rtol=1e-4)

    @untraced()
    def test_a_scaled_loss_makes_the_same_update_and_its_scale_follows_overflow(self):
        batch = part_of(make_batch(self.random), slice(None))
        plain, _, _, update = self.updater(small_config())
        update([batch])
        config = small_config()
        model = build_model(config, VOCAB, VOCAB)
        optimizer = build_optimizer(config.train)
        optimizer.build(model.trainable_variables)
        state = TrainingState(4)
        weight = tf.Variable(1.0, trainable=False)  # overflows the loss when it is infinite
        loss = lambda batch, seed, step: model.loss(batch, seed)._replace(loss=weight * model.loss(batch, seed).loss)
        update = Updater(model, optimizer, state, config.train, 1, loss=loss, scale_loss=True)
        update([batch])
        for got, want in zip(model.trainable_variables, plain.trainable_variables):
            self.assertAllClose(got, want, atol=1e-6)
        self.assertEqual(float(state.loss_scale), FIRST_LOSS_SCALE)
        weight.assign(np.inf)
        before = [v.numpy() for v in model.trainable_variables]
        update([batch])
        self.assertEqual(float(state.loss_scale), FIRST_LOSS_SCALE / 2)
        self.assertAllEqual(before[0], model.trainable_variables[0])
        weight.assign(1.0)
        state.finite_in_a_row.assign(1999)
        update([batch])
        self.assertEqual(float(state.loss_scale), FIRST_LOSS_SCALE)
        self.assertEqual(int(state.skipped), 1)

    @untraced()
    def test_a_loss_by_sentences_is_divided_by_sentences(self):
        batch = part_of(make_batch(self.random), slice(None))
        by_tokens, _, _, update_tokens = self.updater(small_config(clip_norm=0.0))
        before = [v.numpy() for v in by_tokens.trainable_variables]
        by_sentences, _, _, update_sentences = self.updater(small_config(clip_norm=0.0, loss_unit='sentences'))
        update_tokens([batch])
        update_sentences([batch])
        ratio = batch.trg_mask.numpy().sum() / 8
        for a, b, start in zip(by_sentences.trainable_variables, by_tokens.trainable_variables, before):
            self.assertAllClose(a - start, ratio * (b - start), atol=1e-5)

    def test_a_nonfinite_update_is_skipped_counted_and_named(self):
        batch = part_of(make_batch(self.random), slice(None))
        model, _, state, update = self.updater(small_config())
        update([batch])
        readout = model.decoder.readout
        readout.bias.assign(tf.fill([9], 1e38))
        readout.kernel.assign(tf.fill(readout.kernel.shape, 1e38))  # finite itself, but not what it makes
        model.output.kernel.assign(tf.fill(model.output.kernel.shape, 3e38))
        before = [v.numpy() for v in model.trainable_variables]
        update([batch])
        self.assertEqual(int(state.skipped_in_a_row), 1)
        for got, want in zip(model.trainable_variables, before):
            self.assertAllEqual(got, want)
        told = first_nonfinite(model, lambda: model.loss(batch))
        self.assertRegex(told, '^(decoder.readout|output) is the first part')

    def test_the_fused_update_is_that_of_keras(self):
        for amsgrad, decay in ((False, None), (True, 0.03)):
            start = [self.random.normal(size=s).astype('float32') for s in ([5, 3], [7])]
            results = []
            for kind in (FusedAdam, keras.optimizers.Adam):
                variables = [tf.Variable(s) for s in start]
                optimizer = kind(0.01, weight_decay=decay, amsgrad=amsgrad, beta_1=0.8, beta_2=0.95, use_ema=True,
                                 ema_momentum=0.7)  # fmt: skip
                optimizer.build(variables)
                random = np.random.default_rng(7)
                for _ in range(5):
                    gradients = [tf.constant(random.normal(size=v.shape), tf.float32) for v in variables]
                    optimizer.apply(gradients, variables)
                averages = optimizer._model_variables_moving_average
                results.append([v.numpy() for v in (*variables, *averages)])
            for got, want in zip(*results):
                self.assertAllClose(got, want, atol=1e-6)

    def test_an_update_that_is_not_chosen_moves_nothing(self):
        adam = dict(beta_1=0.8, use_ema=True, ema_momentum=0.7)
        for optimizer in (SGD(0.1), FusedAdam(0.1, **adam), FusedAdam(0.1, weight_decay=0.03, amsgrad=True, **adam)):
            variables = [tf.Variable(self.random.normal(size=s).astype('float32')) for s in ([5, 3], [7])]
            optimizer.build(variables)
            for done in range(3):
                everything = [*variables, *optimizer.variables]
                before = [np.array(v) for v in everything]
                optimizer.apply_where(tf.constant(False), [tf.zeros_like(v) for v in variables], variables)
                for got, want in zip(everything, before):
                    self.assertAllEqual(got, want)
                optimizer.apply([tf.ones_like(v) * (done + 1.0) for v in variables], variables)
                self.assertNotAllClose(variables[0], before[0])

    def test_an_update_whose_graph_is_not_rewritten_is_the_same(self):
        batch = part_of(make_batch(self.random), slice(None))
        model, _, _, update = self.updater(small_config())
        start, found = [v.numpy() for v in model.trainable_variables], []
        for most in (0, 10**9):
            for variable, value in zip(model.trainable_variables, start):
                variable.assign(value)
            update._deep.clear()
            with (
                mock.patch.object(training, '_MANY_OPERATIONS', most),
                mock.patch.object(training, 'as_traced', wraps=training.as_traced) as as_traced,
            ):
                update([batch])
            self.assertEqual(as_traced.called, most == 0)
            found.append([v.numpy() for v in model.trainable_variables])
        for got, want in zip(*found):
            self.assertAllClose(got, want, atol=1e-6)
        self.assertNotAllClose(found[0][0], start[0])

    def test_graphs_are_rewritten_again_after_a_failure(self):
        def option():
            return tf.config.optimizer.get_experimental_options().get('disable_meta_optimizer', False)

        with self.assertRaises(ZeroDivisionError), training.as_traced():
            self.assertTrue(option())
            raise ZeroDivisionError
        self.assertFalse(option())

    def test_learning_rates_follow_their_formulas(self):
        common = {'learning_rate': 0.5, 'warmup_steps': 4, 'max_steps': 24}
        for schedule, want in (
            ('constant', {0: 0.125, 3: 0.5, 4: 0.5, 20: 0.5}),
            ('inverse_sqrt', {1: 0.25, 4: 0.5, 16: 0.25}),
            ('cosine', {4: 0.5, 14: 0.25, 24: 0.0}),
            ('exponential', {4: 0.5, 14: 0.5 * 0.1**0.5, 24: 0.05}),
        ):
            rate = LearningRate(TrainConfig(schedule=schedule, **common))
            for step, value in want.items():
                self.assertAllClose(rate(step), value, atol=1e-6, msg=f'{schedule} at {step}')

    def test_a_rate_that_ends_before_training_does_is_told(self):
        for steps, schedule, first, want in (
            (0, 'cosine', 0, None),
            (20, 'cosine', 0, None),
            (19, 'cosine', 0, 23),
            (10, 'cosine', 10, None),
            (9, 'cosine', 10, 23),
            (3, 'cosine', 10, 9),
            (13, 'cosine', 20, 19),
            (14, 'cosine', 20, None),
            (1, 'constant', 0, None),
        ):
            train = TrainConfig(max_steps=24, schedule=schedule, decay_steps=steps)
            phases = [Phase('first', 0, first, 6, []), Phase('last', first, 24 - first, 4, [])][not first :]
            self.assertEqual(early_end(train, phases), want)
            if want:
                (phase,) = (phase for phase in phases if phase.first < want < phase.first + phase.steps)
                rate = LearningRate(train, phase.warmup_steps, phase.steps)
                self.assertAllClose(rate(want - phase.first), 0.0, atol=1e-9)
                self.assertGreater(float(rate(want - 1 - phase.first)), 1e-9)

    @untraced()
    def test_exchanging_with_averages_twice_changes_nothing(self):
        batch = part_of(make_batch(self.random), slice(None))
        model, optimizer, _, update = self.updater(small_config(optimizer='adam', ema=0.5))
        for _ in range(2):
            update([batch])
        weights = [v.numpy() for v in model.trainable_variables]
        exchange_with_averages(optimizer, model.trainable_variables)
        self.assertNotAllClose(model.trainable_variables[0], weights[0])
        exchange_with_averages(optimizer, model.trainable_variables)
        for got, want in zip(model.trainable_variables, weights):
            self.assertAllEqual(got, want)

    def test_cross_entropy_is_that_of_plain_numpy(self):
        targets = self.random.integers(0, 9, 6).astype('int32')
        for smoothing, spread in itertools.product((0.0, 0.1), (3.0, 300.0)):  # also where a probability underflows
            logits = self.random.normal(size=[6, 9]).astype('float32') * spread
            log_probs = logits - np.logaddexp.reduce(logits.astype('float64'), axis=-1, keepdims=True)
            with tf.GradientTape() as tape:
                x = tf.constant(logits)
                tape.watch(x)
                smoothed, nll = cross_entropy(x, targets, smoothing)
            want = np.full([6, 9], smoothing / 9)
            want[np.arange(6), targets] += 1 - smoothing
            self.assertAllClose(nll, -log_probs[np.arange(6), targets], rtol=1e-5, atol=1e-5)
            self.assertAllClose(smoothed, -(want * log_probs).sum(-1), rtol=1e-5, atol=1e-5)
            self.assertAllClose(tape.gradient(smoothed, x), np.exp(log_probs) - want, atol=1e-5)

    def test_cross_entropy_adds_a_bias_and_has_its_gradient(self):
        targets = self.random.integers(0, 9, 700).astype('int32')
        logits, bias = self.random.normal(size=[700, 9]), tf.constant(self.random.normal(size=9), tf.float32)
        for dtype, off in ((tf.float32, 1e-5), (tf.bfloat16, 1e-2)):
            x = tf.constant(logits, dtype)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch([x, bias])
                together, _ = cross_entropy(x, targets, 0.1, bias)
                apart, _ = cross_entropy(tf.cast(x, tf.float32) + bias, targets, 0.1)
            self.assertAllClose(together, apart, rtol=1e-6)
            d_x, d_bias = tape.gradient(together, [x, bias])
            want, want_bias = tape.gradient(apart, [x, bias])
            self.assertEqual((d_x.dtype, d_bias.dtype), (dtype, tf.float32))
            self.assertAllClose(tf.cast(d_x, tf.float32), tf.cast(want, tf.float32), atol=off)
            self.assertAllClose(d_bias, want_bias, rtol=off, atol=10 * off)
            self.assertAllClose(tf.reduce_mean(tf.reduce_sum(tf.cast(d_x, tf.float32), axis=1)), 0.0, atol=off / 10)


if __name__ == '__main__':
    tf.test.main()
