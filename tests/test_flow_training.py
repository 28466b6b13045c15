"""How flows are trained: phases, weights of the KL, initialisation on data, and the parts of the bound."""

import dataclasses
import types

import numpy as np
import tensorflow as tf

import nmt_train
from flow_layers.actnorm import ActNorm
from sequencing.blocks import Rows
from sequencing.flow_config import FlowPriorConfig, FlowTrainConfig
from sequencing.flow_objective import FlowObjective
from sequencing.flowseq import FULL, RECONSTRUCTION
from sequencing.flowseq_posteriors import sample_posterior
from sequencing.objectives import phase_at
from sequencing.optimizers import LearningRate, build_optimizer
from sequencing.parallel_batches import ParallelInputs
from sequencing.training import TrainingState, Updater, reset
from sequencing.translator import load_model
from tests.flow_support import random_batch, tiny_flow_model
from tests.support import FolderTest, run_tool, seeds, untraced
from tests.toy import write_task

ONE_LEVEL = FlowPriorConfig(steps=(0,), factors=(), hidden_size=6, heads=2)


class FlowTrainingTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)

    def objective(self, model=None, train=None, **recipe):
        recipe = FlowTrainConfig(**{'reconstruction_steps': 7, 'kl_warmup_steps': 4, **recipe})
        built, config, vocab = tiny_flow_model(self.random, model, {**(train or {}), 'flow': recipe})
        return FlowObjective(built, config), config, random_batch(self.random, vocab, unit=built.length_unit)

    def test_phases_follow_each_other(self):
        objective, config, _ = self.objective(train={'max_steps': 20})
        names = [phase_at(objective, update).name for update in (0, 6, 7, 19)]
        self.assertEqual(names, [RECONSTRUCTION, RECONSTRUCTION, FULL, FULL])
        self.assertEqual([phase.steps for phase in objective.phases], [7, 13])
        alone, _, _ = self.objective(reconstruction_steps=0)
        self.assertEqual([phase.name for phase in alone.phases], [FULL])

    def test_the_weight_of_the_kl_rises_and_starts_again_with_each_cycle(self):
        objective, _, _ = self.objective(kl_weight=0.8, kl_warmup_steps=4, kl_cycle_steps=6)
        got = [float(objective.kl_weight(objective.phases[1], 7 + i)) for i in range(8)]
        self.assertAllClose(got, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.2, 0.4])
        objective, _, _ = self.objective(kl_warmup_steps=0)
        self.assertAllClose(objective.kl_weight(objective.phases[1], 7), 1.0)

    @untraced()
    def test_the_first_phase_leaves_the_prior_alone_and_the_second_trains_all(self):
        train = {'optimizer': 'adamw', 'weight_decay': 0.1, 'learning_rate': 0.1}
        objective, config, batch = self.objective({'prior': ONE_LEVEL}, train)
        model = objective.model
        optimizer = build_optimizer(config.train)
        optimizer.build(model.trainable_variables)
        state = TrainingState(4, objective.parts)
        prior = {v.ref() for part in (model.prior, model.posterior.log_variance) for v in part.trainable_variables}
        for phase in objective.phases:
            before = [v.numpy() for v in model.trainable_variables]
            loss = lambda batch, seed, step, phase=phase: objective.loss(phase, batch, seed, step)
            Updater(model, optimizer, state, config.train, 1, loss=loss, variables=phase.variables)([batch])
            for variable, was in zip(model.trainable_variables, before):
                moved = not np.array_equal(variable, was)
                self.assertEqual(moved, phase.name == FULL or variable.ref() not in prior, variable.name)
        totals = state.take_totals()
        levels = [getattr(totals, f'kl_level_{i}') for i in range(objective.levels)]
        self.assertAllClose(sum(levels), totals.kl, rtol=1e-4)
        reset(optimizer)
        self.assertEqual(sum(float(tf.reduce_sum(tf.abs(tf.cast(v, tf.float32)))) for v in optimizer.variables), 0.0)

    def test_the_levels_of_the_prior_add_up_to_its_density(self):
        for steps, factors in (((0,), ()), ((1, 0), (2,)), ((0, 0, 0), (2, 4))):
            prior = FlowPriorConfig(steps=steps, factors=factors, hidden_size=6, heads=2)
            model, _, vocab = tiny_flow_model(self.random, {'prior': prior})
            batch = random_batch(self.random, vocab, unit=model.length_unit)
            source, rows = model.encode(batch.src_ids, batch.src_mask), Rows(batch.trg_mask)
            z = rows.only_real(tf.random.stateless_normal([rows.batch * rows.time, 8], [1, 2]))
            found = model.prior.log_prob_by_level(rows.padded(z), rows.mask, source.for_prior())
            self.assertEqual(found.shape, [4, len(steps)])
            self.assertAllClose(tf.reduce_sum(found, axis=1), model.prior_log_prob(z, rows, source), 1e-4, 1e-4)
            self.assertAllClose(sum(model.prior.level_shares), 1.0)

    def test_free_bits_cost_nothing(self):
        objective, _, batch = self.objective()
        plain = objective.model.loss(batch)
        tokens = tf.reduce_sum(tf.cast(batch.trg_mask, tf.float32), axis=1)
        self.assertAllClose(objective.model.loss(batch, free_bits=1e-9 - 1e9).loss, plain.loss, 1e-5)
        free = objective.model.loss(batch, free_bits=1e3)  # more than any sentence has
        self.assertAllClose(free.loss - (plain.loss - plain.kl), 1e3 * tf.reduce_sum(tokens), 1e-5)
        self.assertAllClose(free.kl, plain.kl)

    def test_initialisation_sets_the_ends_of_the_posterior_and_normalises_what_enters_the_flow(self):
        objective, config, batch = self.objective()
        drawn = []

        def sample(count, turn):
            drawn.append((count, turn))
            return [part.numpy() for part in batch]

        model = objective.model
        for phase in objective.phases:
            objective.begin(phase, types.SimpleNamespace(sample=sample))
        self.assertEqual(drawn, [(512, 0), (512, 1)])
        rows = Rows(batch.trg_mask)
        source = model.encode(batch.src_ids, batch.src_mask)
        ends = model.posterior_ends(batch.trg_ids, rows, source)
        for end in ends:  # the published recipe starts them at a deviation of 0.05 (facts, section 10)
            real = tf.boolean_mask(rows.padded(end), batch.trg_mask)
            self.assertAllClose(tf.math.reduce_std(real, axis=0), 0.05 * np.ones(8), atol=5e-3)
        draws = model.latent_noise(tf.constant([config.seed, 1], tf.int32), batch.index, 1, rows.time)
        _, z, _ = sample_posterior(*ends, rows, draws)
        first = next(module for module in model.prior.layers[0].submodules if isinstance(module, ActNorm))
        entered = first.forward(rows.padded(z), mask=rows.mask)
        real = tf.boolean_mask(entered, batch.trg_mask).numpy()
        self.assertAllClose(real.mean(axis=0), np.zeros(8), atol=1e-4)
        self.assertAllClose(real.std(axis=0, ddof=1), np.ones(8), atol=1e-3)

    def test_padding_counts_in_initialisation_only_where_asked(self):
        """Means and deviations by NumPy, over real positions or over all; the same where nothing is padded."""
        built, config, vocab = tiny_flow_model(self.random, {'prior': ONE_LEVEL})
        start = [variable.numpy() for variable in built.variables]
        some = random_batch(self.random, vocab)
        full = tf.where(some.trg_mask, some.trg_ids, vocab.eos_id), tf.ones_like(some.trg_mask)
        for padded, batch in ((True, some), (False, some._replace(trg_ids=full[0], trg_mask=full[1]))):
            ends = []
            for over_padding in (True, False):
                for variable, value in zip(built.variables, start):
                    variable.assign(value)
                recipe = FlowTrainConfig(reconstruction_steps=7, init_over_padding=over_padding)
                asked = dataclasses.replace(config, train=dataclasses.replace(config.train, flow=recipe))
                ends.append(self.check_initialisation(FlowObjective(built, asked), config.seed, batch, over_padding))
            same = [np.allclose(*pair, 1e-3, 1e-3) for pair in zip(*ends)]
            self.assertEqual(same, [not padded] * len(same))

    def check_initialisation(self, objective, seed, batch, over_padding):
        """Runs both initialisations; returns what they set: gains, biases, the first ActNorm's scales and shifts."""
        model, rows = objective.model, Rows(batch.trg_mask)
        counted = np.ones(rows.batch * rows.time, bool) if over_padding else batch.trg_mask.numpy().ravel()
        source = model.encode(batch.src_ids, batch.src_mask)
        embedded = rows.flat(model.trg_embedding(batch.trg_ids))
        features = model.posterior.features(embedded, rows, source.for_posterior())
        features = tf.where(rows.real, features, 0.0)  # as the published posterior does where padding counts
        linears = model.posterior.mean, model.posterior.log_variance
        actnorm = next(module for module in model.prior.layers[0].submodules if isinstance(module, ActNorm))
        set_ones = [v for linear in linears for v in (linear.gain, linear.bias)] + [actnorm.log_scale, actnorm.shift]
        before, outs = [v.numpy() for v in set_ones], [linear(features).numpy()[counted] for linear in linears]
        for phase in objective.phases:
            objective.begin(phase, types.SimpleNamespace(sample=lambda count, turn: batch))
        want = []
        for out, gain, bias in zip(outs, before[0::2], before[1::2]):
            ratio = 0.05 / (out.std(axis=0, ddof=1) + 1e-6)
            want += [gain * ratio, (bias - out.mean(axis=0)) * ratio]
        draws = model.latent_noise(tf.constant([seed, 1], tf.int32), batch.index, 1, rows.time)
        _, z, _ = sample_posterior(*model.posterior_ends(batch.trg_ids, rows, source), rows, draws)
        out = np.where(rows.real, z * np.exp(before[4]) + before[5], 0.0)[counted]
        ratio = 1.0 / (out.std(axis=0, ddof=1) + 1e-6)
        want += [before[4] + np.log(ratio), (before[5] - out.mean(axis=0)) * ratio]
        after = [v.numpy() for v in set_ones]
        for got, value in zip(after, want):
            self.assertAllClose(got, value, 1e-4, 1e-4)
        return after

    def test_lengths_out_of_reach_are_told(self):
        model, config, vocab = tiny_flow_model(self.random)
        objective = FlowObjective(model, config)
        phase = objective.phases[0]
        for units, far in ((1, False), (6, True)):  # the predictor tells differences up to 5
            batch = random_batch(self.random, vocab, src_longest=2, trg_units=max(units, 2))
            if not far:
                batch = batch._replace(trg_ids=batch.trg_ids[:, :2], trg_mask=tf.ones_like(batch.trg_mask[:, :2]))
            loss = objective.loss(phase, batch, [1, 2], tf.constant(0, tf.int64))
            totals = dict(zip(objective.parts, np.concatenate([np.reshape(part, [-1]) for part in loss])))
            said = objective.report(phase, types.SimpleNamespace(**totals), 1)
            src, trg = (mask.numpy().sum(axis=1) for mask in (batch.src_mask, batch.trg_mask))
            self.assertEqual('out_of_reach' in said, far)
            self.assertAllClose(said.get('out_of_reach', 0.0), np.mean(trg - src > 5))

    def test_the_rate_rises_in_the_first_phase_as_long_as_asked(self):
        for warmup, want in ((3, 3), (4000, 7)):
            objective, _, _ = self.objective(reconstruction_warmup=warmup, train={'warmup_steps': 2})
            self.assertEqual([phase.warmup_steps for phase in objective.phases], [want, 2])

    def test_the_rate_of_the_bound_has_a_peak_of_its_own(self):
        train = {'warmup_steps': 1, 'learning_rate': 2.0}
        objective, config, _ = self.objective(bound_rate=0.25, reconstruction_warmup=1, train=train)
        optimizer, state = build_optimizer(config.train), TrainingState(1, objective.parts)
        state.phases_begun.assign(2)  # nothing is set from data any more
        for phase, want in zip(objective.phases, (2.0, 0.5), strict=True):
            nmt_train.enter_phase(config, None, objective.model, objective, optimizer, state, None, phase.first)
            self.assertAllClose(optimizer.learning_rate, want)

    def test_the_learning_rate_begins_anew_in_each_phase(self):
        _, config, _ = self.objective(train={'warmup_steps': 10, 'warmup_from': 0.5, 'learning_rate': 2.0})
        rate = LearningRate(config.train, warmup_steps=4, steps=9)
        self.assertAllClose([rate(i) for i in (0, 1, 3, 4, 8)], [1.25, 1.5, 2.0, 2.0, 2.0])
        rate = LearningRate(config.train, warmup_steps=4, steps=9, rate=0.5)
        self.assertAllClose([rate(i) for i in (0, 1, 3, 4, 8)], [0.625, 0.75, 1.0, 1.0, 1.0])


