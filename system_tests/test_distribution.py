"""Many devices, in more ways than `make test` has time for."""

import os
import subprocess
import sys
import unittest

from tests.toy import ROOT


class FourDevicesTest(unittest.TestCase):
    def test_what_four_devices_promise(self):
        environment = {**os.environ, 'PYTHONPATH': ROOT, 'CUDA_VISIBLE_DEVICES': '-1'}
        command = [sys.executable, '-m', 'unittest', 'system_tests.on_four_devices']
        found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        self.assertEqual(found.returncode, 0, found.stdout + found.stderr)
        self.assertRegex(found.stderr, r'Ran [5-9] tests')


if __name__ == '__main__':
    unittest.main()
