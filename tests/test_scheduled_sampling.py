"""Scheduled sampling: rates by their formulas, losses and gradients against decoders that are fed by hand."""

import dataclasses
import math
import os
import tempfile

import numpy as np
import tensorflow as tf

from build_model import build_objective
from sequencing import noise
from sequencing.config import TrainConfig
from sequencing.model_folder import Checkpoints
from sequencing.optimizers import build_optimizer
from sequencing.options import ConfigError
from sequencing.scheduled_sampling import mixed_inputs, teacher_rate
from sequencing.sequence_config import SamplingConfig
from sequencing.structures import Batch
from sequencing.training import TrainingState, Updater
from tests.families import FAMILIES, make_translator
from tests.support import seeds, untraced


def make_batch(random, sentences=6, longest=7):
    random = np.random.default_rng(random.randrange(2**31))
    lengths = random.integers(1, longest + 1, [2, sentences])
    masks = np.arange(longest) < lengths[..., np.newaxis]
    ids = np.where(masks, random.integers(3, 12, masks.shape), 0).astype('int32')
    return Batch(*map(tf.constant, (ids[0], masks[0], ids[1], masks[1], random.integers(0, 99, sentences))))


class RateTest(tf.test.TestCase):
    def test_rates_follow_their_formulas(self):
        of = lambda step, **fields: float(teacher_rate(SamplingConfig(**fields), step))
        self.assertAllClose(of(99, teacher_rate=0.4), 0.4)
        linear = dict(schedule='linear', teacher_rate=0.9, least_rate=0.3, begin_step=10, decay_steps=20)
        self.assertAllClose([of(step, **linear) for step in (0, 10, 20, 30, 99)], [0.9, 0.9, 0.6, 0.3, 0.3])
        for step in (0, 3, 50, 10**6):
            self.assertAllClose(of(step, schedule='exponential', decay_steps=7), math.exp(-step / 7))
            want = 7 / (7 + math.exp(step / 7)) if step < 1000 else 0.0
            self.assertAllClose(of(step, schedule='inverse_sigmoid', decay_steps=7), want)

    def test_what_cannot_be_is_refused(self):
        from sequencing.config import Config, FlowSeqConfig

        with self.assertRaisesRegex(ConfigError, 'train.sampling.least_rate'):
            Config(train=TrainConfig(sampling=SamplingConfig(0.3, 'linear', least_rate=0.5)))
        with self.assertRaisesRegex(ConfigError, 'train.sampling'):
            Config(model=FlowSeqConfig(), train=TrainConfig(sampling=SamplingConfig(0.3)))


class FedByHandTest(tf.test.TestCase):
    """Each family, at any rate, against a decoder fed by a plain loop."""

    def setUp(self):
        super().setUp()
        self.draw = seeds(self)
        self.batch = make_batch(self.draw)
        self.seed = tf.constant([self.draw.randrange(1000), self.draw.randrange(1000)])
        self.rate, self.step = self.draw.choice([0.0, 0.3, 0.7]), self.draw.randrange(1000)

    def taught(self, time):
        return noise.uniforms(1, self.step, self.batch.index, time) < self.rate  # 1 is the configuration's seed

    def losses_and_gradients(self, model, by_hand):
        config = make_translator('rnn', 1, train=TrainConfig(sampling=SamplingConfig(self.rate))).config
        objective, results = build_objective(model, config, None), []
        phase = objective.phases[0]
        loss = tf.function(lambda batch: objective.loss(phase, batch, self.seed, self.step), autograph=False)
        for run in (lambda: loss(self.batch).loss, by_hand):
            with tf.GradientTape() as tape:
                value = run()
            gradients = tape.gradient(value, model.trainable_variables, unconnected_gradients='zero')
            results.append([value, *map(tf.convert_to_tensor, gradients)])
        return zip(*results)

    def test_a_recurrent_decoder_chooses_after_what_it_was_fed(self):
        model, batch = make_translator('rnn', self.draw.randrange(1000), sharpen=3.0).model, self.batch

        def by_hand():
            memory, state = model.start(batch.src_ids, batch.src_mask, 1, 9)
            fed, total = tf.fill([6], model.bos_id), 0.0
            for t in range(7):
                logits, state, _ = model.step(fed[:, tf.newaxis], state, memory, t)
                log_probs = tf.gather(tf.nn.log_softmax(logits[:, 0]), batch.trg_ids[:, t], batch_dims=1)
                total -= tf.reduce_sum(tf.where(batch.trg_mask[:, t], log_probs, 0.0))
                own = tf.argmax(logits[:, 0], axis=-1, output_type=tf.int32)
                fed = tf.where(self.taught(t), batch.trg_ids[:, t], own)
            return total

        for got, want in self.losses_and_gradients(model, by_hand):
            self.assertAllClose(got, want, rtol=1e-4, atol=1e-4)

    def test_other_decoders_choose_after_the_reference(self):
        for family in ('transformer', 'conv'):
            model, batch = make_translator(family, self.draw.randrange(1000)).model, self.batch

            def by_hand():
                features, _ = model.features(batch)
                own = tf.argmax(model.logits(features), axis=-1, output_type=tf.int32)
                fed = [tf.fill([6], model.bos_id)]
                for t in range(6):
                    fed.append(tf.where(self.taught(t), batch.trg_ids[:, t], own[:, t]))
                encoded = model.encode(batch.src_ids, batch.src_mask)
                features, _ = model.read(encoded, tf.stack(fed, axis=1), batch.trg_mask)
                nll = tf.nn.sparse_softmax_cross_entropy_with_logits(batch.trg_ids, model.logits(features))
                return tf.reduce_sum(tf.where(batch.trg_mask, nll, 0.0))

            for got, want in self.losses_and_gradients(model, by_hand):
                self.assertAllClose(got, want, rtol=1e-4, atol=1e-4)

    def test_choices_are_made_without_dropout(self):
        for family in ('rnn', 'transformer'):
            parts = [dataclasses.replace(part, dropout=0.3) for part in FAMILIES[family]]
            network = dict(zip(('encoder', 'decoder'), parts))
            model = make_translator(family, self.draw.randrange(1000), sharpen=3.0, network=network).model
            batch, rate = self.batch, tf.constant(0.5)
            encoded = model.encode(batch.src_ids, batch.src_mask, self.seed)  # dropped out, as in the update
            fed = mixed_inputs(model, encoded, batch, rate, self.seed)
            features, _ = model.read(encoded, fed if family == 'rnn' else model.inputs(batch.trg_ids), batch.trg_mask)
            own = tf.argmax(model.logits(features), axis=-1, output_type=tf.int32)
            draws = noise.uniforms(*tf.unstack(self.seed), batch.index[:, tf.newaxis], tf.range(7)[tf.newaxis])
            want = model.inputs(tf.where(draws < rate, batch.trg_ids, own))
            self.assertAllEqual(tf.where(batch.trg_mask, fed, 0), tf.where(batch.trg_mask, want, 0))

    def test_drawn_tokens_are_as_frequent_as_likely_and_fed_as_often_as_the_rate_says(self):
        rows, steps, never = 400, 8, 11
        for family in ('rnn', 'transformer'):
            model = make_translator(family, self.draw.randrange(1000), sharpen=2.0).model
            model.output.bias.assign(-99.0 * tf.one_hot(never, 12))  # the reference is what it never says
            ids = tf.fill([rows, steps], never)
            source, mask = [tf.repeat(field[:1], rows, axis=0) for field in self.batch[:2]]
            batch = Batch(source, mask, ids, ids > 0, tf.range(rows, dtype=tf.int64))
            encoded = model.encode(source, mask)
            fed = lambda rate, choice: mixed_inputs(model, encoded, batch, tf.constant(rate), self.seed, choice)
            self.assertAllEqual(fed(1.0, 'sample'), model.inputs(ids))
            probs = tf.nn.softmax(model.logits(model.read(encoded, model.inputs(ids), ids > 0)[0][:1, 0]))[0].numpy()
            shares = np.bincount(fed(0.0, 'sample')[:, 1].numpy(), minlength=12) / rows
            for share, chance in zip(shares, probs):  # a token more or two, where hardly any is expected
                self.assertLess(abs(share - chance), 5 * math.sqrt(chance * (1 - chance) / rows) + 2 / rows)
            own = np.mean(fed(0.25, 'argmax')[:, 1:].numpy() != never)
            self.assertLess(abs(own - 0.75), 5 * math.sqrt(0.75 * 0.25 / (rows * (steps - 1))))


