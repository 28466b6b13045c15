"""Two worker processes train as one does; stopped by SIGTERM and killed, they end where undisturbed ones do."""

import os
import signal
import time
import unittest
from unittest import mock

from tests.test_resume import everything_in
from tests.toy import wait_for
from tests.worker_support import WorkersTestCase, free_ports


class StoppedWorkersTest(WorkersTestCase):
    steps = 150  # enough that every signal comes before the end

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
        self.check_close('one', 'two')


class PlainWorkersTest(WorkersTestCase):
    steps = 10

    def test_a_flow_in_two_processes_is_that_in_one(self):
        for name, workers in (('one', 1), ('two', 2)):
            self.end(self.start(name, workers, 'config_toy_flow'), [0] * workers)
        self.check_close('one', 'two')

    def test_the_environment_of_slurm_is_enough(self):
        port = str(free_ports(2))
        job = {'SLURM_STEP_NODELIST': 'localhost', 'SLURM_STEP_TASKS_PER_NODE': '2', 'SEQUENCING_PORT': port}
        for rank in (0, 1):
            with mock.patch.dict(os.environ, {**job, 'SLURM_PROCID': str(rank)}):
                self.start('slurm', 1, strategy='multi_worker')
        said = self.end(self.processes, [0, 0])
        self.assertIn('training ended at step 10', said[0])
        self.assertNotIn('step', said[1])

    def test_a_worker_does_not_wait_for_ever(self):
        with mock.patch.dict(os.environ, SEQUENCING_JOIN_SECONDS='3'):
            for killed in (0, 1):
                processes = self.start('lonely', 2)
                processes.pop(killed).kill()
                said = self.end(processes, [1])
                self.assertIn('ends with code 1 where they have not come in 3 seconds', said[0])


SLOW_VALIDATION = """
import os, sys, time
import nmt_train

validate = nmt_train.Validator.validate

def slowly(validator, step, *others):
    if step == 4:
        print('a long validation', flush=True)
        time.sleep(float(os.environ['VALIDATION_SECONDS']))
    return validate(validator, step, *others)

nmt_train.Validator.validate = slowly
sys.exit(nmt_train.main())
"""


class LongValidationTest(WorkersTestCase):
    # TensorFlow 2.21 gives up a worker whose heartbeat is missing for 10 seconds (its coordination service, which
    # `MultiWorkerMirroredStrategy` starts); without that service, one that does not answer 3 times within 10 seconds
    # each, asked every 30. Both are answered by threads of TensorFlow while Python is at work elsewhere. What waits in
    # an all-reduce has no limit of its own.
    seconds = 130  # more than twice the longest of these, 30 + 3 x 10
    steps, more_settings = 7, ('train.validate_every=4',)

    def test_nobody_gives_up_while_the_chief_validates(self):
        script = self.path('slow_validation.py')
        with open(script, 'w') as file:
            file.write(SLOW_VALIDATION)
        with mock.patch.dict(os.environ, VALIDATION_SECONDS=str(self.seconds)):
            chief, other = self.start('two', 2, script=script)
        wait_for(chief, 'a long validation')
        began = time.monotonic()
        said = self.end([chief, other], [0, 0])
        self.assertGreater(time.monotonic() - began, self.seconds)
        self.assertIn('validation at step 4', said[0])
        self.assertIn('training ended at step 7', said[0])


class DisturbedWorkersTest(WorkersTestCase):
    """With dropout, and noise that every replica draws: to the bit, as two workers are compared with two."""

    steps = 120

    def check_disturbed(self, config):
        self.end(self.start('undisturbed', 2, config, plain=False), [0, 0])

        chief, other = self.start('disturbed', 2, config, plain=False)
        wait_for(chief, 'step 9 ')
        chief.send_signal(signal.SIGINT)
        self.end([chief, other], [130, 130])

        chief, other = self.start('disturbed', 2, config, plain=False)
        self.assertIn('going on from', wait_for(chief, 'step 30 '))
        chief.kill()
        said = self.end([chief, other], [-signal.SIGKILL, 1])
        self.assertIn('Start the job again', said[1])
        self.assertNotIn('Traceback', said[1])

        said = self.end(self.start('disturbed', 2, config, plain=False), [0, 0])
        self.assertIn('going on from', said[0])
        self.check_equal('undisturbed', 'disturbed')

    def test_a_flow_in_its_phases(self):
        self.check_disturbed('config_toy_flow')

    def test_a_transformer_with_adamw_and_averages(self):
        self.check_disturbed('config_toy_transformer')


if __name__ == '__main__':
    unittest.main()
