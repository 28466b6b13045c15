"""How fast batches come, against what training consumes, and how much memory they take however long the text is.

    python benchmarks/data_pipeline.py

The text is made up: two sides of 4 to 20 words from a list of 20,000. `rate` reads epochs from the cache through
`tf.data`, as training does; its peer is 20 times what training consumes. `memory` compares the peak of a process that
makes the vocabularies, encodes 5 million pairs and reads an epoch of them with that of one that does so with 50
thousand; its peer is the 300 MB that they may differ by. `encode` is the first reading of the text, without a peer.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from sequencing import cli

cli.quiet_tensorflow()

_WORDS = 20_000
_CHUNK = 50_000  # lines made at a time
_ALLOWED = 300e6  # bytes that the long text may take more than the short one
_FASTER = 20  # times what training consumes


def main(argv=None):
    """The command; returns the exit code."""
    return cli.run(benchmark, define, argv, usage=__doc__)


def define(values):
    flags.DEFINE_float('train_tokens_per_second', 10_000, 'target tokens/s that training consumes', flag_values=values)
    flags.DEFINE_integer('small', 50_000, 'pairs of the short text', lower_bound=1000, flag_values=values)
    flags.DEFINE_integer('large', 5_000_000, 'pairs of the long text', lower_bound=1000, flag_values=values)
    flags.DEFINE_integer('repeats', 5, 'measurements of the rate', lower_bound=1, flag_values=values)
    flags.DEFINE_string('measure', '', 'used by this command itself: the folder of a text', flag_values=values)


def benchmark(values):
    if values.measure:
        return measure(values.measure, values.repeats)
    found = {}
    for name, pairs in (('small', values.small), ('large', values.large)):
        with tempfile.TemporaryDirectory() as folder:
            write_text(folder, pairs)
            repeats = values.repeats if name == 'small' else 1
            command = [sys.executable, os.path.abspath(__file__), f'--measure={folder}', f'--repeats={repeats}']
            environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
            said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
            found[name] = json.loads(said.splitlines()[-1])
            cli.note(f'{pairs:,} pairs: {found[name]}')
    wanted = _FASTER * values.train_tokens_per_second
    rates = [rate / wanted for rate in found['small']['rates']]
    shape = 'batches of 3000 tokens, 12 words a side'
    report('rate', statistics.median(rates), rates, statistics.median(rates) * wanted, wanted, 'target tokens/s',
           f'tf.data from the cache, {values.small:,} pairs, {shape}')  # fmt: skip
    more = max(1e6, found['large']['peak'] - found['small']['peak'])
    report('memory', _ALLOWED / more, [_ALLOWED / more], more / 1e6, _ALLOWED / 1e6, 'MB',
           f'peak with {values.large:,} pairs over peak with {values.small:,}, {shape}')  # fmt: skip
    encoding = found['large']['encode']
    report('encode', None, [], encoding, None, 'pairs/s', f'text to cache, words, {values.large:,} pairs')
    return 0


def report(case, ratio, ratios, ours, peer, unit, what):
    """One line of JSON; a larger ratio is better."""
    spread = [round(min(ratios), 3), round(max(ratios), 3)] if ratios else None
    ratio = ratio and round(ratio, 3)
    print(json.dumps(dict(name=f'data_pipeline/{case}', ratio=ratio, spread=spread, ours=round(ours, 1), peer=peer,
                          unit=unit, what=what, threads=os.cpu_count())), flush=True)  # fmt: skip


def write_text(folder, pairs):
    """Writes `train.src` and `train.trg`, a line each for every pair, from random words."""
    import numpy as np

    generator = np.random.default_rng(1)
    words = [f'word{i}' for i in range(_WORDS)]
    for side in ('src', 'trg'):
        with open(os.path.join(folder, f'train.{side}'), 'w', encoding='utf-8') as file:
            for start in range(0, pairs, _CHUNK):
                ends = np.cumsum(generator.integers(4, 21, min(_CHUNK, pairs - start))).tolist()
                text = [words[i] for i in generator.integers(0, _WORDS, ends[-1]).tolist()]
                lines = [' '.join(text[a:b]) for a, b in zip([0, *ends], ends)]
                file.write('\n'.join(lines) + '\n')


def measure(folder, repeats):
    """Encodes the text of a folder, reads epochs of it, and prints what that took, all in this process."""
    import build_inputs
    from sequencing.config import Config, CorpusConfig, DataConfig, TrainConfig, VocabConfig

    words = VocabConfig('words', size=_WORDS)
    data = DataConfig(
        folder=folder, corpora=(CorpusConfig('train.src', 'train.trg'),), src_vocab=words, trg_vocab=words
    )
    config = Config(data=data, train=TrainConfig(batch_unit='tokens', batch_size=3000))
    vocabs = build_inputs.build_vocabs(config, os.path.join(folder, 'vocab'))
    start = time.perf_counter()
    inputs = build_inputs.build_parallel_inputs(config, *vocabs, os.path.join(folder, 'cache'))
    encode = inputs.report.read / (time.perf_counter() - start)
    rates, tokens = [], inputs.report.trg_tokens
    stream = iter(inputs.dataset())
    _, position = next(stream)  # warm-up: the first batch brings up the threads
    for _ in range(repeats):
        start, first = time.perf_counter(), int(position.sentences)
        while int(position.sentences) - first < inputs.size:
            _, position = next(stream)
        rates.append(tokens / (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
    print(json.dumps(dict(peak=peak, encode=encode, rates=rates, padding=inputs.report.padding)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
