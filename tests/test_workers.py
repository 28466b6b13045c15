"""Two real worker processes train as one process does, and lose nothing when one is killed."""

import contextlib
import io
import signal
import unittest

import tensorflow as tf

import nmt_train
from tests.toy import train_command, wait_for
from tests.worker_support import PLAIN, WorkersTestCase


class TwoWorkersTest(WorkersTestCase):
    """With a Transformer; `system_tests/test_workers.py` has the other families, and the chief killed."""

    more_settings = ('train.accumulate=1', 'data.dev_src=', 'data.dev_trg=[]')

    def train_here(self, name, config):
        """Trains in this process, without `tf.function`."""
        tf.config.run_functions_eagerly(True)
        self.addCleanup(tf.config.run_functions_eagerly, False)
        settings = [*self.settings, *PLAIN[config], 'threads=0']
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            code = nmt_train.main(train_command(self.config_file, self.path(name), *settings, config=config)[1:])
        self.assertEqual(code, 0, said.getvalue())

    def test_a_killed_worker_costs_nothing_but_time(self):
        config = 'config_toy_transformer'
        self.train_here('one', config)
        chief, other = self.start('two', 2, config)
        wait_for(chief, 'step 8 ')
        other.kill()
        said = self.end([chief, other], [1, -signal.SIGKILL])
        self.assertIn('Start the job again', said[0])
        self.assertNotIn('Traceback', said[0])
        said = self.end(self.start('two', 2, config), [0, 0])
        self.assertIn('going on from', said[0])
        self.check_close('one', 'two')


if __name__ == '__main__':
    unittest.main()
