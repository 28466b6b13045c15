"""Trains for an hour under kills at random, and compares with the same training undisturbed. Not part of the tests.

    python benchmarks/soak.py --minutes 60
    python benchmarks/soak.py --minutes 60 --workers 2

Every few minutes one process, the first or another, gets SIGKILL, and the job is started again. When the time is up it
is started once more, to make a few steps and end; then a training in another folder makes as many steps undisturbed,
which takes most of an hour again. Weights, optimizer, counters and position in the data have to be equal to the bit,
and so has the best checkpoint. The last line says what was found; the exit code is 1 where anything differs.
"""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import flags

from sequencing import cli
from sequencing.errors import Failure

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # for what tests share

SAVE_EVERY, ENDLESS = 20, 10**9  # steps


def define(values):
    flags.DEFINE_float('minutes', 60.0, 'of training under kills', lower_bound=0.1, flag_values=values)
    flags.DEFINE_float('kill_every', 3.0, 'minutes between kills, on average', lower_bound=0.05, flag_values=values)
    flags.DEFINE_integer('workers', 1, 'processes that train together', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('seed', None, 'of the kills and the text; drawn by default', flag_values=values)


def main(argv=None):
    return cli.run(soak, define, argv, usage=__doc__)


def soak(values):
    cli.quiet_tensorflow()
    from tests.toy import write_task

    seed = random.SystemRandom().randrange(2**31) if values.seed is None else values.seed
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        config = write_task(os.path.join(folder, 'data'), 'sort', chance, words='abcdefghijkl', longest=9)
        killed, undisturbed = (os.path.join(folder, name) for name in ('killed', 'undisturbed'))
        os.environ['SEQUENCING_JOIN_SECONDS'] = '90'  # of a worker whose peer was killed before they met
        kills, others, began = 0, collections.Counter(), time.monotonic()
        ends = began + 60 * values.minutes
        while time.monotonic() < ends:
            wait = min(chance.expovariate(1 / (60 * values.kill_every)), ends - time.monotonic())
            with Job(config, killed, ENDLESS, values.workers) as job:
                others.update(job.die_after(wait, chance.randrange(values.workers)))
            kills += 1
            cli.note(f'{(time.monotonic() - began) / 60:.1f} minutes, {kills} kills, {last_step(killed)} steps saved')
        steps, seconds = last_step(killed) + SAVE_EVERY + 1, {}
        for model_dir in (killed, undisturbed):
            with Job(config, model_dir, steps, values.workers) as job:
                job.end()
            seconds[model_dir] = time.monotonic() - began - sum(seconds.values())
        differ = differences(killed, undisturbed)
    print(json.dumps({
        'name': f'soak/workers_{values.workers}', 'steps': steps, 'kills': kills, 'seed': seed,
        'minutes_killed': round(seconds[killed] / 60, 1), 'minutes_undisturbed': round(seconds[undisturbed] / 60, 1),
        'others_ended_with': others, 'different': differ,
    }), flush=True)  # fmt: skip
    return 1 if differ else 0


class Job:
    """One start of a training, in one process or several, of which none outlives the context."""

    def __init__(self, config, model_dir, steps, workers):
        from tests.toy import train_command
        from tests.worker_support import start_workers

        settings = [f'train.max_steps={steps}', f'train.save_every={SAVE_EVERY}', 'train.validate_every=500',
                    'train.log_every=50', 'threads=1', f'data.cache_dir={model_dir}.cache']  # fmt: skip
        command = train_command(config, model_dir, *settings)
        command.append('--strategy=multi_worker' if workers > 1 else '--strategy=one')
        self.said = tempfile.TemporaryFile('w+')
        self.processes = start_workers(command, workers, stdout=self.said, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()
        self.said.close()

    def die_after(self, seconds, which):
        """Kills a process after so long; returns the exit codes of the others, which find out and end by themselves."""
        killed, *others = self.processes[which], *self.processes[:which], *self.processes[which + 1 :]
        try:
            killed.wait(seconds)
        except subprocess.TimeoutExpired:
            killed.send_signal(signal.SIGKILL)
        self.expect([-signal.SIGKILL], [killed])
        try:
            return [process.wait(600) for process in others]
        except subprocess.TimeoutExpired:
            raise Failure('a worker goes on ten minutes after another one was killed') from None

    def end(self):
        """Waits for as long as it takes."""
        self.expect([0] * len(self.processes), self.processes)

    def expect(self, codes, processes):
        found = [process.wait() for process in processes]
        if found != codes:
            self.said.seek(0)
            raise Failure(f'a training ended with exit codes {found} in place of {codes}:\n{self.said.read()[-5000:]}')


def last_step(model_dir):
    """Of the last checkpoint; 0 where there is none."""
    import tensorflow as tf

    return int((tf.train.latest_checkpoint(model_dir) or '-0').rpartition('-')[2])


def differences(one, two):
    """Names of what differs between two model folders, in their last checkpoints and their best ones."""
    import numpy as np

    from tests.test_resume import everything_in

    differ = []
    for part in ('', 'best') if os.path.exists(os.path.join(one, 'best')) else ('',):
        first, second = (everything_in(os.path.join(folder, part)) for folder in (one, two))
        differ += [os.path.join(part, key) for key in sorted({*first, *second})
                   if key not in first or key not in second or not np.array_equal(first[key], second[key])]  # fmt: skip
    return differ


if __name__ == '__main__':
    sys.exit(main(sys.argv))