class ScheduleInTrainingTest(tf.test.TestCase):
    @untraced()
    def test_how_an_update_is_cut_into_batches_changes_no_choice(self):
        draw = seeds(self)
        batch, weights = make_batch(draw, sentences=9), []
        sampling = SamplingConfig(0.4, choice='sample')
        for cuts in ([(0, 9)], [(0, 2), (2, 9)]):
            train = TrainConfig(sampling=sampling, optimizer='sgd', learning_rate=1.0, accumulate=len(cuts))
            translator = make_translator('rnn', 3, train=train)
            model, objective = translator.model, build_objective(translator.model, translator.config, None)
            optimizer = build_optimizer(train)
            optimizer.build(model.trainable_variables)
            loss = lambda batch, seed, step: objective.loss(objective.phases[0], batch, seed, step)
            Updater(model, optimizer, TrainingState(1), train, 7, loss=loss)(
                [Batch(*[field[begin:end] for field in batch]) for begin, end in cuts]
            )
            weights.append([v.numpy() for v in model.trainable_variables])
        for whole, parts in zip(*weights, strict=True):
            self.assertAllClose(whole, parts, rtol=0, atol=1e-5)

    def test_one_trace_serves_all_rates_and_a_restored_training_goes_on_to_the_bit(self):
        draw = seeds(self)
        train = TrainConfig(sampling=SamplingConfig(schedule='linear', decay_steps=4), learning_rate=1e-2)
        batches = [[make_batch(draw)] for _ in range(4)]
        with tempfile.TemporaryDirectory() as folder:
            weights = []
            config = make_translator('rnn', 1, train=train).config
            for seed in (1, 2):
                model = make_translator('rnn', seed, train=train).model
                objective = build_objective(model, config, None)
                optimizer, state = build_optimizer(train), TrainingState(1)
                optimizer.build(model.trainable_variables)
                checkpoints = Checkpoints(os.path.join(folder, 'model'), model, optimizer, state, keep=1)
                loss = lambda batch, seed, step: objective.loss(objective.phases[0], batch, seed, step)
                update = Updater(model, optimizer, state, train, 7, loss=loss)
                if not weights:  # the first one writes a checkpoint half-way and goes on, the second one restores it
                    update(batches[0])
                    update(batches[1])
                    checkpoints.save()
                else:
                    self.assertIsNotNone(checkpoints.restore())
                update(batches[2])
                update(batches[3])
                self.assertEqual(update._update.experimental_get_tracing_count(), 1)
                self.assertAllClose(objective.report(objective.phases[0], None, 4), {'teacher_rate': 0.25})
                weights.append([v.numpy() for v in model.variables])
        for one, two in zip(*weights, strict=True):
            np.testing.assert_array_equal(one, two)


if __name__ == '__main__':
    tf.test.main()
