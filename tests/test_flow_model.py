"""What a FlowSeq model promises: losses, initialisation, parts; on tiny models with random weights."""

import dataclasses
import math
import unittest

import numpy as np
import tensorflow as tf

from sequencing.blocks import Rows, position_signal, source_beside_target
from sequencing.flow_config import (
    FlowPriorConfig,
    FlowRNNEncoderConfig,
    FlowRNNPosteriorConfig,
    FlowSeqConfig,
    FlowTransformerEncoderConfig,
    FlowTransformerPosteriorConfig,
    LogisticLengthConfig,
)
from sequencing.flowseq import FULL, RECONSTRUCTION
from sequencing.options import ConfigError, check
from tests.flow_models import MODELS, FlowModelCase
from tests.flow_support import random_batch, random_normal, tiny_flow_model
from tests.support import seeds


class LossTest(FlowModelCase):
    def test_no_sentence_depends_on_the_others_or_on_padding(self):
        for name in MODELS:
            for phase in (RECONSTRUCTION, FULL):
                with self.subTest(model=name, phase=phase):
                    model, config, vocab = self.model(name)
                    unit = config.model.length_unit
                    batch = random_batch(self.random, vocab, batch=2, unit=unit)
                    whole = model.loss(batch, phase=phase, kl_weight=0.3)
                    parts = []
                    for i in range(2):
                        src, trg = [int(mask[i].numpy().sum()) for mask in (batch.src_mask, batch.trg_mask)]
                        one = [batch.src_ids[i : i + 1, :src], batch.src_mask[i : i + 1, :src],
                               batch.trg_ids[i : i + 1, :trg], batch.trg_mask[i : i + 1, :trg]]  # fmt: skip
                        parts.append(model.loss(batch._replace(
                            src_ids=one[0], src_mask=one[1], trg_ids=one[2], trg_mask=one[3],
                            index=batch.index[i : i + 1]), phase=phase, kl_weight=0.3))  # fmt: skip
                    for field in whole._fields:
                        total = sum(getattr(part, field).numpy() for part in parts)
                        self.assertAllClose(getattr(whole, field), total, 1e-4, 1e-4, msg=field)

    def test_sentences_that_fill_up_a_batch_add_nothing(self):
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab)
        filled = batch._replace(
            **{
                name: tf.pad(getattr(batch, name), [[0, 2], [0, 0]])
                for name in ('src_ids', 'src_mask', 'trg_ids', 'trg_mask')
            },
            index=tf.pad(batch.index, [[0, 2]]),
        )
        for phase in (RECONSTRUCTION, FULL):
            for got, want in zip(model.loss(filled, phase=phase), model.loss(batch, phase=phase)):
                self.assertAllClose(got, want, 1e-5, 1e-5)

    def test_gradients_reach_what_they_should(self):
        for name in MODELS:
            model, config, vocab = self.model(name)
            batch = random_batch(self.random, vocab, unit=config.model.length_unit)
            prior = {id(v) for v in model.prior.trainable_variables}
            noise_free = {id(v) for v in model.posterior.log_variance.trainable_variables}
            for phase in (RECONSTRUCTION, FULL):
                with tf.GradientTape() as tape:
                    loss = model.loss(batch, seed=[1, 2], phase=phase).loss
                gradients = tape.gradient(loss, model.trainable_variables)
                for variable, gradient in zip(model.trainable_variables, gradients):
                    untouched = phase == RECONSTRUCTION and id(variable) in prior | noise_free
                    self.assertEqual(gradient is None, untouched, variable.name)
                    if gradient is not None:
                        self.assertTrue(np.isfinite(tf.convert_to_tensor(gradient)).all(), variable.name)

    def test_noise_and_dropout_follow_the_seed(self):
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab)
        losses = [float(model.loss(batch, seed=seed).loss) for seed in ([1, 2], [1, 2], [1, 3], [2, 2])]
        self.assertEqual(losses[0], losses[1])
        self.assertEqual(len(set(losses)), 3)

    def test_samples_are_averaged(self):
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab)
        draws = random_normal(self.random, [4, 3, 6, 8], tf.float32)
        together = model.loss(batch, samples=3, draws=draws)
        alone = [model.loss(batch, draws=draws[:, i : i + 1]) for i in range(3)]
        for field in ('loss', 'kl', 'reconstruction'):
            mean = np.mean([float(getattr(loss, field)) for loss in alone])
            self.assertAllClose(getattr(together, field), mean, 1e-4, 1e-4)

    def test_lengths_out_of_reach_are_counted(self):
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab, src_longest=2, trg_units=6)
        src = batch.src_mask.numpy().sum(axis=1)
        trg = batch.trg_mask.numpy().sum(axis=1)
        wanted = sum(max(t - s, s - t) > 5 for s, t in zip(src.tolist(), trg.tolist()))
        self.assertEqual(int(model.loss(batch).out_of_reach), wanted)
        self.assertTrue(np.isfinite(float(model.loss(batch).length)))

    def test_initialisation_from_data(self):
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab, batch=16)
        for end in (model.posterior.mean, model.posterior.log_variance):  # near 0 there is nothing to scale
            end.gain.assign(tf.ones_like(end.gain))
        model.initialise(batch, [1, 2], RECONSTRUCTION)
        model.initialise(batch, [1, 2], FULL)
        source = model.encode(batch.src_ids, batch.src_mask)
        rows = Rows(batch.trg_mask)
        for end in model.posterior_ends(batch.trg_ids, rows, source):
            real = end.numpy()[rows.real.numpy()[:, 0]]
            self.assertAllClose(real.mean(axis=0), np.zeros(8), atol=1e-4)
            self.assertAllClose(real.std(axis=0, ddof=1), np.full(8, 0.05), atol=1e-3)

    def test_mixed_precision_stays_close(self):
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab)
        want = model.loss(batch)
        model.dtype = tf.bfloat16
        got = model.loss(batch)
        self.assertAllClose(got.nll, want.nll, rtol=0.05)
        self.assertEqual(got.loss.dtype, tf.float32)


