"""Real worker processes on one machine, for tests."""

import contextlib
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


def free_ports(count):
    """The first of `count` ports in a row that nobody listens on."""
    while True:
        with contextlib.ExitStack() as held:
            first = held.enter_context(socket.create_server(('127.0.0.1', 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    held.enter_context(socket.create_server(('127.0.0.1', port)))
            except (OSError, OverflowError):  # taken, or beyond the last port that there is
                continue
            return first


def start_workers(command, workers, **options):
    """Starts a command as all workers of a job on this machine, or alone; returns the processes, the chief first.

    Args:
      options: of `subprocess.Popen`.
    """
    first = free_ports(workers)
    addresses = [f'127.0.0.1:{first + index}' for index in range(workers)]
    started = []
    for index in range(workers):
        environment = {**os.environ, 'PYTHONPATH': ROOT, 'CUDA_VISIBLE_DEVICES': '-1'}
        if workers > 1:
            task = {'type': 'worker', 'index': index}
            environment['TF_CONFIG'] = json.dumps({'cluster': {'worker': addresses}, 'task': task})
        started.append(subprocess.Popen(command, text=True, env=environment, cwd=ROOT, **options))
    return started


# Settings under which one process and two compute alike but for rounding: no dropout, and nothing that divides by small
# gradients.
_PLAIN = ('train.optimizer=sgd', 'train.learning_rate=0.1', 'model.encoder.dropout=0', 'model.decoder.dropout=0')
_RATES = {
    'config_toy': (),
    'config_toy_transformer': ('encoder.attention_dropout', 'encoder.hidden_dropout', 'decoder.attention_dropout',
                               'decoder.hidden_dropout'),
    'config_toy_flow': ('encoder.embedding_dropout', 'posterior.embedding_dropout', 'posterior.dropout',
                        'posterior.word_dropout', 'length.dropout'),
}  # fmt: skip
PLAIN = {name: [*_PLAIN, *(f'model.{rate}=0' for rate in rates)] for name, rates in _RATES.items()}


class WorkersTestCase(unittest.TestCase):
    """Starts trainings of `steps` updates, and compares what they leave."""

    steps, more_settings = 40, ()

    def setUp(self):
        super().setUp()
        random = seeds(self)
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = scratch.name
        self.config_file = write_task(os.path.join(self.folder, 'data'), 'copy', random, train=90, dev=3)
        self.settings = [
            f'train.max_steps={self.steps}', 'train.validate_every=60', 'train.save_every=7', 'train.batch_size=5',
            'train.accumulate=2', f'data.cache_dir={self.folder}/cache', 'threads=1', *self.more_settings,
        ]  # fmt: skip
        self.processes = []
        self.addCleanup(lambda: [process.kill() for process in self.processes])

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self, name, workers, config='config_toy', plain=True, strategy='', script='nmt_train.py'):
        """Starts a training; returns its processes, the chief first. `script` is as in `train_command`."""
        settings = [*self.settings, *(PLAIN[config] if plain else ())]
        command = train_command(self.config_file, self.path(name), *settings, config=config, script=script)
        command.append('--strategy=' + (strategy or ('multi_worker' if workers > 1 else 'one')))
        started = start_workers(command, workers, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.processes += started
        return started

    def end(self, processes, codes):
        said = [process.communicate(timeout=900)[0] for process in processes]
        self.assertEqual([process.returncode for process in processes], codes, '\n----\n'.join(said))
        return said

    def both(self, one, two):
        """What the last checkpoints of two folders hold, by key."""
        one, two = (everything_in(self.path(name)) for name in (one, two))
        self.assertEqual(one.keys(), two.keys())
        self.assertGreater(len(one), 20)
        return {key: (one[key], two[key]) for key in one}

    def check_close(self, one, two):
        """Two folders are equal but for the rounding of sums in float32."""
        for key, (want, got) in self.both(one, two).items():
            if 'state/totals' in key or np.array_equal(got, want):  # as infinities may be
                continue
            if not np.issubdtype(want.dtype, np.floating):
                np.testing.assert_array_equal(got, want, key)
                continue
            size, error = (float(np.linalg.norm(x.astype(np.float64).ravel())) for x in (want, got - want))
            self.assertLessEqual(error, 2e-5 * size + 1e-7, key)

    def check_equal(self, one, two):
        """Two folders are equal to the bit."""
        for key, (want, got) in self.both(one, two).items():
            np.testing.assert_array_equal(got, want, err_msg=key)
