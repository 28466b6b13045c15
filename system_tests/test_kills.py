"""A training that is killed again and again ends where an undisturbed one does, to the bit."""

import os
import signal
import tempfile
import unittest

import numpy as np

from tests.support import seeds
from tests.test_resume import everything_in
from tests.toy import start, train_command, write_task

STEPS = 60


class KillTest(unittest.TestCase):
    def test_many_kills_change_nothing(self):
        random = seeds(self)
        with tempfile.TemporaryDirectory() as folder:
            config = write_task(os.path.join(folder, 'data'), 'sort', random)
            settings = [f'train.max_steps={STEPS}', 'train.validate_every=25', 'train.save_every=7', 'threads=2',
                        f'data.cache_dir={folder}/cache']  # fmt: skip
            undisturbed, killed = os.path.join(folder, 'undisturbed'), os.path.join(folder, 'killed')
            process = start(train_command(config, undisturbed, *settings))
            output, _ = process.communicate()
            self.assertEqual(process.returncode, 0, output)
            kills = 0
            while True:
                process = start(train_command(config, killed, *settings))
                lines = random.randint(5, 40)
                for _ in range(lines):
                    if not process.stdout.readline():
                        break
                if process.poll() is None and kills < 6:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                process.communicate()
                if process.returncode == 0:
                    break
                self.assertEqual(process.returncode, -signal.SIGKILL)
            self.assertGreater(kills, 0)
            want, got = everything_in(undisturbed), everything_in(killed)
            self.assertEqual(got.keys(), want.keys())
            for key in want:
                np.testing.assert_array_equal(got[key], want[key], err_msg=key)


if __name__ == '__main__':
    unittest.main()
