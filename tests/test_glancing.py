"""Glancing targets: which positions are given, what the others cost, and what learns from it."""

import numpy as np
import tensorflow as tf

from sequencing import flowseq_decoding
from sequencing.blocks import Rows
from sequencing.errors import UserError
from sequencing.flow_config import FlowTrainConfig
from sequencing.flow_objective import FlowObjective
from sequencing.glancing import given_positions, glancing_loss
from tests.flow_support import random_batch, tiny_flow_model
from tests.support import seeds


class GlancingTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        self.model, self.config, self.vocab = tiny_flow_model(self.random, train={'label_smoothing': 0.1})
        self.batch = random_batch(self.random, self.vocab)
        self.noise_seed = tf.constant([self.random.randrange(100), self.random.randrange(100)])

    def ends(self, batch):
        source, rows = self.model.encode(batch.src_ids, batch.src_mask), Rows(batch.trg_mask)
        return source, rows, self.model.posterior_ends(batch.trg_ids, rows, source)[0]

    def glance(self, batch, ratio):
        source, rows, mean = self.ends(batch)
        return glancing_loss(self.model, source, batch, rows, mean, ratio, noise_seed=self.noise_seed)

    def test_as_many_real_positions_are_given_as_asked_whatever_the_batch(self):
        lengths = self.batch.trg_mask.numpy().sum(axis=1)
        counts = np.array([self.random.randint(0, n) for n in lengths])
        given = given_positions(self.batch, tf.constant(counts, tf.float32), self.noise_seed).numpy()
        self.assertAllEqual(given.sum(axis=1), counts)
        self.assertFalse(np.any(given & ~self.batch.trg_mask.numpy()))
        order = self.random.sample(range(4), 4)
        wider = tf.pad(self.batch.trg_mask, [[0, 0], [0, 3]])
        moved = self.batch._replace(trg_mask=tf.gather(wider, order), index=tf.gather(self.batch.index, order))
        again = given_positions(moved, tf.constant(counts[order], tf.float32), self.noise_seed).numpy()
        self.assertAllEqual(again, np.pad(given, [[0, 0], [0, 3]])[order])

    def test_every_position_is_given_equally_often(self):
        draws, longest = 3000, 6
        batch = self.batch._replace(trg_mask=tf.ones([draws, longest], tf.bool), index=tf.range(draws, dtype=tf.int64))
        share = given_positions(batch, 2.0 * tf.ones([draws]), self.noise_seed).numpy().mean(axis=0)
        self.assertAllClose(share, np.full(longest, 1 / 3), atol=0.06)  # about seven standard deviations

    def test_the_loss_is_that_of_the_positions_not_given_sentence_by_sentence(self):
        for ratio in (0.0, 0.4, 1.0):
            loss, right = self.glance(self.batch, ratio)
            for i in range(4):
                want, hits = self.one_sentence(i, ratio)
                self.assertAllClose(loss[i], want, 1e-4, 1e-4)
                self.assertEqual(int(right[i]), hits)

    def one_sentence(self, i, ratio):
        """The definition, on a sentence alone and without padding, in NumPy but for the model's scores."""
        one = type(self.batch)(*[part[i : i + 1] for part in self.batch])
        steps, words = int(tf.reduce_sum(tf.cast(one.trg_mask, tf.int32))), int(tf.math.count_nonzero(one.src_mask))
        one = one._replace(src_ids=one.src_ids[:, :words], src_mask=one.src_mask[:, :words],
                           trg_ids=one.trg_ids[:, :steps], trg_mask=one.trg_mask[:, :steps])  # fmt: skip
        source, rows, mean = self.ends(one)
        prior, _ = flowseq_decoding.generate(self.model, source, rows, tf.zeros([steps, 8]))
        target = one.trg_ids.numpy()[0]
        first_look = self.model.logits(prior, rows, source).numpy()
        first_look[:, :3] = -np.inf  # PAD, UNK and BOS are never chosen
        first_look = first_look.argmax(axis=1)
        first_look[np.cumsum(first_look == self.vocab.eos_id) > 0] = self.vocab.eos_id
        wrong = first_look != target
        given = given_positions(one, tf.constant([float(np.round(ratio * wrong.sum()))]), self.noise_seed).numpy()[0]
        self.assertEqual(given.sum(), np.round(ratio * wrong.sum()))
        scores = self.model.logits(tf.where(given[:, np.newaxis], mean, prior), rows, source).numpy().astype(np.float64)
        log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        true = log_probs[np.arange(steps), target]
        smoothed = -0.9 * true - 0.1 * log_probs.mean(axis=1)
        return smoothed[~given].sum(), steps - wrong.sum()

    def test_it_teaches_the_decoder_and_leaves_the_latents_alone(self):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.glance(self.batch, 0.5)[0])
        parts = {name: getattr(self.model, name) for name in ('prior', 'posterior', 'decoder')}
        gradients = tape.gradient(loss, {name: list(part.trainable_variables) for name, part in parts.items()})
        norms = {name: float(tf.linalg.global_norm([g for g in all_of if g is not None]))
                 for name, all_of in gradients.items()}  # fmt: skip
        self.assertEqual((norms['prior'], norms['posterior']), (0.0, 0.0))
        self.assertGreater(norms['decoder'], 1e-3)

    def test_the_training_loss_adds_it_with_its_weight(self):
        plain = self.model.loss(self.batch, noise_seed=self.noise_seed)
        glanced, right = self.glance(self.batch, 0.3)
        both = self.model.loss(self.batch, noise_seed=self.noise_seed, glancing=0.7, glancing_ratio=0.3)
        self.assertAllClose(both.loss, plain.loss + 0.7 * tf.reduce_sum(glanced), 1e-5)
        self.assertAllClose((both.glancing, both.first_look), (tf.reduce_sum(glanced), tf.reduce_sum(right)), 1e-5)
        self.assertEqual((float(plain.glancing), float(plain.first_look)), (0.0, 0.0))
        self.assertAllClose((both.nll, both.kl), (plain.nll, plain.kl), 1e-5)

    def test_the_ratio_moves_linearly_over_the_second_phase(self):
        recipe = FlowTrainConfig(reconstruction_steps=7, glancing=1.0, glancing_from=0.6, glancing_to=0.2)
        model, config, _ = tiny_flow_model(self.random, train={'max_steps': 12, 'flow': recipe})
        objective = FlowObjective(model, config)
        ratios = [float(objective.glancing_ratio(objective.phases[1], step)) for step in range(7, 13)]
        self.assertAllClose(ratios, [0.6, 0.5, 0.4, 0.3, 0.2, 0.2])

    def test_levels_of_the_kl_are_weighed_one_by_one(self):
        plain = self.model.loss(self.batch, kl_weight=0.5)
        weighed = self.model.loss(self.batch, kl_weight=0.5, level_weights=(0.25, 3.0))
        first, second = plain.kl_by_level.numpy()
        self.assertAllClose(weighed.loss, plain.loss + 0.5 * (-0.75 * first + 2.0 * second), 1e-4)
        self.assertAllClose(weighed.kl, plain.kl, 1e-6)

    def test_a_weight_too_many_is_refused(self):
        for weights in ((1.0, 1.0, 1.0), (1.0,)):  # the tiny model's flow has two levels
            with self.assertRaisesRegex(UserError, r'train\.flow\.kl_level_weights.* 2 levels'):
                tiny_flow_model(self.random, train={'flow': FlowTrainConfig(kl_level_weights=weights)})


if __name__ == '__main__':
    tf.test.main()
