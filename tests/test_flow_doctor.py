"""The doctor's measures against plain NumPy, and its verdicts on models made to be ill."""

import os
import tempfile

import numpy as np
import tensorflow as tf

from flow_layers.invertible_linear import InvertibleLinear
from sequencing.config import TrainConfig
from sequencing.flow_config import FlowPriorConfig
from sequencing.flow_diagnosis import ALIVE, SOURCES, Probe, verdict
from sequencing.flow_objective import FlowObjective
from sequencing.flowseq import RECONSTRUCTION
from sequencing.optimizers import build_optimizer
from sequencing.training import TrainingState, Updater
from tests.flow_support import random_batch, tiny_flow_model
from tests.support import seeds, untraced
from tools import flow_doctor


class DoctorTest(tf.test.TestCase):
    """One model and its probe serve all tests, so that the measures are traced once; each begins with its weights."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model, cls.config, cls.vocab = tiny_flow_model(seeds(cls('measure')))
        cls.probe = Probe(cls.model)
        cls.weights = [variable.numpy() for variable in cls.model.variables]

    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        for variable, value in zip(self.model.variables, self.weights):
            variable.assign(value)
        self.batches = [random_batch(self.random, self.vocab, batch=count) for count in (5, 3)]

    def measure(self, batches=None, probe=None):
        return (probe or self.probe).measure(batches or self.batches)

    def test_measures_are_those_of_plain_arithmetic(self):
        findings, ids, latents, (predicted, true) = self.measure()
        losses = [self.model.loss(batch, smooth=False) for batch in self.batches]
        tokens = sum(float(loss.tokens) for loss in losses)
        self.assertAllClose(findings.reconstruction, sum(float(x.reconstruction) for x in losses) / tokens, 1e-4)
        self.assertAllClose(findings.kl, sum(float(loss.kl) for loss in losses) / tokens, 1e-4, 1e-4)
        self.assertAllClose(sum(findings.kl_by_level), findings.kl, 1e-4, 1e-4)
        targets = [ids[mask] for batch in self.batches for ids, mask in zip(batch.trg_ids.numpy(), batch.trg_mask)]
        for source in SOURCES:
            right = sum((a == b).sum() for a, b in zip(ids[source], targets))
            self.assertAllClose(findings.accuracy[source], right / tokens)
        self.assertEqual(true, [len(row) for row in targets])
        self.assertAllClose(findings.length_error, np.abs(np.subtract(predicted, true)).mean())
        first = self.measure(self.batches[:1])
        means = first[2]['posterior']
        self.assertEqual(first[0].active, int((means.var(axis=0) > 0.01).sum()))
        self.assertAllClose(first[0].mean, np.sqrt(np.square(means).mean()), 1e-4)
        self.assertLess(findings.round_trip, 1e-3)

    def test_a_model_fresh_from_its_start_is_undertrained(self):
        self.assertEqual(verdict(self.measure()[0])[0], 'undertrained')

    @untraced()
    def test_a_broken_weight_and_a_singular_layer_are_exploding(self):
        prior = FlowPriorConfig(steps=(1,), factors=(), hidden_size=6, heads=2)
        deep, _, vocab = tiny_flow_model(self.random, {'prior': prior})
        probe, batches = Probe(deep), [random_batch(self.random, vocab, unit=deep.length_unit)]
        layer = next(module for module in deep.submodules if isinstance(module, InvertibleLinear))
        whole = layer.matrix.numpy()
        layer.matrix.assign(tf.concat([whole[:1] * 1e-7, whole[1:]], axis=0))
        found = verdict(self.measure(batches, probe)[0])
        self.assertEqual(found[0], 'exploding', found)
        layer.matrix.assign(whole * np.nan)
        found = verdict(self.measure(batches, probe)[0])
        self.assertEqual(found[0], 'exploding', found)
        self.assertIn('non-finite', found[1])

    def test_a_decoder_that_needs_no_latent_is_collapsed(self):
        token = self.vocab.size - 1
        batches = [b._replace(trg_ids=tf.where(b.trg_mask, token, b.trg_ids)) for b in self.batches]
        self.model.output.bias.assign(20.0 * tf.one_hot(token, self.vocab.size))
        self.assertEqual(verdict(self.measure(batches)[0])[0], 'collapsed')

    def test_a_living_latent_is_undertrained_until_the_prior_has_caught_up(self):
        batch = random_batch(self.random, self.vocab, batch=8)
        # Sources that change from update to update force what the decoder needs into the latent.
        turned = [
            batch._replace(src_ids=tf.roll(batch.src_ids, i, 0), src_mask=tf.roll(batch.src_mask, i, 0))
            for i in range(8)
        ]
        self.train_reconstruction(turned, 400)
        findings = self.measure([batch])[0]
        right = findings.accuracy
        self.assertGreater(right['posterior'], right['zeros'] + ALIVE, str(findings))
        for source, wanted in (('zeros', 'undertrained'), ('posterior', 'healthy')):
            # A prior no better than this, and a posterior that is past its noise.
            like = findings._replace(reconstruction=0.1, accuracy={**right, 'prior': right[source]})
            self.assertEqual(verdict(like)[0], wanted)

    def train_reconstruction(self, batches, steps):
        train = TrainConfig(learning_rate=2e-2, clip_norm=1.0)
        flow = {id(variable) for variable in self.model.prior.variables}
        variables = [variable for variable in self.model.trainable_variables if id(variable) not in flow]
        optimizer = build_optimizer(train)
        optimizer.build(variables)
        loss = lambda batch, seed, step: self.model.loss(batch, seed, RECONSTRUCTION)
        state = TrainingState(1, FlowObjective(self.model, self.config).parts)
        update = Updater(self.model, optimizer, state, train, 1, loss=loss, variables=variables)
        for i in range(steps):
            update([batches[i % len(batches)]])


class PictureTest(tf.test.TestCase):
    def test_a_picture_of_latents_and_lengths_is_written(self):
        random = np.random.default_rng(seeds(self).randrange(2**31))
        latents = {name: random.normal(size=[30, 5]) for name in ('posterior', 'prior')}
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'doctor.png')
            flow_doctor.draw(path, latents, ([3, 4, 5], [4, 4, 6]))
            self.assertGreater(os.path.getsize(path), 1000)


if __name__ == '__main__':
    tf.test.main()
