"""Nothing is lost: real trainings, really killed, go on as if nothing had happened."""

import os
import signal
import tempfile
import unittest

import numpy as np
import tensorflow as tf

from tests.support import seeds
from tests.toy import start, train_command, wait_for, write_task


def everything_in(model_dir):
    """All that the last checkpoint holds, as NumPy arrays by key."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(model_dir))
    return {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
        if key != '_CHECKPOINTABLE_OBJECT_GRAPH' and 'save_counter' not in key
    }


class ResumeTest(unittest.TestCase):
    def test_killed_and_interrupted_trainings_end_where_an_undisturbed_one_does(self):
        random = seeds(self)
        with tempfile.TemporaryDirectory() as folder:
            config = write_task(os.path.join(folder, 'data'), 'reverse', random)
            settings = [f'seed={random.randrange(1000)}', f'data.cache_dir={folder}/cache', 'threads=2',
                        'train.validate_every=2', 'train.patience=9', 'train.ema=0.9']  # fmt: skip
            undisturbed, killed, stopped = (os.path.join(folder, name) for name in ('undisturbed', 'killed', 'stopped'))

            process = start(train_command(config, undisturbed, *settings))
            output, _ = process.communicate()
            self.assertEqual(process.returncode, 0, output)

            process = start(train_command(config, killed, *settings))
            wait_for(process, f'step {random.randint(4, 9)} ')
            process.send_signal(signal.SIGKILL)
            process.communicate()
            self.assertEqual(process.returncode, -signal.SIGKILL)
            process = start(train_command(config, killed, *settings))
            output, _ = process.communicate()
            self.assertEqual(process.returncode, 0, output)
            self.assertIn('going on from', output)

            process = start(train_command(config, stopped, *settings))
            wait_for(process, 'step 2 ')
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate()
            self.assertEqual(process.returncode, 143, output)
            self.assertTrue(tf.train.latest_checkpoint(stopped))
            process = start(train_command(config, stopped, *settings))
            output, _ = process.communicate()
            self.assertEqual(process.returncode, 0, output)

            want = everything_in(undisturbed)
            self.assertGreater(len(want), 20)
            for model_dir in (killed, stopped):
                got = everything_in(model_dir)
                self.assertEqual(got.keys(), want.keys())
                for key in want:
                    np.testing.assert_array_equal(got[key], want[key], err_msg=f'{model_dir}: {key}')


if __name__ == '__main__':
    unittest.main()
