"""Many devices: their tests in a process of their own, and how data are divided."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import types
import unittest
from unittest import mock

import numpy as np
import tensorflow as tf

import build_inputs
from nmt_train import check_alike, settings_key
from sequencing.config import Config
from sequencing.config_files import load_config
from sequencing.distribution import Distribution, choose_distribution, find_job
from sequencing.errors import Failure, UserError
from sequencing.structures import Replicas
from sequencing.translator import Translator
from tests.support import seeds
from tests.toy import ROOT, write_task


class FourDevicesTest(unittest.TestCase):
    def test_what_four_devices_promise(self):
        environment = {**os.environ, 'PYTHONPATH': ROOT, 'CUDA_VISIBLE_DEVICES': '-1'}
        found = subprocess.run([sys.executable, '-m', 'unittest', 'tests.on_four_devices'], cwd=ROOT, env=environment,
                               capture_output=True, text=True)  # fmt: skip
        self.assertEqual(found.returncode, 0, found.stdout + found.stderr)
        self.assertRegex(found.stderr, r'Ran 1[0-9] tests')


class JobTest(unittest.TestCase):
    """What the environment says about a job."""

    def found(self, **environment):
        others = {name: value for name, value in os.environ.items() if not name.startswith(('SLURM_', 'TF_CONFIG'))}
        with mock.patch.dict(os.environ, {**others, **environment}, clear=True):
            return find_job()

    def test_slurm_tells_hosts_and_ports(self):
        found = self.found(SLURM_PROCID='3', SLURM_STEP_NUM_TASKS='4', SLURM_STEP_NODELIST='node[07-08]',
                           SLURM_STEP_TASKS_PER_NODE='2(x2)', SEQUENCING_PORT='2000')  # fmt: skip
        addresses = ['node07:2000', 'node07:2001', 'node08:2000', 'node08:2001']
        self.assertEqual(found, ({'worker': addresses}, 'worker', 3))
        with self.assertRaisesRegex(UserError, 'start with srun'):
            self.found(SLURM_PROCID='0')

    def test_slurm_means_to_us_what_it_does_to_tensorflow(self):
        job = {'SLURM_PROCID': '4', 'SLURM_STEP_NUM_TASKS': '5', 'SLURM_STEP_NODELIST': 'a[07-08],b1',
               'SLURM_STEP_TASKS_PER_NODE': '2(x2),1', 'SEQUENCING_PORT': '2000'}  # fmt: skip
        cluster, kind, rank = self.found(**job)
        with mock.patch.dict(os.environ, job):
            theirs = tf.distribute.cluster_resolver.SlurmClusterResolver(port_base=2000, auto_set_gpu=False,
                                                                         gpus_per_node=2, gpus_per_task=1)  # fmt: skip
            self.assertEqual(theirs.cluster_spec().as_dict(), cluster)
            self.assertEqual(theirs.get_task_info(), (kind, rank))

    def test_slurm_numbers_tasks_in_the_order_of_its_node_list(self):
        """Names sorted as text would put node10 before node9."""
        job = {'SLURM_STEP_NODELIST': 'node[9-11]', 'SLURM_STEP_TASKS_PER_NODE': '1(x3)', 'SEQUENCING_PORT': '2000'}
        addresses = ['node9:2000', 'node10:2000', 'node11:2000']
        for rank in range(3):
            self.assertEqual(self.found(SLURM_PROCID=str(rank), **job), ({'worker': addresses}, 'worker', rank))
        job = {'SLURM_STEP_NODELIST': 'gpu-b[098-100,3]-ib,gpu-a7', 'SLURM_STEP_TASKS_PER_NODE': '1(x2),2,1(x2)'}
        names = ['gpu-b098-ib:8888', 'gpu-b099-ib:8888', 'gpu-b100-ib:8888', 'gpu-b100-ib:8889', 'gpu-b3-ib:8888',
                 'gpu-a7:8888']  # fmt: skip
        self.assertEqual(self.found(SLURM_PROCID='3', SLURM_NODEID='2', **job), ({'worker': names}, 'worker', 3))
        with self.assertRaisesRegex(UserError, 'distribution=block'):
            self.found(SLURM_PROCID='3', SLURM_NODEID='3', **job)
        for wrong in ({'SLURM_STEP_TASKS_PER_NODE': '1(x4)'}, {'SLURM_STEP_NODELIST': 'a[1-x],b'}):
            with self.assertRaisesRegex(UserError, 'start with srun'):
                self.found(SLURM_PROCID='0', **{**job, **wrong})

    def test_tf_config_tells_them_too(self):
        cluster = {'chief': ['a:1'], 'worker': ['b:2', 'c:3']}
        told = {'cluster': cluster, 'task': {'type': 'worker', 'index': 1}}
        self.assertEqual(self.found(TF_CONFIG=json.dumps(told)), (cluster, 'worker', 1))
        for wrong in ('{', '[]', '{}', json.dumps({**told, 'task': {'type': 'worker', 'index': 2}}),
                      json.dumps({**told, 'task': {'type': 'ps', 'index': 0}})):  # fmt: skip
            with self.assertRaisesRegex(UserError, 'TF_CONFIG does not describe a job'):
                self.found(TF_CONFIG=wrong)

    def test_workers_wait_a_number_of_seconds(self):
        told = json.dumps({'cluster': {'worker': ['a:1', 'b:2']}, 'task': {'type': 'worker', 'index': 0}})
        for wrong in ('0', '-5', '10m', ''):
            with mock.patch.dict(os.environ, TF_CONFIG=told, SEQUENCING_JOIN_SECONDS=wrong):
                with self.assertRaisesRegex(UserError, 'SEQUENCING_JOIN_SECONDS is how many seconds'):
                    choose_distribution('multi_worker')

    def test_no_job_is_told(self):
        with self.assertRaisesRegex(UserError, 'srun under Slurm, or set TF_CONFIG'):
            self.found()


class ChoiceTest(unittest.TestCase):
    """Which devices `--strategy` takes, where GPUs are made up."""

    def test_auto_takes_all_gpus_and_else_one_device(self):
        for count, name, want in ((0, 'auto', None), (1, 'auto', None), (3, 'auto', 3), (3, 'one', None),
                                  (3, 'mirrored', 3), (1, 'mirrored', None)):  # fmt: skip
            gpus = [mock.Mock() for _ in range(count)]
            for i, gpu in enumerate(gpus):
                gpu.name = f'/device:GPU:{i}'
            with (
                mock.patch.object(tf.config, 'list_physical_devices', lambda kind: gpus if kind == 'GPU' else []),
                mock.patch.object(tf.config, 'list_logical_devices', lambda kind: gpus if kind == 'GPU' else [None]),
                mock.patch.object(tf.distribute, 'MirroredStrategy') as made,
            ):
                made.return_value.num_replicas_in_sync = want
                found = choose_distribution(name)
            if want:
                made.assert_called_once_with([f'GPU:{i}' for i in range(want)], None)  # None: by NCCL
            self.assertEqual(found.replicas.total, want or 1)

    def test_workers_with_gpus_ask_for_nccl(self):
        told = json.dumps({'cluster': {'worker': ['a:1', 'b:2']}, 'task': {'type': 'worker', 'index': 0}})
        for count, want in ((0, 'AUTO'), (2, 'NCCL')):
            with (
                mock.patch.dict(os.environ, TF_CONFIG=told),
                mock.patch.object(tf.config, 'list_physical_devices', lambda kind: [None] * count),
                mock.patch.object(tf.distribute, 'MultiWorkerMirroredStrategy', side_effect=RuntimeError('?')) as made,
                self.assertRaisesRegex(Failure, 'could not join the others'),
            ):
                choose_distribution('multi_worker')
            resolver, options = made.call_args.args
            self.assertEqual((resolver.num_accelerators()['GPU'], options.implementation.value), (count, want))


class FailuresTest(unittest.TestCase):
    """What is said of a job's failures."""

    def check(self, error, lost):
        job = Distribution(workers=1)
        job.workers, job.worker = 2, 1
        with self.assertRaises(Failure if lost else type(error)) as found, job.lost_workers_told():
            raise error
        if lost:
            self.assertIn('worker 1 of 2 lost touch with another one', str(found.exception))

    def test_only_what_tells_of_a_lost_worker_is_called_so(self):
        errors = tf.errors
        self.check(errors.UnavailableError(None, None, 'Socket closed'), True)
        self.check(errors.InternalError(None, None, 'unexpected exception in check alive: gone'), True)
        for kind in (errors.InternalError, errors.InvalidArgumentError, errors.FailedPreconditionError,
                     errors.AbortedError, errors.CancelledError):  # fmt: skip
            self.check(kind(None, None, 'Incompatible shapes: [2] and [3]'), False)
        with self.assertRaises(errors.UnavailableError), Distribution().lost_workers_told():
            raise errors.UnavailableError(None, None, 'a file server is away')

    def test_workers_that_differ_are_refused(self):
        job = Distribution()
        check_alike(job, 'configuration', 'a')
        job.workers = 3
        job.from_all = lambda numbers: np.array([numbers, numbers, [numbers[0] + 1]])
        with self.assertRaisesRegex(UserError, 'the configuration of worker 2 is not that of worker 0'):
            check_alike(job, 'configuration', 'a')

    def test_machines_may_have_other_threads_and_folders_and_nothing_else(self):
        config = Config()
        data = dataclasses.replace(config.data, cache_dir='elsewhere')
        other = dataclasses.replace(config, model_dir='there', threads=7, data=data)
        self.assertEqual(settings_key(config), settings_key(other))
        self.assertNotEqual(settings_key(config), settings_key(dataclasses.replace(other, seed=config.seed + 1)))


