"""Scheduled sampling: rates by their formulas, losses and gradients against decoders that are fed by hand."""

import math
import os
import tempfile

import numpy as np
import tensorflow as tf

from sequencing import noise
from sequencing.config import TrainConfig
from sequencing.model_folder import Checkpoints
from sequencing.objectives import build_objective
from sequencing.optimizers import build_optimizer
from sequencing.options import ConfigError
from sequencing.scheduled_sampling import mixed_inputs, teacher_rate
from sequencing.sequence_config import SamplingConfig
from sequencing.structures import Batch
from sequencing.training import TrainingState, Updater
from tests.families import make_translator
from tests.support import seeds


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
        self.rate = self.draw.choice([0.0, 0.3, 0.7])

    def taught(self, time):
        return noise.uniforms(self.seed[0], self.seed[1], self.batch.index, time) < self.rate

    def losses_and_gradients(self, model, by_hand):
        config = make_translator('rnn', 1, train=TrainConfig(sampling=SamplingConfig(self.rate))).config
        objective = build_objective(model, config, None)
        loss = tf.function(lambda batch: objective.loss(objective.phases[0], batch, self.seed, 0), autograph=False)
        results = []
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

    def test_rate_one_is_teacher_forcing_and_drawn_tokens_are_fed_as_often_as_the_rate_says(self):
        for family in ('rnn', 'transformer'):
            model = make_translator(family, self.draw.randrange(1000)).model
            ids = tf.fill([400, 8], 11)
            batch = Batch(*[field[:1] for field in self.batch[:2]], ids, ids > 0, tf.range(400, dtype=tf.int64))
            batch = batch._replace(src_ids=tf.repeat(batch.src_ids, 400, 0), src_mask=tf.repeat(batch.src_mask, 400, 0))
            encoded = model.encode(batch.src_ids, batch.src_mask)
            fed = mixed_inputs(model, encoded, batch, tf.constant(1.0), self.seed, 'sample')
            self.assertAllEqual(fed, model.inputs(ids))
            if family == 'transformer':  # tokens drawn at the first step have the model's own probabilities
                fed = mixed_inputs(model, encoded, batch, tf.constant(0.0), self.seed, 'sample')[:, 1].numpy()
                logits = model.logits(model.read(encoded, model.inputs(ids), batch.trg_mask)[0][:1, 0])
                probs, counts = tf.nn.softmax(logits)[0].numpy(), np.bincount(fed, minlength=12)
                self.assertAllClose(counts / 400, probs, atol=5 * 0.5 / 20)
            fed = mixed_inputs(model, encoded, batch, tf.constant(0.25), self.seed, 'argmax')[:, 1:]
            own = np.mean(fed.numpy() != 11)
            if own:  # or the likeliest token was the reference itself
                self.assertLess(own, 0.75 + 5 * 0.44 / math.sqrt(2800))


class ScheduleInTrainingTest(tf.test.TestCase):
    def test_one_trace_serves_all_rates_and_a_restored_training_goes_on_to_the_bit(self):
        draw = seeds(self)
        train = TrainConfig(sampling=SamplingConfig(schedule='linear', decay_steps=4), learning_rate=1e-2)
        batches = [[make_batch(draw)] for _ in range(4)]
        with tempfile.TemporaryDirectory() as folder:
            weights = []
            for seed in (1, 2):
                translator = make_translator('rnn', seed, train=train)
                model, objective = translator.model, build_objective(translator.model, translator.config, None)
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
