"""What `test_distribution.py` runs in a process of its own: it needs four devices, made before TensorFlow starts."""

import contextlib
import dataclasses
import io
import os
import tempfile
import types
import unittest

import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 4
)

import nmt_infer  # noqa: E402
import nmt_train  # noqa: E402
from build_model import build_model, build_objective  # noqa: E402
from sequencing.config import TrainConfig  # noqa: E402
from sequencing.distribution import Distribution, choose_distribution, mirrored, tf_variable  # noqa: E402
from sequencing.flow_config import FlowPriorConfig, FlowTrainConfig  # noqa: E402
from sequencing.objectives import Likelihood  # noqa: E402
from sequencing.optimizers import build_optimizer  # noqa: E402
from sequencing.structures import Batch  # noqa: E402
from sequencing.training import FIRST_LOSS_SCALE, TrainingState, Updater  # noqa: E402
from sequencing.translator import Translator  # noqa: E402
from tests.families import FAMILIES, make_translator, save_translator  # noqa: E402
from tests.flow_support import random_batch, tiny_flow_model  # noqa: E402
from tests.support import seeds  # noqa: E402
from tests.test_resume import everything_in  # noqa: E402
from tests.toy import write_task  # noqa: E402

SGD = {'optimizer': 'sgd', 'learning_rate': 1.0, 'clip_norm': 0.0}


def cpus(count):
    return mirrored([f'CPU:{i}' for i in range(count)])


def shares_of(batch, distribution, rows=slice(None)):
    """The shares of a batch's `rows` for all replicas; one pair stands in where there are too few."""
    rows = np.arange(batch.index.shape[0])[rows]
    replicas, shares = distribution.replicas.total, []
    for i in range(replicas):
        mine = rows[i::replicas]
        share = Batch(*[tf.gather(field, mine if len(mine) else rows[:1]) for field in batch])
        shares.append(share if len(mine) else share._replace(index=tf.constant([-1], tf.int64)))
    return tuple(shares)


def copies(distribution, variables):
    """Every replica's value of each variable."""
    local = distribution.strategy.experimental_local_results
    return [[copy.numpy() for copy in local(tf_variable(variable))] for variable in variables]


class Training:
    """A model with all that updates it, on one device or several."""

    def __init__(self, config, vocab, distribution, weights=None, dropout=True, **options):
        train = config.train
        with distribution.scope():
            self.model = build_model(config, vocab, vocab)
            self.optimizer = build_optimizer(train)
            self.optimizer.build(self.model.trainable_variables)
        for variable, value in zip(self.model.trainable_variables, weights or ()):
            variable.assign(value)
        self.distribution = distribution
        self.objective = build_objective(self.model, config, None)
        self.phase = self.objective.phases[-1]
        self.state = TrainingState(4, self.objective.parts)
        loss = options.pop('loss', None) or self.objective.loss
        self.update = Updater(
            self.model, self.optimizer, self.state, train, config.seed, distribution=distribution,
            loss=lambda batch, seed, step: loss(self.phase, batch, seed if dropout else None, step), **options,
        )  # fmt: skip

    def weights(self):
        return [variable.numpy() for variable in self.model.trainable_variables]

    def do(self, batch, pieces=1):
        """One update from a batch cut into `pieces`."""
        rows = np.array_split(np.arange(batch.index.shape[0]), pieces)
        self.update([shares_of(batch, self.distribution, some) for some in rows])


