"""Translates text with a model that tools/ckpt2npz.py has put into one file, with NumPy and without TensorFlow.

    python nmt_np.py --model demo.npz --test_src test.en --output_file test.out

N lines in, N lines out, in order, as nmt_infer.py does it.
"""

import sys

from nmt_infer import check_format, open_source, read_references, write_translations
from sequencing import cli

USAGE = """
Translates text with NumPy alone: N lines in, N lines out, in order.

  python tools/ckpt2npz.py --model_dir runs/demo --output_file demo.npz
  python nmt_np.py --model demo.npz --test_src test.en --output_file test.out
  echo 'The clever bird sees the old hats.' | python nmt_np.py --model demo.npz
"""

DECODE_FLAGS = ('decode', 'beam_size', 'length_penalty', 'nbest', 'max_length', 'tau', 'nlen', 'ntr', 'iw_k', 'seed',
                'batch_tokens')  # fmt: skip


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('model', '', 'file that tools/ckpt2npz.py wrote', **own)
    absl.DEFINE_string('test_src', '-', 'text to translate, a line a sentence, .gz too; - is standard input', **own)
    absl.DEFINE_string('output_file', '-', 'where translations go; - is standard output', **own)
    absl.DEFINE_multi_string('test_trg', [], 'reference; BLEU and chrF go to standard error; repeatable', **own)
    absl.DEFINE_string('decode', None, 'decoding mode: greedy, beam, argmax, iw; by default that of the model', **own)
    absl.DEFINE_integer('beam_size', None, 'hypotheses that beam search walks', **own)
    absl.DEFINE_float('length_penalty', None, 'exponent of the length penalty ((5 + length) / 6)', **own)
    absl.DEFINE_integer('nbest', None, 'outputs a sentence (with --format jsonl)', **own)
    absl.DEFINE_integer('max_length', None, 'longest output in tokens; by default decode.length_ratio x source + 20',
                        **own)  # fmt: skip
    absl.DEFINE_float('tau', None, 'temperature of the latent noise (flow models)', **own)
    absl.DEFINE_integer('nlen', None, 'lengths to try (flow models)', **own)
    absl.DEFINE_integer('ntr', None, 'samples a length (flow models)', **own)
    absl.DEFINE_integer('iw_k', None, 'posterior samples of importance-weighted decoding (flow models)', **own)
    absl.DEFINE_integer('batch_tokens', None, 'source tokens decoded together, padding included', **own)
    absl.DEFINE_enum('format', 'text', ['text', 'jsonl'], 'a translation a line, or a JSON object a line', **own)
    absl.DEFINE_enum('array_module', 'numpy', ['numpy', 'cupy'], 'what computes; cupy needs a GPU and CuPy', **own)
    absl.DEFINE_integer('seed', None, 'seed of the latent noise', **own)


def main(argv=None):
    return cli.run(infer, define_flags, argv, USAGE)


def infer(flags):
    cli.require(flags, 'model')
    check_format(flags)
    lines = open_source(flags.test_src)
    references = read_references(flags)
    import sequencing_np

    translator = sequencing_np.load(flags.model, flags.array_module)
    options = {name: flags[name].value for name in DECODE_FLAGS}
    return write_translations(translator, lines, references, flags, options)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
