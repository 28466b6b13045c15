"""Inference with NumPy alone beside TensorFlow's: start, first line, sentences/s, size on disk, BLEU.

    python benchmarks/numpy_decode.py
    python benchmarks/numpy_decode.py --model_dir runs/en2de --test_src test.en --test_trg test.de

Without a trained model, Transformer small: 3 + 3 layers of 256 units, 4 heads, 1,024 units inside, one tied table of
8,000 tokens; random weights, with EOS made impossible before the limit. Greedy search, one sentence of 25 tokens at a
time, 25 tokens out. With one (`--model_dir`), the same of that model and of the first sentences of its text.

`import` and `first_line` are processes from start to end, `greedy` is the mean rate in sentences/s without the first
two; `size/float32` compares the one file with the checkpoint, `size/int8` with the float32 file. `bleu/int8`, of a
trained model, compares the BLEU of its int8 file with that of its float32 file, greedy search of the whole text. All in
float32.
"""

import itertools
import os
import statistics
import sys
import tempfile
import time

from absl import flags
from side_by_side import compare, report, run

from sequencing import cli
from sequencing.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = {'layers': 3, 'size': 256, 'heads': 4, 'hidden_size': 1024, 'vocab': 8000}


def define(values):
    for name, size in SIZES.items():
        flags.DEFINE_integer(name, size, 'of the model', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('decoder_layers', 0, 'of the model; 0 for as many as the encoder has', lower_bound=0,
                         flag_values=values)  # fmt: skip
    flags.DEFINE_integer('tokens', 25, 'of a source and of an output', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('sentences', 20, 'timed in a round', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('rounds', 3, 'times that each side is measured', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('threads', 2, 'CPU threads of either side', lower_bound=1, flag_values=values)
    flags.DEFINE_string('model_dir', '', 'a trained autoregressive model; else one is made', flag_values=values)
    flags.DEFINE_string('test_src', '', 'source text for a trained model', flag_values=values)
    flags.DEFINE_string('test_trg', '', 'its reference', flag_values=values)
    flags.DEFINE_string('side', '', 'used by this command itself', flag_values=values)
    flags.DEFINE_string('model', '', 'used by this command itself', flag_values=values)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    for name in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'):  # read when NumPy is imported
        os.environ[name] = str(values.threads)
    if values.side:
        print(SIDES[values.side](values))
        return 0
    if values.model_dir:
        cli.require(values, 'test_src', 'test_trg')
    elif values.test_src or values.test_trg:
        raise UserError('--test_src and --test_trg are the text of a trained model: give its --model_dir.')
    with tempfile.TemporaryDirectory() as folder:
        model_dir, file = values.model_dir or os.path.join(folder, 'model'), os.path.join(folder, 'model.npz')
        if values.model_dir:
            name = os.path.basename(model_dir.rstrip('/'))
        else:
            run_apart(values, 'make', model_dir)
            sizes = [size for size in (*SIZES, 'decoder_layers') if values[size].value]
            name = 'Transformer ' + ', '.join(f'{size} {values[size].value}' for size in sizes)
        convert(model_dir, file)
        about = dict(threads=values.threads, precision='float32', peer_name='TensorFlow', model=name)
        for case, unit, better in (
            ('import', 's', 'less'),
            ('first_line', 's', 'less'),
            ('greedy', 'sentences/s', 'more'),
        ):
            commands = [side_command(values, f'{case}_{side}', model) for side, model in
                        (('numpy', file), ('tensorflow', model_dir))]  # fmt: skip
            compare(f'numpy_decode/{case}', *commands, values.rounds, unit, better, **about)
        small = file.replace('.npz', '8.npz')
        convert(model_dir, small, '--int8')
        report_sizes(os.path.join(model_dir, 'best'), file, small, about)
        if values.model_dir:
            report_bleu(values, file, small, name)
    return 0


def side_command(values, side, model):
    names = (*SIZES, 'decoder_layers', 'tokens', 'sentences', 'threads', 'test_src')
    given = [f'--{name}={values[name].value}' for name in names]
    return [sys.executable, os.path.abspath(__file__), f'--side={side}', f'--model={model}', *given]


def run_apart(values, side, model):
    """In a process of its own, so that TensorFlow is not in this one."""
    return run(side_command(values, side, model))


def convert(model_dir, file, *more):
    from tools import ckpt2npz

    stdout, sys.stdout = sys.stdout, sys.stderr  # only results belong on standard output
    try:
        if ckpt2npz.main(['ckpt2npz.py', f'--model_dir={model_dir}', f'--output_file={file}', *more]):
            raise SystemExit(f'{model_dir} could not be converted')
    finally:
        sys.stdout = stdout


def report_sizes(best, file, small, about):
    sizes = [os.path.getsize(path) / 2**20 for path in (file, small)]
    checkpoint = sum(os.path.getsize(os.path.join(best, name)) for name in os.listdir(best)) / 2**20
    cases = ('float32', sizes[0], checkpoint, 'checkpoint'), ('int8', sizes[1], sizes[0], 'float32 file')
    for case, ours, peer, peer_name in cases:
        ratio = peer / ours
        report(
            f'numpy_decode/size/{case}', ratio, (ratio, ratio), ours, peer, 'MiB', **{**about, 'peer_name': peer_name}
        )


def report_bleu(values, file, small, name):
    import sequencing_np
    from sequencing.scores import score_lines
    from sequencing.text import read_lines

    source, reference = (list(read_lines(path)) for path in (values.test_src, values.test_trg))
    scores = []
    for path in (file, small):
        model = sequencing_np.load(path)
        outputs = model.translate(source, decode='greedy')
        scores.append(score_lines(outputs, [reference], model.config.data.trg_lang)[0])
    (peer, signature), (ours, _) = scores
    ratio = ours.score / peer.score if peer.score else 0.0
    report('numpy_decode/bleu/int8', ratio, (ratio, ratio), ours.score, peer.score, 'BLEU', peer_name='float32 file',
           signature=signature, model=name)  # fmt: skip


# What runs in processes of its own: each prints one number. --------------------------------------------------------


def make(values):
    """Writes the model folder; prints the number of its weights."""
    cli.quiet_tensorflow()
    import tensorflow as tf

    from build_model import build_model
    from sequencing.config import (
        Config,
        DataConfig,
        Seq2SeqConfig,
        TransformerDecoderConfig,
        TransformerEncoderConfig,
    )
    from sequencing.model_folder import write_config
    from sequencing.vocab import Vocab

    part = {name: values[name].value for name in ('layers', 'size', 'heads', 'hidden_size')}
    config = Config(
        data=DataConfig(joint_vocab=True),
        model=Seq2SeqConfig(
            embedding_size=values.size,
            share_embeddings=True,
            tie_output=True,
            encoder=TransformerEncoderConfig(**part),
            decoder=TransformerDecoderConfig(**{**part, 'layers': values.decoder_layers or values.layers}),
        ),
    )
    vocab = Vocab([f'w{i}' for i in range(values.vocab - 4)])
    model = build_model(config, vocab, vocab)
    model.output_bias.assign(tf.tensor_scatter_nd_update(model.output_bias, [[vocab.eos_id]], [-1e4]))
    os.makedirs(os.path.join(values.model, 'vocab'))
    vocab.save(os.path.join(values.model, 'vocab'), 'joint')
    write_config(values.model, config)
    tf.train.CheckpointManager(tf.train.Checkpoint(model=model), os.path.join(values.model, 'best'), 1).save()
    return sum(variable.shape.num_elements() for variable in model.trainable_variables)


def seconds(command, text=''):
    import subprocess

    began = time.perf_counter()
    environment = {**os.environ, 'PYTHONPATH': ROOT}
    subprocess.run(
        command, input=text, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True
    )
    return time.perf_counter() - began


def first_line(values, script, model_flag, *more):
    command = [sys.executable, os.path.join(ROOT, script), f'--{model_flag}={values.model}', '--decode=greedy',
               *([] if values.test_src else [f'--max_length={values.tokens}']), *more]  # fmt: skip
    return seconds(command, next(sources(values)) + '\n')


def sources(values):
    """Sentences of the text, or else drawn from the vocabulary."""
    if values.test_src:
        from sequencing.text import read_lines

        yield from read_lines(values.test_src)
        return
    import random

    draw = random.Random(7)
    while True:
        yield ' '.join(f'w{draw.randrange(values.vocab - 4)}' for _ in range(values.tokens - 1))


def rate(values, translator):
    """Sentences/s, one at a time, after two that are left out."""
    times, limit = [], {} if values.test_src else {'max_length': values.tokens}
    for line in itertools.islice(sources(values), values.sentences + 2):
        began = time.perf_counter()
        result = next(translator.stream([line], decode='greedy', **limit))
        times.append(time.perf_counter() - began)
        assert values.test_src or result.outputs[0].length == values.tokens
    return 1.0 / statistics.mean(times[2:])


def greedy_numpy(values):
    import sequencing_np

    return rate(values, sequencing_np.load(values.model))


def greedy_tensorflow(values):
    cli.quiet_tensorflow()
    cli.use_threads(values.threads)
    import sequencing

    return rate(values, sequencing.load(values.model, precision='float32'))


SIDES = {
    'make': make,
    'import_numpy': lambda values: seconds([sys.executable, '-c', 'import sequencing_np']),
    'import_tensorflow': lambda values: seconds([sys.executable, '-c', 'import tensorflow']),
    'first_line_numpy': lambda values: first_line(values, 'nmt_np.py', 'model'),
    'first_line_tensorflow': lambda values: first_line(values, 'nmt_infer.py', 'model_dir', '--precision=float32'),
    'greedy_numpy': greedy_numpy,
    'greedy_tensorflow': greedy_tensorflow,
}


if __name__ == '__main__':
    sys.exit(main(sys.argv))