class ReplicasTestCase(tf.test.TestCase):
    """Makes trainings on one device and several, and compares them.

    `eager` is without `tf.function`, whose traces of four replicas are most of what such a test costs; `large`
    models have two layers, and flows two levels.
    """

    eager, large = False, False

    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        tf.config.run_functions_eagerly(self.eager)
        self.addCleanup(tf.config.run_functions_eagerly, False)

    def prepare(self, family, batches=1, **train):
        """A configuration without dropout, its vocabulary, weights to start from and batches of 7 pairs."""
        train = {**SGD, **train}
        if family == 'flow':
            recipe = FlowTrainConfig(reconstruction_steps=0, kl_warmup_steps=1, glancing=1.0)
            parts = {} if self.large else {'prior': FlowPriorConfig(steps=(0,), factors=(), hidden_size=6, heads=2)}
            model, config, vocab = tiny_flow_model(self.random, parts, {**train, 'flow': recipe})
            made = [random_batch(self.random, vocab, unit=model.length_unit, batch=7) for _ in range(batches)]
        else:
            layers = {'layers': 2 if self.large else 1} if family == 'transformer' else {}
            parts = [dataclasses.replace(part, **layers) for part in FAMILIES[family]]
            translator = make_translator(family, self.random.randrange(1000), train=TrainConfig(**train),
                                         network=dict(zip(('encoder', 'decoder'), parts)))  # fmt: skip
            model, config, vocab = translator.model, translator.config, translator.trg_vocab
            made = [self.batch(vocab, 7) for _ in range(batches)]
        return config, vocab, [v.numpy() for v in model.trainable_variables], made

    def batch(self, vocab, count, longest=4):
        random = np.random.default_rng(self.random.randrange(2**31))
        masks = np.arange(longest) < random.integers(1, longest + 1, [2, count])[..., np.newaxis]
        ids = np.where(masks, random.integers(4, vocab.size, masks.shape), vocab.pad_id).astype(np.int32)
        return Batch(*map(tf.constant, (ids[0], masks[0], ids[1], masks[1], np.arange(count) + 40)))

    def check_same_gradient(self, family, ways):
        """One device with one batch an update, and `ways`: numbers of devices and of batches that it is cut into."""
        config, vocab, start, [batch] = self.prepare(family)
        found, totals = [], []

        for devices, pieces in [(1, 1), *ways]:
            distribution = cpus(devices)
            train = dataclasses.replace(config.train, accumulate=pieces)
            training = Training(dataclasses.replace(config, train=train), vocab, distribution, start, dropout=False)
            training.do(batch, pieces)  # 7 pairs in two pieces on four replicas: one of them has none
            found.append([old - new for old, new in zip(start, training.weights())])
            totals.append(training.state.take_totals())
            for variable in copies(distribution, training.model.trainable_variables):
                for copy in variable[1:]:
                    self.assertAllEqual(copy, variable[0])
        norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in found[0]))
        self.assertGreater(norm, 1e-3)
        for got, sums in zip(found[1:], totals[1:]):
            error = np.sqrt(sum(float(((g - w).astype(np.float64) ** 2).sum()) for g, w in zip(got, found[0])))
            self.assertLess(error, 1e-5 * norm)
            self.assertEqual((sums.tokens, sums.sentences, sums.updates), (totals[0].tokens, 7.0, 1.0))
            self.assertAllClose(sums.loss, totals[0].loss, rtol=1e-5)
            self.assertAllClose(sums.gradient_norm, totals[0].gradient_norm, rtol=1e-4)


class GradientTest(ReplicasTestCase):
    """Promise 9; `system_tests/on_four_devices.py` has longer forms, and all of this with `tf.function`."""

    eager = True

    def test_an_rnn_has_the_same_gradient_on_any_number_of_replicas(self):
        self.check_same_gradient('rnn', [(1, 3), (2, 1), (4, 2)])

    def test_a_transformer_has_the_same_gradient_on_any_number_of_replicas(self):
        self.check_same_gradient('transformer', [(2, 1), (4, 2)])

    def test_a_flow_has_the_same_gradient_on_any_number_of_replicas(self):
        self.check_same_gradient('flow', [(2, 2), (4, 1)])


