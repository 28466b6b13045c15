"""Trains for an hour under kills at random, and compares with the same training undisturbed. Not part of the tests.

    python benchmarks/soak.py --minutes 60
    python benchmarks/soak.py --minutes 60 --workers 2

Every few minutes one process, the first or another, gets SIGKILL; the job is started again until it has made its steps.
Weights, optimizer, counters and position in the data have to end equal to the bit. The last line says what was found;
the exit code is 1 where anything differs.
"""

import contextlib
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

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # for what tests share


def define(values):
    flags.DEFINE_float('minutes', 60.0, 'of training under kills', lower_bound=0.1, flag_values=values)
    flags.DEFINE_float('kill_every', 3.0, 'minutes between kills, on average', lower_bound=0.05, flag_values=values)
    flags.DEFINE_integer('workers', 1, 'processes that train together', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('seed', None, 'of the kills and the text; drawn by default', flag_values=values)


def main(argv=None):
    return cli.run(soak, define, argv, usage=__doc__)


def soak(values):
    seed = random.SystemRandom().randrange(2**31) if values.seed is None else values.seed
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as held:
        from tests.toy import write_task

        config = write_task(os.path.join(folder, 'data'), 'sort', chance, words='abcdefghijkl', longest=9)
        job = lambda name, steps: held.enter_context(Job(config, folder, name, steps, values.workers))
        steps = steps_for(values.minutes, job)
        kills, began = 0, time.monotonic()
        while True:
            training = job('killed', steps)
            wait = chance.expovariate(1 / (60 * values.kill_every))
            if training.ends_within(wait if time.monotonic() - began < 120 * values.minutes else None):
                break
            training.processes[chance.randrange(values.workers)].send_signal(signal.SIGKILL)
            kills += 1
            training.end()
        job('undisturbed', steps).ends_within(None)
        differ = differences(*(os.path.join(folder, name) for name in ('killed', 'undisturbed')))
    minutes = round((time.monotonic() - began) / 60, 1)
    print(json.dumps({'name': f'soak/workers_{values.workers}', 'steps': steps, 'kills': kills, 'seed': seed,
                      'minutes': minutes, 'different': differ}), flush=True)  # fmt: skip
    return 1 if differ or not kills else 0


def steps_for(minutes, job):
    """How many steps take about so many minutes, from the second hundred of a short run."""
    training = job('short', 200)
    times = [time.monotonic() for line in training.processes[0].stdout if line.startswith('step ')]
    training.end()
    return max(int(60 * minutes * 100 / (times[-1] - times[99])), 100)


class Job:
    """One start of a training, in one process or several, of which none outlives the context."""

    def __init__(self, config, folder, name, steps, workers):
        from tests.toy import train_command
        from tests.worker_support import start_workers

        settings = [f'train.max_steps={steps}', 'train.save_every=20', 'train.validate_every=500', 'threads=1',
                    'train.log_every=1', f'data.cache_dir={folder}/cache']  # fmt: skip
        command = train_command(config, os.path.join(folder, name), *settings)
        command.append('--strategy=multi_worker' if workers > 1 else '--strategy=one')
        shown = subprocess.PIPE if name == 'short' else subprocess.DEVNULL
        self.processes = start_workers(command, workers, stdout=shown)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()

    def ends_within(self, seconds):
        """Waits so long, None for as long as it takes; whether all processes ended well."""
        try:
            codes = [process.wait(seconds) for process in self.processes]
        except subprocess.TimeoutExpired:
            return False
        if any(codes):
            raise SystemExit(f'a training ended by itself with exit codes {codes}')
        return True

    def end(self):
        """Waits for all processes, however they end."""
        for process in self.processes:
            process.communicate(timeout=600)


def differences(one, two):
    """Names of what differs between the last checkpoints of two folders."""
    import numpy as np

    from tests.test_resume import everything_in

    first, second = everything_in(one), everything_in(two)
    return sorted(key for key in {*first, *second}
                  if key not in first or key not in second or not np.array_equal(first[key], second[key]))  # fmt: skip


if __name__ == '__main__':
    sys.exit(main(sys.argv))
