"""Training and greedy decoding of a Transformer on real text, on one core, beside JoeyNMT 2.3.

    taskset -c 0 python benchmarks/joeynmt.py --data $DATA/en-de --peer_python joey/bin/python --model_dir DIR

3 + 3 layers of 256 units, 4 heads, 1,024 units inside, pre-norm, one tied table of 8,000 unigram pieces, which are the
same on both sides; dropout 0.1, label smoothing 0.1, Adam, token batches of 1,024. JoeyNMT computes in float32; `best`
is our bfloat16.

`train` lines are target tokens/s of whole updates, without padding on either side, as each training prints them once
its first 20 updates are over: the harmonic mean over 20 updates each, for some minutes. JoeyNMT makes a batch of the
lines that follow; so in its file stand lines of one length, as many as it takes, and the batches in random order.
Nearly all that it computes is real.

`decode` lines are sentences/s of greedy search over the test set, sorted by length for both, with the weights of one
trained model of ours (--model_dir, of the shape of config_transformer_small; without it there are no such lines).
`same` counts the translations of the last round that are. Loading is not timed, nor is our tracing.

The peer is a Python environment with

    pip install torch numpy sentencepiece sacrebleu tensorboard matplotlib pyyaml tqdm packaging
    pip install importlib_metadata subword-nmt      # imported; the first is not declared
    pip install --no-deps joeynmt==2.3.0            # its limit on protobuf excludes today's tensorboard

Newer releases of SentencePiece have no `SetVocabulary`, by which JoeyNMT keeps to its pieces; here it has them all, and
a stand-in does nothing. Its `plateau` schedule uses an argument that PyTorch has dropped; that of this file does not.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from absl import flags
from joeynmt_files import BATCH, UPDATES, write_decoding, write_lines, write_training
from side_by_side import compare, run

from sequencing import cli
from sequencing.errors import Failure

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXAMPLE = os.path.join(ROOT, 'config_example.py')
PRECISIONS = {'float32': 'float32', 'best': 'mixed_bfloat16'}
UNITS = {'train': 'target tokens/s', 'decode': 'sentences/s'}

# `python -m joeynmt`; to hold weights of ours, its output layer gets a bias and its normalisation our epsilon.
PEER = """
import runpy, sys
import numpy, sentencepiece, torch
sentencepiece.SentencePieceProcessor.SetVocabulary = lambda *_: None
if sys.argv[1] == 'test':
    from joeynmt import prediction
    def load(path, map_location):
        return {'model_state': {name: torch.from_numpy(value) for name, value in numpy.load(path).items()}}
    def build(*args, make=prediction.build_model, **options):
        model = make(*args, **options)
        model.decoder.output_layer.bias = torch.nn.Parameter(torch.zeros(len(model.trg_vocab)))
        for part in model.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.eps = 1e-5
        return model
    prediction.load_checkpoint, prediction.build_model = load, build
