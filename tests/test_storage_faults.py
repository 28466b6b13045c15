"""Storage that fails: one clear message, and the last good checkpoint still loads."""

import contextlib
import errno
import fcntl
import glob
import io
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import tensorflow as tf

import nmt_train
from sequencing.errors import UserError
from sequencing.model_folder import Checkpoints, checkpoint_path, complete, written
from sequencing.training import TrainingState
from tests.support import seeds
from tests.toy import ROOT, train_command, write_task

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], 'w')
fcntl.flock(file, fcntl.LOCK_EX)
print('held', flush=True)
time.sleep(600)
"""


class Weights(tf.Module):
    def __init__(self, values):
        super().__init__()
        self.values = tf.Variable(values)


@contextlib.contextmanager
def files_no_larger_than(size):
    """What a full disk does, for files of this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class CheckpointFaultsTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.random = np.random.default_rng(seeds(self).randrange(2**31))
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = scratch.name

    def checkpoints(self):
        model, state = Weights(self.random.normal(size=20_000)), TrainingState(4)
        return model, state, Checkpoints(self.folder, model, tf.Module(), state, keep=3)

    def saved(self, count):
        """Writes checkpoints 1 to `count`, and returns what each holds."""
        model, state, checkpoints = self.checkpoints()
        values = []
        for _ in range(count):
            state.step.assign_add(1)
            model.values.assign_add(np.ones(20_000))
            values.append(model.values.numpy())
            checkpoints.save()
        return values

    def check_restored(self, step, values):
        model, state, checkpoints = self.checkpoints()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertTrue(checkpoints.restore().endswith(f'ckpt-{step}'))
        self.assertEqual(int(state.step), step)
        np.testing.assert_array_equal(model.values, values)
        return said.getvalue()

    def test_a_truncated_checkpoint_gives_way_to_the_one_before(self):
        values = self.saved(3)
        for number, name in ((3, 'data-00000-of-00001'), (2, 'index')):
            path = os.path.join(self.folder, f'ckpt-{number}.{name}')
            os.truncate(path, os.path.getsize(path) // 2)
            said = self.check_restored(number - 1, values[number - 2])
            self.assertIn(f'ckpt-{number} cannot be read', said)
        for path in glob.glob(os.path.join(self.folder, 'ckpt-1.data*')):
            os.truncate(path, 0)
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaisesRegex(UserError, 'all of .* are damaged'):
            self.checkpoints()[2].restore()

    def test_checkpoints_are_found_whatever_their_list_says_of_time(self):
        values = self.saved(2)
        path = os.path.join(self.folder, 'checkpoint')
        with open(path) as file:
            listed = file.read()
        with open(path, 'w') as file:  # as if written by a machine whose clock is ahead of this one's
            file.write(re.sub(r'(timestamps?: )\d+', r'\g<1>99999999999', listed))
        self.check_restored(2, values[1])
        for spoil in (os.remove, lambda path: os.truncate(path, 0)):
            spoil(path)
            self.assertEqual(checkpoint_path(self.folder, 'last'), os.path.join(self.folder, 'ckpt-2'))
            self.check_restored(2, values[1])

    def goes_on(self, values):
        """Another update and its checkpoint, after the last that `values` tells of; the path that was restored."""
        model, state, checkpoints = self.checkpoints()
        restored = checkpoints.restore()
        np.testing.assert_array_equal(model.values, values[-1])
        state.step.assign_add(1)
        model.values.assign(self.random.normal(size=20_000))
        values.append(model.values.numpy())
        checkpoints.save()
        return restored

    def rewrite(self, change):
        """Changes the text of the file `checkpoint`."""
        path = os.path.join(self.folder, 'checkpoint')
        with open(path) as file:
            listed = file.read()
        with open(path, 'w') as file:
            file.write(change(listed))

    def last_three(self, values):
        return [os.path.join(self.folder, f'ckpt-{len(values) - i}') for i in range(3)]

    def test_checkpoints_that_were_found_stay_known(self):
        values = self.saved(3)
        late, first = (r'(timestamps?: )\d+', r'\g<1>99999999999'), 'model_checkpoint_path: "ckpt-1"\n'
        for change in (lambda listed: '', lambda listed: re.sub(*late, listed), lambda listed: first):
            self.rewrite(change)
            self.assertEqual(self.goes_on(values), os.path.join(self.folder, f'ckpt-{len(values) - 1}'))
            kept = self.last_three(values)  # of three, the oldest is swept
            self.assertEqual(written(self.folder), kept)
            self.assertEqual({os.path.splitext(each)[0] for each in glob.glob(f'{self.folder}/ckpt-*')}, set(kept))
            self.assertEqual(checkpoint_path(self.folder, 'last'), kept[0])
        for damaged in glob.glob(f'{kept[0]}.data*'):
            os.truncate(damaged, 0)
        self.check_restored(len(values) - 1, values[-2])

    def test_readers_leave_out_what_a_killed_training_left_behind(self):
        values, best = self.saved(3), os.path.join(self.folder, 'best')
        checkpoints = self.checkpoints()[2]
        checkpoints.restore()
        checkpoints.save_best()
        for name in (f'{self.folder}/ckpt-4.index', f'{best}/ckpt-4.index'):
            with open(name, 'wb'):
                pass
        for _ in range(2):  # as it was left, and after a start
            self.assertEqual(checkpoint_path(self.folder, 'last'), f'{self.folder}/ckpt-3')
            self.assertEqual(checkpoint_path(self.folder, 'best'), f'{best}/ckpt-3')
            self.assertEqual(complete(self.folder), [f'{self.folder}/ckpt-{n}' for n in (3, 2, 1)])
            self.check_restored(3, values[2])
        os.remove(f'{self.folder}/checkpoint')  # now nobody can tell that ckpt-4 is not complete, but a start
        self.assertEqual(checkpoint_path(self.folder, 'last'), f'{self.folder}/ckpt-4')
        self.check_restored(3, values[2])
        self.assertEqual(checkpoint_path(self.folder, 'last'), f'{self.folder}/ckpt-3')
        model, state, checkpoints = self.checkpoints()
        with contextlib.redirect_stderr(io.StringIO()):
            checkpoints.restore()
        state.step.assign(4)
        checkpoints.save()
        checkpoints.save_best()
        self.assertEqual(written(self.folder), [f'{self.folder}/ckpt-{n}' for n in (4, 3, 2)])
        self.check_restored(4, values[2])
        self.assertEqual(written(best), [f'{best}/ckpt-4'])

    def test_a_list_of_checkpoints_that_are_gone_does_not_train_anew(self):
        self.saved(2)
        for path in glob.glob(os.path.join(self.folder, 'ckpt-*')):
            os.remove(path)
        for change in (lambda listed: listed, lambda listed: ''):
            self.rewrite(change)
            with self.assertRaisesRegex(UserError, 'none of them is there'):
                self.checkpoints()

    def test_a_copied_folder_leaves_the_original_alone(self):
        values, original = self.saved(3), self.folder
        self.rewrite(lambda listed: '')
        self.goes_on(values)  # a start that writes the list anew
        self.folder = original + '.copy'
        shutil.copytree(original, self.folder)
        self.addCleanup(shutil.rmtree, self.folder)
        before = sorted(os.listdir(original))
        absolute = lambda listed: re.sub('"(?:.*/)?ckpt-', f'"{original}/ckpt-', listed)  # as some tools write it
        for _ in range(2):
            self.rewrite(absolute)
            self.assertEqual(os.path.dirname(checkpoint_path(self.folder, 'last')), self.folder)
            self.assertEqual(os.path.dirname(self.goes_on(values)), self.folder)
            self.assertEqual(written(self.folder), self.last_three(values))
            self.assertEqual(checkpoint_path(self.folder, 'last'), self.last_three(values)[0])
        self.assertEqual(sorted(os.listdir(original)), before)

    def test_a_full_disk_leaves_the_last_checkpoint_as_it_is(self):
        values = self.saved(2)
        model, state, checkpoints = self.checkpoints()
        checkpoints.restore()
        state.step.assign_add(1)
        model.values.assign(-model.values)
        with files_no_larger_than(50_000), self.assertRaisesRegex(UserError, 'could not write a checkpoint to'):
            checkpoints.save()
        self.check_restored(2, values[1])
        checkpoints.save()  # there is room again
        self.check_restored(3, -values[1])


class TrainingFaultsTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = scratch.name
        self.config_file = write_task(os.path.join(self.folder, 'data'), 'copy', seeds(self), train=40, dev=3)

    def check_refused(self, message, model_dir):
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
            command = train_command(self.config_file, model_dir)
            self.assertEqual(nmt_train.main(command[1:]), 2)
        self.assertIn(message, said.getvalue())

    def test_one_folder_takes_one_training_and_a_lock_dies_with_its_process(self):
        model_dir = os.path.join(self.folder, 'model')
        os.makedirs(model_dir)
        path = os.path.join(model_dir, '.lock')
        holder = subprocess.Popen([sys.executable, '-c', HOLDER, path], stdout=subprocess.PIPE, text=True)
        self.addCleanup(holder.stdout.close)
        self.addCleanup(holder.kill)
        self.assertEqual(holder.stdout.readline(), 'held\n')
        self.check_refused('another training is running in', model_dir)
        self.assertEqual(os.listdir(model_dir), ['.lock'])
        holder.kill()
        holder.wait()
        with open(path, 'w') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_a_folder_that_cannot_be_written_is_told(self):
        self.check_refused('cannot be written', os.path.join(self.config_file, 'model'))

    def check_told(self, error, message):
        with self.assertRaisesRegex(UserError, message), nmt_train.lack_of_room_told('runs/model'):
            raise error

    def test_a_lack_of_room_on_a_disk_is_not_called_one_of_memory(self):
        exhausted = lambda said: tf.errors.ResourceExhaustedError(None, None, said)
        for number in (errno.ENOSPC, errno.EDQUOT):
            reason = os.strerror(number)
            self.check_told(exhausted(f'runs/model/x; {reason}'), f'could not read or write runs/model: .*{reason}')
            self.check_told(OSError(number, reason, 'text.src'), f'could not read or write text.src: {reason}')
        self.check_told(OSError(errno.EIO, 'failed'), 'could not read or write runs/model: failed')
        self.check_told(exhausted('OOM when allocating tensor with shape[9,9]'), 'out of memory: .*allocating tensor')
        with self.assertRaises(ConnectionError), nmt_train.lack_of_room_told('runs/model'):
            raise ConnectionError(errno.ECONNRESET, 'reset')

    def test_a_training_on_a_full_disk_ends_with_a_message(self):
        command = train_command(self.config_file, os.path.join(self.folder, 'model'), 'train.save_every=2')
        environment = {**os.environ, 'PYTHONPATH': ROOT, 'CUDA_VISIBLE_DEVICES': '-1'}
        limited = ['bash', '-c', 'ulimit -f 20; exec "$@"', 'bash', *command]  # kB a file
        found = subprocess.run(limited, cwd=ROOT, env=environment, capture_output=True, text=True)
        self.assertEqual(found.returncode, 2, found.stderr)
        self.assertRegex(found.stderr, 'could not (read or )?write')
        self.assertNotIn('Traceback', found.stderr)


if __name__ == '__main__':
    unittest.main()