class CopiesTest(unittest.TestCase):
    """How a `Translator` with copies on other devices divides its work."""

    def test_copies_are_loaded_when_there_is_work_for_them(self):
        config = types.SimpleNamespace(model=types.SimpleNamespace(kind='seq2seq'))
        loaded, together = [], threading.Barrier(3)

        def load_copies():
            loaded.append([Translator(None, config, None, None, f'CPU:{i}') for i in (0, 0)])
            return loaded[-1]

        def decode(translator, batch):
            workers.add(translator)
            if batch < 3:
                together.wait(60)  # so that no one does all
            return -batch

        first, workers = Translator(None, config, None, None, 'CPU:0', load_copies), set()
        self.assertEqual(list(first._on_all_devices(decode, [7])), [-7])
        self.assertEqual((loaded, workers), ([], {first}))
        for _ in range(2):
            self.assertEqual(list(first._on_all_devices(decode, range(9))), [-i for i in range(9)])
        self.assertEqual(len(loaded), 1)
        self.assertEqual(workers, {first, *loaded[0]})


class SharesTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        path = write_task(os.path.join(scratch.name, 'data'), 'copy', self.random, train=97)
        settings = ['train.batch_unit=tokens', f'train.batch_size={self.random.randint(8, 60)}']
        config, _ = load_config('config_toy', path, settings)
        vocabs = build_inputs.build_vocabs(config, os.path.join(scratch.name, 'vocab'))
        self.inputs = build_inputs.build_parallel_inputs(config, *vocabs, os.path.join(scratch.name, 'cache'))

    def test_shares_hold_every_pair_of_a_batch_once(self):
        whole = list(self.inputs.one_epoch(3))
        for workers, local in ((1, 2), (2, 1), (3, 2), (1, 1)):
            streams = [list(self.inputs.one_epoch(3, Replicas(worker * local, local, workers * local)))
                       for worker in range(workers)]  # fmt: skip
            seen = []
            for step, (batch, position) in enumerate(whole):
                shares = []
                for stream in streams:
                    self.assertEqual(stream[step][1], position)
                    self.assertEqual(len(stream[step][0]), local)
                    shares += stream[step][0]
                real = [share for share in shares if share.index[0] >= 0]
                self.assertEqual(sorted(np.concatenate([share.index for share in real])), sorted(batch.index))
                sizes = [len(share.index) if share.index[0] >= 0 else 0 for share in shares]
                self.assertLessEqual(max(sizes) - min(sizes), 1)
                self.assertEqual(sum(share.trg_mask.sum() for share in real), batch.trg_mask.sum())
                self.assertTrue(all(len(share.index) == 1 for share in shares if share.index[0] < 0))
                seen += [number for share in real for number in share.index]
            self.assertEqual([len(stream) for stream in streams], [len(whole)] * workers)
            self.assertEqual(sorted(seen), list(range(self.inputs.size)))

    def test_datasets_give_what_batches_do(self):
        replicas = Replicas(1, 2, 3)
        for (got, after), (want, position) in zip(self.inputs.dataset(None, replicas).take(5),
                                                  self.inputs.batches(None, replicas)):  # fmt: skip
            self.assertEqual([int(part) for part in after], list(position))
            for one, two in zip(got, want, strict=True):
                for a, b in zip(one, two, strict=True):
                    np.testing.assert_array_equal(a, b)


if __name__ == '__main__':
    unittest.main()
