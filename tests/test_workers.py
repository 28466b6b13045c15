"""Two real worker processes train as one process does, and lose nothing when one is killed."""

import signal
import unittest

from tests.toy import wait_for
from tests.worker_support import WorkersTestCase


class TwoWorkersTest(WorkersTestCase):
    def test_a_killed_worker_costs_nothing_but_time(self):
        self.end(self.start('one', 1), [0])
        chief, other = self.start('two', 2)
        wait_for(chief, 'step 8 ')
        other.kill()
        said = self.end([chief, other], [1, -signal.SIGKILL])
        self.assertIn('Start the job again', said[0])
        self.assertNotIn('Traceback', said[0])
        said = self.end(self.start('two', 2), [0, 0])
        self.assertIn('going on from', said[0])
        self.check_close('one', 'two')


if __name__ == '__main__':
    unittest.main()
