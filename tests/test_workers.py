"""Two real worker processes on one machine: they train as one process does, and lose nothing when they are stopped."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import unittest

import numpy as np

from tests.support import seeds
from tests.test_resume import everything_in
from tests.toy import ROOT, train_command, wait_for, write_task

STEPS = 150  # enough that a signal comes before the end


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(('127.0.0.1', 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class TwoWorkersTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        random = seeds(self)
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = scratch.name
        self.config_file = write_task(os.path.join(self.folder, 'data'), 'copy', random, train=90, dev=3)
        self.settings = [
            f'train.max_steps={STEPS}', 'train.validate_every=60', 'train.save_every=7', 'train.optimizer=sgd',
            'train.learning_rate=0.1', 'train.batch_size=5', 'model.encoder.dropout=0', 'model.decoder.dropout=0',
            'train.accumulate=2', f'data.cache_dir={self.folder}/cache', 'threads=1',
        ]  # fmt: skip
        self.processes = []
        self.addCleanup(lambda: [process.kill() for process in self.processes])

    def start(self, name, workers):
        """Starts a training; returns its processes, the chief first."""
        command = train_command(self.config_file, os.path.join(self.folder, name), *self.settings)
        addresses = [f'127.0.0.1:{port}' for port in free_ports(workers)]
        started = []
        for index in range(workers):
            environment = {**os.environ, 'PYTHONPATH': ROOT, 'CUDA_VISIBLE_DEVICES': '-1'}
            if workers > 1:
                task = {'type': 'worker', 'index': index}
                environment['TF_CONFIG'] = json.dumps({'cluster': {'worker': addresses}, 'task': task})
            strategy = '--strategy=multi_worker' if workers > 1 else '--strategy=one'
            started.append(subprocess.Popen([*command, strategy], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                            text=True, env=environment, cwd=ROOT))  # fmt: skip
        self.processes += started
        return started

    def end(self, processes, codes):
        said = [process.communicate(timeout=150)[0] for process in processes]
        self.assertEqual([process.returncode for process in processes], codes, '\n----\n'.join(said))
        return said

    def test_stopped_and_killed_workers_end_where_one_process_does(self):
        self.end(self.start('one', 1), [0])

        chief, other = self.start('two', 2)
        wait_for(chief, 'step 9 ')
        other.send_signal(signal.SIGTERM)  # one worker is told, all stop, the chief saves first
        said = self.end([chief, other], [143, 143])
        self.assertNotIn('validation', said[1])
        stopped = everything_in(os.path.join(self.folder, 'two'))
        step = int(next(value for key, value in stopped.items() if key.startswith('state/step/')))
        self.assertGreater(step, 9)

        chief, other = self.start('two', 2)
        self.assertIn(f'ckpt-{step}', wait_for(chief, 'going on from'))
        wait_for(chief, f'step {step + 11} ')
        other.kill()
        said = self.end([chief, other], [1, -signal.SIGKILL])
        self.assertIn('Start the job again', said[0])

        said = self.end(self.start('two', 2), [0, 0])
        self.assertIn('going on from', said[0])
        self.assertIn('validation at step 120', said[0])
        one, two = (everything_in(os.path.join(self.folder, name)) for name in ('one', 'two'))
        self.assertEqual(one.keys(), two.keys())
        for key in one:
            if 'state/totals' not in key:
                np.testing.assert_allclose(two[key], one[key], atol=1e-3, err_msg=key)


if __name__ == '__main__':
    unittest.main()
