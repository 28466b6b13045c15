"""Many devices: their tests in a process of their own, and how data are divided."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import numpy as np

import build_inputs
from sequencing.config_files import load_config
from sequencing.distribution import find_job
from sequencing.errors import UserError
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

    def test_tf_config_tells_them_too(self):
        cluster = {'chief': ['a:1'], 'worker': ['b:2', 'c:3']}
        told = {'cluster': cluster, 'task': {'type': 'worker', 'index': 1}}
        self.assertEqual(self.found(TF_CONFIG=json.dumps(told)), (cluster, 'worker', 1))
        for wrong in ('{', '[]', '{}', json.dumps({**told, 'task': {'type': 'worker', 'index': 2}}),
                      json.dumps({**told, 'task': {'type': 'ps', 'index': 0}})):  # fmt: skip
            with self.assertRaisesRegex(UserError, 'TF_CONFIG does not describe a job'):
                self.found(TF_CONFIG=wrong)

    def test_no_job_is_told(self):
        with self.assertRaisesRegex(UserError, 'srun under Slurm, or set TF_CONFIG'):
            self.found()


class PartsTest(unittest.TestCase):
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

    def test_parts_hold_every_pair_of_a_batch_once(self):
        whole = list(self.inputs.one_epoch(3))
        for workers, local in ((1, 2), (2, 1), (3, 2), (1, 1)):
            replicas = workers * local
            streams = [list(self.inputs.one_epoch(3, (worker * local, local, replicas))) for worker in range(workers)]
            seen = []
            for step, (batch, position) in enumerate(whole):
                parts = []
                for stream in streams:
                    self.assertEqual(stream[step][1], position)
                    self.assertEqual(len(stream[step][0]), local)
                    parts += stream[step][0]
                real = [part for part in parts if part.index[0] >= 0]
                self.assertEqual(sorted(np.concatenate([part.index for part in real])), sorted(batch.index))
                sizes = [len(part.index) if part.index[0] >= 0 else 0 for part in parts]
                self.assertLessEqual(max(sizes) - min(sizes), 1)
                self.assertEqual(sum(part.trg_mask.sum() for part in real), batch.trg_mask.sum())
                self.assertTrue(all(len(part.index) == 1 for part in parts if part.index[0] < 0))
                seen += [number for part in real for number in part.index]
            self.assertEqual([len(stream) for stream in streams], [len(whole)] * workers)
            self.assertEqual(sorted(seen), list(range(self.inputs.size)))

    def test_datasets_give_what_batches_do(self):
        replicas = (1, 2, 3)
        for (got, after), (want, position) in zip(self.inputs.dataset(None, replicas).take(5),
                                                  self.inputs.batches(None, replicas)):  # fmt: skip
            self.assertEqual([int(part) for part in after], list(position))
            for one, two in zip(got, want, strict=True):
                for a, b in zip(one, two, strict=True):
                    np.testing.assert_array_equal(a, b)


if __name__ == '__main__':
    unittest.main()
