"""From starting nmt_infer.py to the first translated line, beside the bare import of TensorFlow.

    python benchmarks/startup.py --model_dir runs/demo

`startup/first_line` compares the import alone with a whole translation of one line; a ratio of 1 would be a translation
that costs nothing beyond the import.
"""

import os
import subprocess
import sys
import time

from absl import flags
from side_by_side import report

from sequencing import cli

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def define(values):
    flags.DEFINE_string('model_dir', '', 'a trained model', flag_values=values)
    flags.DEFINE_string('line', 'The clever bird sees the hats.', 'what is translated', flag_values=values)
    flags.DEFINE_string('decode', 'beam', 'decoding mode', flag_values=values)
    flags.DEFINE_integer('rounds', 5, 'times that each side is measured', lower_bound=1, flag_values=values)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    cli.require(values, 'model_dir')
    script = os.path.join(ROOT, 'nmt_infer.py')
    translate = [sys.executable, script, f'--model_dir={values.model_dir}', f'--decode={values.decode}']
    bare = [sys.executable, '-c', 'import tensorflow']
    pairs = [(seconds(translate, values.line + '\n'), seconds(bare, '')) for _ in range(values.rounds)]
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    ours, theirs = (sorted(side)[len(pairs) // 2] for side in zip(*pairs))
    report('startup/first_line', ratios[len(ratios) // 2], (ratios[0], ratios[-1]), ours, theirs, 's',
           peer_name='import tensorflow', decode=values.decode)  # fmt: skip
    return 0


def seconds(command, text):
    began = time.perf_counter()
    subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


if __name__ == '__main__':
    sys.exit(main(sys.argv))
