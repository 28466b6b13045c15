"""The tutorials as a new user would follow them: in a fresh clone, every code block as printed, in order."""

import os
import re
import subprocess
import unittest

from tests.support import scratch_folder
from tests.toy import ROOT

BLOCK = re.compile(r'^```(sh|python)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page):
    """(language, code) of every block of a page that is to be run."""
    with open(os.path.join(ROOT, 'docs', page), encoding='utf-8') as file:
        return BLOCK.findall(file.read())


class TutorialTest(unittest.TestCase):
    def test_every_block_runs_in_a_fresh_clone(self):
        clone = os.path.join(scratch_folder(self.addCleanup), 'clone')
        subprocess.run(['git', 'clone', '--quiet', ROOT, clone], check=True)
        for number, (language, code) in enumerate(blocks('tutorial.md'), start=1):
            command = ['bash', '-euo', 'pipefail', '-c', code] if language == 'sh' else ['.venv/bin/python', '-c', code]
            environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
            done = subprocess.run(command, cwd=clone, env=environment, text=True, capture_output=True)
            self.assertEqual(done.returncode, 0, f'block {number}:\n{code}\n{done.stdout}\n{done.stderr}')


if __name__ == '__main__':
    unittest.main()