class ReplicasTest(ReplicasTestCase):
    """What else replicas have to agree on."""

    eager = True

    def test_adamw_keeps_its_replicas_equal_and_near_one_device(self):
        tf.config.run_functions_eagerly(False)  # the one update of Adam on replicas that is traced, as training is
        config, vocab, start, [batch] = self.prepare('rnn', optimizer='adamw', learning_rate=1e-3, weight_decay=0.1,
                                                   amsgrad=True, ema=0.9, epsilon=1e-3)  # fmt: skip
        ends = []
        for distribution in (Distribution(), cpus(2)):
            training = Training(config, vocab, distribution, start)
            for _ in range(3):
                training.do(batch)
            kept = copies(distribution, [*training.model.variables, *training.optimizer.variables])
            for variable in kept:
                for copy in variable[1:]:
                    self.assertAllEqual(copy, variable[0])
            ends.append([variable[0] for variable in kept])
        for got, want in zip(*ends, strict=True):
            self.assertAllClose(got, want, atol=1e-5)

    def test_all_replicas_skip_what_overflows_in_one(self):
        config, vocab, start, [batch] = self.prepare('rnn')
        weight = tf.Variable(np.inf, trainable=False)

        def loss(phase, batch, seed, step):
            parts = training.model.loss(batch, seed)
            return parts._replace(loss=parts.loss * tf.where(tf.reduce_any(batch.index == 40), weight, 1.0))

        training = Training(config, vocab, cpus(2), start, loss=loss, scale_loss=True)
        training.do(batch)
        self.assertEqual(float(training.state.loss_scale), FIRST_LOSS_SCALE / 2)
        self.assertEqual(int(training.state.skipped), 1)
        for variable, old in zip(copies(training.distribution, training.model.trainable_variables), start):
            for copy in variable:
                self.assertAllEqual(copy, old)
        weight.assign(1.0)
        training.do(batch)
        plain = Training(config, vocab, Distribution(), start)
        plain.do(batch)
        self.assertEqual(int(training.state.skipped), 1)
        for got, want in zip(training.weights(), plain.weights()):
            self.assertAllClose(got, want, atol=1e-5)

    def test_what_overflows_float16_in_one_replica_scales_all_down(self):
        config, vocab, start, batches = self.prepare('transformer', batches=4, learning_rate=0.1)
        config = dataclasses.replace(config, precision='mixed_float16')
        training = Training(config, vocab, cpus(4), start, loss=lambda *given: loss(*given), scale_loss=True)
        # One device takes the shares one after another: rounded alike, but for what another scale makes too small.
        in_turn = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=4))
        plain = Training(in_turn, vocab, Distribution(), start, scale_loss=True)
        for state in (training.state, plain.state):
            state.loss_scale.assign(64.0)  # which the gradients of all batches allow
        weight = tf.Variable(1e4, trainable=False)  # the loss stays finite, and only its scaled gradient does not

        def loss(phase, batch, seed, step):
            parts = training.model.loss(batch, seed)
            return parts._replace(loss=parts.loss * tf.where(tf.reduce_any(batch.index == 41), weight, 1.0))

        def check_replicas(skipped):
            state = training.state
            self.assertEqual((float(state.loss_scale), int(state.skipped)), (64 / 2**skipped, skipped))
            found = copies(training.distribution, training.model.trainable_variables)
            for variable in found:
                for copy in variable[1:]:
                    self.assertAllEqual(copy, variable[0])
            return [variable[0] for variable in found]

        for skipped in (1, 2):
            training.do(batches[0])
            for got, old in zip(check_replicas(skipped), start, strict=True):
                self.assertAllEqual(got, old)
        weight.assign(1.0)
        for batch in batches:
            training.do(batch)
            plain.update([(share,) for share in shares_of(batch, training.distribution)])
            ends = check_replicas(2)
        self.assertEqual(int(plain.state.skipped), 0)
        moved = [np.linalg.norm(new - old) for new, old in zip(ends, start)]
        apart = [np.linalg.norm(new - other) for new, other in zip(ends, plain.weights(), strict=True)]
        self.assertGreater(np.linalg.norm(moved), 0.01)
        self.assertLess(np.linalg.norm(apart), 1e-3 * np.linalg.norm(moved))

    def test_a_flow_is_initialised_alike_on_all_replicas(self):
        config, vocab, start, [batch] = self.prepare('flow')
        inputs = types.SimpleNamespace(sample=lambda count, turn: [field.numpy() for field in batch])
        found = []
        for distribution in (Distribution(), cpus(2)):
            training = Training(config, vocab, distribution, start)
            for phase in training.objective.phases:
                training.objective.begin(phase, inputs)
            found.append([copies(distribution, some) for some in
                          (training.model.variables, training.model.trainable_variables)])  # fmt: skip
        (one, _), (two, trained) = found
        for alone, both in zip(one, two, strict=True):
            self.assertAllEqual(both[0], both[1])
            self.assertAllClose(both[0], alone[0], atol=1e-6)
        changed = [not np.array_equal(variable[0], old) for variable, old in zip(trained, start, strict=True)]
        self.assertGreater(sum(changed), 3)

    def test_dropout_differs_between_replicas_and_likelihood_asks_for_it(self):
        config, vocab, start, [batch] = self.prepare('rnn')
        drawn = []

        def loss(phase, batch, seed, step):
            tf.py_function(lambda value: drawn.append(tuple(value.numpy())), [seed], [])
            return training.model.loss(batch, seed)

        training = Training(config, vocab, cpus(2), start, loss=loss)
        self.assertIsInstance(training.objective, Likelihood)
        for _ in range(3):
            training.do(batch)
        self.assertEqual(len(set(drawn)), 6)


