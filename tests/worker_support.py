"""Real worker processes on one machine, for tests."""

import json
import os
import socket
import subprocess
import tempfile
import unittest

import numpy as np

from tests.support import seeds
from tests.test_resume import everything_in
from tests.toy import ROOT, train_command, write_task


def start_workers(command, workers, **options):
    """Starts a command as all workers of a job on this machine, or alone; returns the processes, the chief first.

    Args:
      options: of `subprocess.Popen`.
    """
    sockets = [socket.socket() for _ in range(workers)]
    for one in sockets:
        one.bind(('127.0.0.1', 0))
    addresses = [f'127.0.0.1:{one.getsockname()[1]}' for one in sockets]
    for one in sockets:
        one.close()
    started = []
    for index in range(workers):
        environment = {**os.environ, 'PYTHONPATH': ROOT, 'CUDA_VISIBLE_DEVICES': '-1'}
        if workers > 1:
            task = {'type': 'worker', 'index': index}
            environment['TF_CONFIG'] = json.dumps({'cluster': {'worker': addresses}, 'task': task})
        started.append(subprocess.Popen(command, text=True, env=environment, cwd=ROOT, **options))
    return started


class WorkersTestCase(unittest.TestCase):
    """Starts trainings of `steps` updates, and compares what they leave."""

    steps = 40

    def setUp(self):
        super().setUp()
        random = seeds(self)
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = scratch.name
        self.config_file = write_task(os.path.join(self.folder, 'data'), 'copy', random, train=90, dev=3)
        self.settings = [
            f'train.max_steps={self.steps}', 'train.validate_every=60', 'train.save_every=7', 'train.optimizer=sgd',
            'train.learning_rate=0.1', 'train.batch_size=5', 'model.encoder.dropout=0', 'model.decoder.dropout=0',
            'train.accumulate=2', f'data.cache_dir={self.folder}/cache', 'threads=1',
        ]  # fmt: skip
        self.processes = []
        self.addCleanup(lambda: [process.kill() for process in self.processes])

    def start(self, name, workers):
        """Starts a training; returns its processes, the chief first."""
        command = train_command(self.config_file, os.path.join(self.folder, name), *self.settings)
        command.append('--strategy=multi_worker' if workers > 1 else '--strategy=one')
        started = start_workers(command, workers, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.processes += started
        return started

    def end(self, processes, codes):
        said = [process.communicate(timeout=150)[0] for process in processes]
        self.assertEqual([process.returncode for process in processes], codes, '\n----\n'.join(said))
        return said

    def check_same(self, one='one', two='two'):
        """The last checkpoints of two folders are equal but for the rounding of sums."""
        one, two = (everything_in(os.path.join(self.folder, name)) for name in (one, two))
        self.assertEqual(one.keys(), two.keys())
        for key in one:
            if 'state/totals' not in key:
                np.testing.assert_allclose(two[key], one[key], atol=1e-3, err_msg=key)