class PhasesOfATrainingTest(FolderTest):
    """`nmt_train.py` itself, with a dev set, through both phases."""

    def setUp(self):
        super().setUp()
        self.config_file = write_task(self.path('data'), 'copy', self.draw, dev=6)

    def train(self, name, *arguments):
        code, out, err = run_tool(
            nmt_train.main, '--config=config_toy_flow', f'--config_file={self.config_file}', *arguments,
            f'--model_dir={self.folder}/{name}', f'--set=data.cache_dir={self.folder}/cache',
        )  # fmt: skip
        self.assertEqual(code, 0, err)
        return out

    def test_reconstructions_are_validated_but_only_translations_count_and_warm_starts_keep_the_flow(self):
        data = ('--set=data.dev_src=dev.src', '--set=data.dev_trg=dev.trg', '--set=train.patience=1')
        said = self.train('first', *data, '--set=train.validate_every=1', '--set=train.max_steps=6')
        # Patience of one validation: all those of the first phase, whatever they found, cost none.
        self.assertIn('phase bound begins at step 4', said)
        self.assertIn('validation at step 4', said)
        best = tf.train.latest_checkpoint(f'{self.folder}/first/best')
        self.assertGreaterEqual(int(best.rpartition('-')[2]), 5)
        frozen = ('--set=train.max_steps=2', '--set=train.learning_rate=1e-30', '--set=train.optimizer=sgd')
        phases = '--set=train.flow.reconstruction_steps=1'  # before either of which something would be set from data
        said = self.train('second', *frozen, phases, f'--init_from={self.folder}/first')
        self.assertNotIn('new:', said)
        taken, kept = (
            load_model(f'{self.folder}/{name}', which)[0] for name, which in (('first', 'best'), ('second', 'last'))
        )
        for got, want in zip(kept.variables, taken.variables, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-20, err_msg=want.name)


class SampleTest(tf.test.TestCase):
    def test_samples_are_random_pairs_that_do_not_repeat(self):
        class Fake(ParallelInputs):
            def __init__(self, size, seed):
                self.size, self._seed = size, seed

            def _rows(self, numbers):
                return numbers

            def _batch(self, rows, numbers):
                return numbers

        random = seeds(self)
        size, seed = random.randint(50, 90), random.randrange(1000)
        first, second = [Fake(size, seed).sample(40, turn).tolist() for turn in (0, 1)]
        self.assertEqual(len(set(first)), 40)
        self.assertNotEqual(first, second)
        self.assertEqual(first, Fake(size, seed).sample(40, 0).tolist())
        self.assertEqual(sorted(Fake(size, seed).sample(1000)), list(range(size)))


if __name__ == '__main__':
    tf.test.main()
