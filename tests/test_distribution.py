"""Many devices: their tests in a process of their own, and how data are divided."""

import os
import subprocess
import sys
import tempfile
import unittest

import numpy as np

import build_inputs
from sequencing.config_files import load_config
from tests.support import seeds
from tests.toy import ROOT, write_task


class FourDevicesTest(unittest.TestCase):
    def test_what_four_devices_promise(self):
        environment = {**os.environ, 'PYTHONPATH': ROOT, 'CUDA_VISIBLE_DEVICES': '-1'}
        found = subprocess.run([sys.executable, '-m', 'unittest', 'tests.on_four_devices'], cwd=ROOT, env=environment,
                               capture_output=True, text=True)  # fmt: skip
        self.assertEqual(found.returncode, 0, found.stdout + found.stderr)
        self.assertRegex(found.stderr, r'Ran 1[0-9] tests')


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
