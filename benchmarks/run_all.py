"""Runs short forms of the benchmarks below, one after another; `make bench`."""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SHORT = (
    ('data_pipeline.py', '--large=500000'),
    ('train_rnn.py', '--rounds=1'),
    ('decode_rnn.py', '--repeats=3'),
    ('decode_transformer.py', '--rounds=1', '--sentences=32'),
    ('numpy_decode.py', '--rounds=1'),
    ('startup.py', '--rounds=3', '--model_dir=runs/demo'),
)


def main():
    failed = 0
    for name, *flags in SHORT:
        print(f'# {name} {" ".join(flags)}', file=sys.stderr, flush=True)
        failed |= subprocess.run([sys.executable, os.path.join(HERE, name), *flags]).returncode
    return failed


if __name__ == '__main__':
    sys.exit(main())
