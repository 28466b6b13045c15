"""Writes `commands.md` from what `--help` of every script and tool says.

python docs/make_commands.py
"""

import contextlib
import glob
import importlib
import io
import os
import re
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(FOLDER)
FIRST = ('nmt_train', 'nmt_infer', 'nmt_np')
INTRODUCTION = """# Every command line

Made by `python docs/make_commands.py` from what `--help` says. Values follow flags as `--flag value` or
`--flag=value`; a flag that is on or off is given as `--flag` or `--noflag`. All commands exit with 0 when done, 1 when
they fail through no fault of yours, 2 when something in the command or its files is wrong (one message says what,
where, and what to do), 130 and 143 after SIGINT and SIGTERM. `--flagfile FILE` reads flags from a file.
"""


def command_modules():
    """Names of all modules that are commands, scripts first."""
    tools = []
    for path in sorted(glob.glob(os.path.join(ROOT, 'tools', '*.py'))):
        with open(path, encoding='utf-8') as file:
            if re.search(r'^def main\(', file.read(), re.MULTILINE):
                tools.append(f'tools.{os.path.basename(path)[:-3]}')
    return [*FIRST, *tools]


def help_of(module):
    """What `--help` of a command prints, without what absl adds to every program."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        importlib.import_module(module).main([module, '--help'])
    usage, _, flags = said.getvalue().partition('\nFlags:\n')
    flags = re.sub(r'^\S+:\n', '', flags.partition('absl.flags:')[0].strip(), flags=re.MULTILINE)
    return usage.strip(), flags


def page():
    """The text of `commands.md`."""
    parts = [INTRODUCTION]
    for module in command_modules():
        usage, flags = help_of(module)
        parts.append(f'## {module.replace(".", "/")}.py\n\n```text\n{usage}\n```\n\n```text\n{flags}\n```\n')
    return '\n'.join(parts)


if __name__ == '__main__':
    sys.path.insert(0, ROOT)
    with open(os.path.join(FOLDER, 'commands.md'), 'w', encoding='utf-8') as out:
        out.write(page())