class ScriptTest(unittest.TestCase):
    """`nmt_train.py --strategy mirrored`, on four devices."""

    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = scratch.name
        self.random = seeds(self)
        self.config_file = write_task(os.path.join(self.folder, 'data'), 'copy', self.random, train=60, dev=4)

    def train(self, name, *arguments, config='config_toy'):
        out, errors = io.StringIO(), io.StringIO()
        tf.config.run_functions_eagerly('--strategy=one' in arguments)  # which for so few steps is faster
        self.addCleanup(tf.config.run_functions_eagerly, False)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = nmt_train.main([
                'nmt_train.py', f'--config={config}', f'--config_file={self.config_file}', *arguments,
                f'--model_dir={self.folder}/{name}', f'--set=data.cache_dir={self.folder}/cache',
                '--set=train.optimizer=sgd', '--set=train.max_steps=6', '--set=train.learning_rate=0.1',
                '--set=train.accumulate=2', '--set=decode.mode=greedy',
            ])  # fmt: skip
        tf.config.run_functions_eagerly(False)
        return code, out.getvalue() + errors.getvalue(), os.path.join(self.folder, name)

    def check_mirrored(self, config, *settings):
        found = []
        for strategy in ('one', 'mirrored'):
            code, said, folder = self.train(strategy, f'--strategy={strategy}', *settings, config=config)
            self.assertEqual(code, 0, said)
            found.append(everything_in(folder))
        self.assertEqual(found[0].keys(), found[1].keys())
        for key in found[0]:
            if '/totals/' not in key:
                np.testing.assert_allclose(found[1][key], found[0][key], atol=2e-5, err_msg=key)
        # A checkpoint goes on with any number of replicas.
        code, said, folder = self.train('mirrored', '--strategy=one', '--set=train.max_steps=8', *settings,
                                        config=config)  # fmt: skip
        self.assertIn('going on from', said)
        self.assertEqual(code, 0, said)
        return folder

    def check_translations(self, folder, data='data', lines=60):
        """All devices together write what one does, in order."""
        found = []
        for strategy in ('one', 'mirrored'):
            out = os.path.join(self.folder, f'{strategy}.out')
            code = nmt_infer.main(['nmt_infer.py', f'--model_dir={folder}', f'--output_file={out}',
                                   f'--test_src={self.folder}/{data}/train.src', f'--strategy={strategy}',
                                   '--batch_tokens=40', '--decode=sample', '--max_length=7'])  # fmt: skip
            self.assertEqual(code, 0)
            with open(out) as file:
                found.append(file.read())
        self.assertEqual(found[0].count('\n'), lines)
        self.assertGreater(len(set(found[0].split('\n'))), 1)
        self.assertEqual(*found)

    def test_an_autoregressive_training_is_the_same(self):
        no_dropout = ('--set=model.encoder.dropout=0', '--set=model.decoder.dropout=0')
        self.check_translations(self.check_mirrored('config_toy', *no_dropout, '--set=train.ema=0.5'))

    def test_a_flow_writes_the_same(self):
        tf.config.run_functions_eagerly(True)  # four traces would be most of what this costs
        self.addCleanup(tf.config.run_functions_eagerly, False)
        model, config, vocab = tiny_flow_model(self.random)
        bias = model.output.bias
        bias.assign(tf.tensor_scatter_nd_update(bias, [[vocab.eos_id]], [-20.0]))  # or chance may write nothing at all
        save_translator(Translator(model, config, vocab, vocab), f'{self.folder}/flow')
        write_task(f'{self.folder}/words', 'copy', self.random, words=[f'w{i}' for i in range(23)], train=16, dev=1)
        self.check_translations(f'{self.folder}/flow', 'words', lines=16)

    def test_one_device_and_all_of_them_contradict_each_other(self):
        code, said, _ = self.train('none', '--strategy=mirrored', '--device=CPU:0')
        self.assertEqual(code, 2)
        self.assertIn('leave one of them out', said)

    def test_mirrored_takes_all_devices(self):
        self.assertEqual([choose_distribution(name).replicas.total for name in ('mirrored', 'auto', 'one')], [4, 1, 1])


if __name__ == '__main__':
    unittest.main()
