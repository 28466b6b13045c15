"""What tests share: seeds that vary from run to run, scratch folders, commands as users run them, goldens."""

import contextlib
import io
import os
import random
import sys
import tempfile
import unittest

import tensorflow as tf

_SEED = int(os.environ.get('SEQUENCING_TEST_SEED') or random.SystemRandom().randrange(2**31))
print(f'SEQUENCING_TEST_SEED={_SEED}', file=sys.stderr)


def seeds(test):
    """A random.Random for one test, from the run's seed (printed; set SEQUENCING_TEST_SEED to repeat) and its name."""
    return random.Random(f'{_SEED} {test.id()}')


def run_tool(main, *arguments):
    """Runs a script's main; returns its exit code and what it wrote on standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    out.buffer = io.BytesIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(['script.py', *arguments])
    return code, out.getvalue() + out.buffer.getvalue().decode(), err.getvalue()


def scratch_folder(add_cleanup):
    """A new folder that is removed when what `add_cleanup` belongs to is over."""
    folder = tempfile.TemporaryDirectory()
    add_cleanup(folder.cleanup)
    return folder.name


@contextlib.contextmanager
def untraced():
    """Runs what it decorates without making graphs: one takes as long as a small model takes for many single runs."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


class FolderTest(unittest.TestCase):
    """Base: a scratch folder and a seed for each test."""

    def setUp(self):
        super().setUp()
        self.draw = seeds(self)
        self.folder = scratch_folder(self.addCleanup)

    def path(self, name):
        return os.path.join(self.folder, name)


def shared_folder(*parts):
    """The path of `parts` below `$SEQUENCING_SHARED`; without that variable the test is reported as skipped."""
    root = os.environ.get('SEQUENCING_SHARED')
    if not root:
        raise unittest.SkipTest('set SEQUENCING_SHARED to the folder that holds goldens/ and data/')
    path = os.path.join(root, *parts)
    if not os.path.exists(path):
        raise AssertionError(f'SEQUENCING_SHARED is set but {path} does not exist')
    return path
