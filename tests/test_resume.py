"""Nothing is lost: real trainings, really killed, go on as if nothing had happened."""

import signal
import unittest

import numpy as np
import tensorflow as tf

from tests.support import FolderTest
from tests.toy import start, train_command, wait_for, write_task


def everything_in(model_dir):
    """All that the last checkpoint holds, as NumPy arrays by key."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(model_dir))
    return {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
        if key != '_CHECKPOINTABLE_OBJECT_GRAPH' and 'save_counter' not in key
    }


class ResumeTest(FolderTest):
    def setUp(self):
        super().setUp()
        self.config_file = write_task(self.path('data'), 'reverse', self.draw)
        # Many steps behind the kill, so that it comes before the end however late it is.
        self.settings = [f'seed={self.draw.randrange(1000)}', f'data.cache_dir={self.folder}/cache', 'threads=2',
                         'train.max_steps=40']  # fmt: skip

    def begin(self, name, config='config_toy'):
        model_dir = self.path(name)
        return start(train_command(self.config_file, model_dir, *self.settings, config=config)), model_dir

    def finish(self, name, config='config_toy'):
        process, model_dir = self.begin(name, config)
        output, _ = process.communicate()
        self.assertEqual(process.returncode, 0, output)
        return output, everything_in(model_dir)

    def kill(self, name, step, config='config_toy'):
        process, _ = self.begin(name, config)
        wait_for(process, f'step {step} ')
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.assertEqual(process.returncode, -signal.SIGKILL)

    def check_same(self, got, want):
        self.assertGreater(len(want), 20)
        self.assertEqual(got.keys(), want.keys())
        for key in want:
            np.testing.assert_array_equal(got[key], want[key], err_msg=key)

    def test_an_interrupted_and_then_killed_training_ends_where_an_undisturbed_one_does(self):
        self.settings += ['train.validate_every=3', 'train.patience=99', 'train.ema=0.9']
        _, want = self.finish('undisturbed')
        process, model_dir = self.begin('disturbed')
        wait_for(process, 'step 2 ')
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate()
        self.assertEqual(process.returncode, 143, output)
        self.assertTrue(tf.train.latest_checkpoint(model_dir), output)
        stopped_at = int(tf.train.latest_checkpoint(model_dir).rpartition('-')[2])
        self.kill('disturbed', stopped_at + self.draw.randint(2, 9))
        output, got = self.finish('disturbed')
        self.assertIn('going on from', output)
        self.check_same(got, want)

    def test_a_killed_flow_goes_on_in_its_phase(self):
        config = 'config_toy_flow'  # its second phase begins at step 4, a checkpoint is written every third
        output, want = self.finish('undisturbed', config)
        self.assertIn('phase bound begins at step 4', output)
        self.kill('killed', self.draw.randint(4, 9), config)  # the first checkpoint is surely there
        output, got = self.finish('killed', config)
        self.assertIn('going on from', output)
        self.check_same(got, want)


if __name__ == '__main__':
    unittest.main()