runpy.run_module('joeynmt', run_name='__main__')
"""


def define(values):
    own = {'flag_values': values}
    flags.DEFINE_string('data', '', 'folder with train.en.gz, train.de.gz and test.en', **own)
    flags.DEFINE_string('peer_python', '', 'Python of the environment that has JoeyNMT', **own)
    flags.DEFINE_string('work_dir', 'runs/joeynmt', 'where data and models of this comparison go', **own)
    flags.DEFINE_string('model_dir', '', 'trained model of ours with whose weights both decode', **own)
    flags.DEFINE_list('cases', list(UNITS), 'what is measured', **own)
    flags.DEFINE_list('precisions', list(PRECISIONS), 'of ours', **own)
    flags.DEFINE_integer('rounds', 3, 'times that each side is measured', lower_bound=1, **own)
    flags.DEFINE_float('minutes', 1, 'of training on each side, after the first updates', lower_bound=0.1, **own)
    flags.DEFINE_integer('sentences', 0, 'first ones of the test set; 0 for all', lower_bound=0, **own)
    flags.DEFINE_integer('peer_batch', 64, 'sentences that the peer decodes together', lower_bound=1, **own)
    flags.DEFINE_integer('threads', 1, 'of either side', lower_bound=1, **own)
    flags.DEFINE_enum('side', '', ['', *SIDES], 'used by this command itself', **own)
    flags.DEFINE_string('precision', '', 'used by this command itself', **own)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    if values.side:
        print(SIDES[values.side](values))
        return 0
    cli.require(values, 'data', 'peer_python')
    for case in values.cases:
        if case == 'decode' and not values.model_dir:
            continue
        run(command(values, f'prepare_{case}'))
        for name in values.precisions:
            about = {'precision': PRECISIONS[name], 'threads': values.threads, 'peer_name': 'JoeyNMT 2.3, float32'}
            if case == 'decode':
                about['same'] = lambda: same(values)
            compare(f'joeynmt/{case}/{name}', command(values, f'{case}_ours', PRECISIONS[name]),
                    command(values, f'{case}_peer'), values.rounds, UNITS[case], **about)  # fmt: skip
    return 0


def command(values, side, precision=''):
    names = ('data', 'peer_python', 'work_dir', 'model_dir', 'minutes', 'sentences', 'peer_batch', 'threads')
    given = [f'--{name}={values[name].value}' for name in names]
    return [sys.executable, os.path.abspath(__file__), f'--side={side}', f'--precision={precision}', *given]


def path(values, name):
    """Of a file in the working folder."""
    return os.path.abspath(os.path.join(values.work_dir, name))


# Training -----------------------------------------------------------------------------------------------------------


def prepare_train(values):
    cli.quiet_tensorflow()
    from build_inputs import build_vocabs
    from sequencing.config_files import load_config

    config, _ = load_config('config_transformer_small', EXAMPLE, [f'data.folder={values.data}'])
    vocab, _ = build_vocabs(config, path(values, 'vocab'))
    write_training(path(values, ''), vocab, config)
    return 0


def train_ours(values):
    """As a user starts it."""
    settings = {'data.folder': values.data, 'data.cache_dir': path(values, 'cache'), 'train.batch_size': BATCH,
                'train.learning_rate': 1.5e-3, 'train.schedule': 'inverse_sqrt', 'train.warmup_steps': 400,
                'train.log_every': UPDATES}  # fmt: skip
    for side in ('src', 'trg'):
        settings[f'data.{side}_vocab.kind'] = 'sentencepiece'
        settings[f'data.{side}_vocab.file'] = path(values, 'vocab/joint.model')
    with tempfile.TemporaryDirectory(dir=values.work_dir) as folder:
        trainer = [
            sys.executable,
            os.path.join(ROOT, 'nmt_train.py'),
            f'--config_file={EXAMPLE}',
            '--config=config_transformer_small',
            f'--model_dir={folder}',
            f'--precision={values.precision}',
            f'--threads={values.threads}',
            *[f'--set={field}={value}' for field, value in settings.items()],
        ]
        return training_rate(trainer, r'([\d,]+) target tokens/s', values.minutes, None)


def train_peer(values):
    return training_rate(peer(values, 'train', '--skip-test'), r'Tokens per Sec: +(\d+)', values.minutes,
                         peer_environment(values))  # fmt: skip


def training_rate(trainer, pattern, minutes, environment):
    """Mean of the rates that a training prints in `minutes` after its first one; then it is stopped."""
    said, rates = [], []
    with subprocess.Popen(trainer, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:  # fmt: skip
        stop = threading.Timer(60 * minutes, process.terminate)
        hangs = threading.Timer(60 * minutes + 1800, process.kill)  # with nothing printed
        hangs.start()
        for line in process.stdout:
            said.append(line)
            found = re.search(pattern, line)
            if found:
                if not rates:
                    stop.start()
                rates.append(float(found[1].replace(',', '')))
        stopped = rates and not stop.is_alive()
        stop.cancel()
        hangs.cancel()
    if len(rates) < 2 or not stopped:
        raise Failure(f'{" ".join(trainer)} did not train for {minutes} minutes:\n{"".join(said[-20:])}')
    return statistics.harmonic_mean(rates[1:])


# Decoding -----------------------------------------------------------------------------------------------------------


def prepare_decode(values):
    cli.quiet_tensorflow()
    from sequencing.text import read_lines
    from sequencing.translator import load_model

    os.makedirs(values.work_dir, exist_ok=True)
    model, config, vocab, _ = load_model(values.model_dir, 'best', 'float32')
    lines = list(read_lines(os.path.join(values.data, 'test.en')))[: values.sentences or None]
    write_decoding(path(values, ''), vocab, config, model, lines, values.peer_batch)
    return 0


def decode_ours(values):
    cli.quiet_tensorflow()
    cli.use_threads(values.threads)
    import sequencing

    translator = sequencing.load(values.model_dir, precision=values.precision)
    lines = read(values, 'test.en')

    def translate(lines):
        return [result.outputs[0].translation for result in translator.stream(lines, decode='greedy')]

    translate(lines[::20])
    began = time.perf_counter()
    found = translate(lines)
    seconds = time.perf_counter() - began
    write_lines(path(values, 'ours.test'), found)
    return len(lines) / seconds


def decode_peer(values):
    """By the seconds that it tells itself."""
    done = subprocess.run(peer(values, 'test', '--output-path', path(values, 'peer')), env=peer_environment(values),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    seconds = re.search(r'Generation took ([\d.]+)', done.stdout)
    if done.returncode or not seconds:
        raise Failure(f'JoeyNMT ended with exit code {done.returncode}:\n{done.stdout[-2000:]}')
    return len(read(values, 'test.en')) / float(seconds[1])


def same(values):
    mine, theirs = read(values, 'ours.test'), read(values, 'peer.test')
    return f'{sum(map(str.__eq__, mine, theirs))} of {len(mine)}'


def read(values, name):
    with open(path(values, name), encoding='utf-8') as file:
        return file.read().split('\n')[:-1]


# The peer -----------------------------------------------------------------------------------------------------------


def peer(values, mode, *more):
    # Isolated from our PYTHONPATH and the current folder, where `joeynmt` may be this file.
    return [values.peer_python, '-I', '-c', PEER, mode, path(values, f'{mode}.yaml'), *more]


def peer_environment(values):
    return {**os.environ, 'OMP_NUM_THREADS': str(values.threads)}


SIDES = {'prepare_train': prepare_train, 'prepare_decode': prepare_decode, 'train_ours': train_ours,
         'train_peer': train_peer, 'decode_ours': decode_ours, 'decode_peer': decode_peer}  # fmt: skip

if __name__ == '__main__':
    sys.exit(main(sys.argv))