class PartsTest(tf.test.TestCase):
    def test_positions_against_a_loop(self):
        for size in (2, 5, 8):
            got = position_signal(tf.constant([1, 7]), size, tf.float64).numpy()
            half = size // 2
            for row, position in zip(got, (1, 7)):
                want = np.zeros(size)
                for i in range(half):
                    rate = math.exp(-i * math.log(10000) / max(half - 1, 1))
                    want[i], want[half + i] = math.sin(position * rate), math.cos(position * rate)
                self.assertAllClose(row, want, atol=1e-9)

    def test_the_source_beside_the_target_against_a_loop(self):
        random = seeds(self)
        sources, targets = [random.randint(1, 6) for _ in range(3)], [random.randint(1, 8) for _ in range(5)] + [0]
        states = random_normal(random, [3, 6, 5])
        rows = Rows(tf.sequence_mask(targets, 9))  # two a source, those of the first one first
        got = rows.padded(source_beside_target(rows, tf.constant(states), tf.constant(sources, tf.float32)))
        want = np.zeros([6, 9, 5])
        for i, target in enumerate(targets):
            source = sources[i // 2]
            for t in range(target):
                place = (t + 0.5) * source / target - 0.5
                weights = [math.exp(-2 * (s - place) ** 2) for s in range(source)]
                want[i, t] = sum(w * states[i // 2, s] for s, w in enumerate(weights)) / sum(weights)
        self.assertAllClose(got, want, atol=1e-5)

    def test_every_part_has_the_dropout_of_its_configuration(self):
        encoders = (FlowTransformerEncoderConfig(layers=1, heads=2, dropout=0.3, embedding_dropout=0.4),
                    FlowRNNEncoderConfig(layers=1, embedding_dropout=0.6))  # fmt: skip
        posterior = FlowTransformerPosteriorConfig(
            layers=1, heads=2, dropout=0.35, embedding_dropout=0.45, word_dropout=0.55
        )
        for encoder in encoders:
            model, _, _ = tiny_flow_model(seeds(self), {'encoder': encoder, 'posterior': posterior})
            self.assertEqual(model.encoder.dropout.rate, encoder.embedding_dropout)
            self.assertEqual((model.posterior.dropout.rate, model.posterior.word_dropout.rate), (0.45, 0.55))

    def test_a_configuration_that_cannot_be_is_refused_by_name(self):
        wrong = {
            'latent_size': dict(latent_size=128),
            'prior.heads': dict(prior=FlowPriorConfig(heads=7)),
            'prior.factors': dict(prior=FlowPriorConfig(steps=(1, 1), factors=(300,), coupling='conv')),
            'length.reach': dict(length=LogisticLengthConfig(reach=2)),
            'decoder.heads': dict(decoder=dataclasses.replace(FlowSeqConfig().decoder, heads=3)),
            'posterior.layers': dict(posterior=FlowRNNPosteriorConfig(shifted=True, layers=2)),
        }
        for field, changes in wrong.items():
            with self.assertRaisesRegex(ConfigError, f'^{field}'):
                check(FlowSeqConfig(**changes))
        check(FlowSeqConfig())


if __name__ == '__main__':
    unittest.main()
