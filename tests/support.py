"""What tests share: seeds that vary from run to run, and the folder of goldens."""

import os
import random
import sys
import unittest

_SEED = int(os.environ.get('SEQUENCING_TEST_SEED') or random.SystemRandom().randrange(2**31))
print(f'SEQUENCING_TEST_SEED={_SEED}', file=sys.stderr)


def seeds(test):
    """A random.Random for one test, from the run's seed (printed; set SEQUENCING_TEST_SEED to repeat) and its name."""
    return random.Random(f'{_SEED} {test.id()}')


def shared_folder(*parts):
    """The path of `parts` below `$SEQUENCING_SHARED`; without that variable the test is reported as skipped."""
    root = os.environ.get('SEQUENCING_SHARED')
    if not root:
        raise unittest.SkipTest('set SEQUENCING_SHARED to the folder that holds goldens/ and data/')
    path = os.path.join(root, *parts)
    if not os.path.exists(path):
        raise AssertionError(f'SEQUENCING_SHARED is set but {path} does not exist')
    return path
