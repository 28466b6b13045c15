"""What every script and tool shares: flags, exit codes, one message for a user's mistake.

Exit codes: 0 done (and --help), 1 failed through no fault of the user, 2 bad usage or bad input, 130 and 143 after
SIGINT and SIGTERM.
"""

import difflib
import importlib
import os
import signal
import sys
import tempfile

from absl import flags

from sequencing.errors import Failure, UserError


class Interrupted(Exception):
    """SIGINT or SIGTERM came, and what had to be saved is saved."""

    def __init__(self, signal_number):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def run(body, define, argv=None, usage='', in_place=False):
    """Parses flags, runs a script's body and returns its exit code.

    Args:
      body: called with the parsed flags; may return an exit code.
      define: called with an empty `absl.flags.FlagValues`, defines the script's flags in it.
      argv: the command line, program name first; `sys.argv` by default.
      usage: what `--help` says before the flags.
      in_place: files to write (of `--output...`) may be those that are read.
    """
    argv = list(sys.argv if argv is None else argv)
    name = os.path.basename(argv[0])
    values = flags.FlagValues()
    define(values)
    try:
        if any(arg in ('--help', '-h', '-help', '--helpfull', '--helpshort') for arg in argv[1:]):
            print(f'{usage.strip()}\n\nFlags:\n{values.get_help()}', flush=True)
            return 0
        rest = values(argv)
        if len(rest) > 1:
            raise UserError(f'unexpected argument {rest[1]!r}: every value follows a flag, as in --flag=value.')
        if not in_place:
            refuse_to_write_what_is_read(values)
        return body(values) or 0
    except flags.Error as error:
        unknown = getattr(error, 'flagname', None)
        close = difflib.get_close_matches(unknown, list(values), n=1) if unknown else []
        said = str(error).partition(' Did you mean')[0].rstrip(' .')
        meant = f' Did you mean --{close[0]}?' if close else ''
        return _fail(name, f'{said}.{meant} See {name} --help.')
    except UserError as error:
        return _fail(name, error)
    except Failure as error:
        print(f'{name}: {error}', file=sys.stderr, flush=True)
        return 1
    except Interrupted as error:
        print(f'{name}: stopped by {error}', file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(name, message):
    print(f'{name}: {message}', file=sys.stderr)
    return 2


def refuse_to_write_what_is_read(values):
    """Refuses a file to write (of `--output...`) that another flag names, too: reading it would be its end."""
    named = [(name, path) for name in values for path in _files(values[name].value)]
    for output, path in named:
        if not output.startswith('output'):
            continue
        for name, other in named:
            if name != output and os.path.samefile(path, other):
                raise UserError(f'--{output} {path} is the file of --{name}, too, and would overwrite it: '
                                'give another name.')  # fmt: skip


def _files(value):
    """The files there are among the names in a flag."""
    names = value if isinstance(value, list) else [value]
    return [name for name in names if isinstance(name, str) and os.path.isfile(name)]


def require(values, *names):
    """Refuses flags that were left empty."""
    for name in names:
        if not values[name].value:
            raise UserError(f'--{name} is required: {values[name].help}.')


def quiet_tensorflow():
    """Imports TensorFlow without its start-up notices, which it writes before any log level counts.

    What it said is shown if the import fails.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('GRPC_VERBOSITY', 'ERROR')
    if os.environ['TF_CPP_MIN_LOG_LEVEL'] < '2' or 'tensorflow' in sys.modules:
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            importlib.import_module('tensorflow').config.list_physical_devices()
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def use_threads(count):
    """Gives TensorFlow this many CPU threads; 0 or None leaves it all cores.

    Raises:
      UserError: TensorFlow has started with another number, which it cannot change.
    """
    if not count:
        return
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(count)
    except RuntimeError:
        raise UserError(f'--threads {count}: TensorFlow runs in this process already, with another number of '
                        'threads; start a new process.') from None  # fmt: skip


def note(message):
    """Tells the user something on standard error."""
    print(message, file=sys.stderr, flush=True)
