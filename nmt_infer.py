"""Translates text with a trained model.

    python nmt_infer.py --model_dir runs/demo --test_src test.en --output_file test.out

N lines in, N lines out, in order. Reads standard input and writes standard output where a file is `-`.
"""

import contextlib
import json
import math
import os
import sys

from sequencing import cli
from sequencing.config_files import load_config
from sequencing.decode_options import unread
from sequencing.errors import UserError
from sequencing.text import encode_line, output_file, read_lines

USAGE = """
Translates text with a trained model: N lines in, N lines out, in order.

  python nmt_infer.py --model_dir runs/demo --test_src test.en --output_file test.out
  echo 'The clever bird sees the old hats.' | python nmt_infer.py --model_dir runs/demo
  python nmt_infer.py --model_dir runs/demo --test_src test.en --test_trg test.de --format jsonl --nbest 5
  python nmt_infer.py --model_dir runs/rnn,runs/transformer --test_src test.en --prefix_file test.begun
"""

DECODE_FLAGS = ('decode', 'beam_size', 'length_penalty', 'nbest', 'max_length', 'temperature', 'top_k', 'top_p', 'tau',
                'nlen', 'ntr', 'iw_k', 'rescore_model', 'utility', 'seed', 'attention', 'batch_tokens')  # fmt: skip


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('model_dir', '', 'model folder; several, parted by commas, decide together', **own)
    absl.DEFINE_string('config', '', 'name of a configuration whose model_dir is meant, in place of --model_dir', **own)
    absl.DEFINE_string('config_file', '', 'file of --config', **own)
    absl.DEFINE_string('test_src', '-', 'text to translate, a line a sentence, .gz too; - is standard input', **own)
    absl.DEFINE_string('output_file', '-', 'where translations go; - is standard output', **own)
    absl.DEFINE_multi_string('test_trg', [], 'reference; BLEU and chrF go to standard error; repeatable', **own)
    absl.DEFINE_string('checkpoint', 'best', "'best', 'last' or the path of a checkpoint", **own)
    absl.DEFINE_string('decode', None, 'decoding mode: greedy, beam, sample, ...; by default that of the model', **own)
    absl.DEFINE_integer('beam_size', None, 'hypotheses that beam search walks', **own)
    absl.DEFINE_float('length_penalty', None, 'exponent of the length penalty ((5 + length) / 6)', **own)
    absl.DEFINE_integer('nbest', None, 'outputs a sentence (with --format jsonl)', **own)
    absl.DEFINE_integer('max_length', None, 'longest output in tokens; by default decode.length_ratio x source + 20',
                        **own)  # fmt: skip
    absl.DEFINE_float('temperature', None, 'sampling temperature of tokens', **own)
    absl.DEFINE_integer('top_k', None, 'sample among this many likeliest tokens', **own)
    absl.DEFINE_float('top_p', None, 'sample among the fewest tokens with this much probability', **own)
    absl.DEFINE_string('prefix_file', None, 'what translations begin with, a line each, empty for nothing', **own)
    absl.DEFINE_string('shortlist', None, 'pairs of source and target pieces: only these are written', **own)
    absl.DEFINE_integer('shortlist_best', 100, 'target pieces a source piece allows', lower_bound=1, **own)
    absl.DEFINE_integer('shortlist_frequent', 100, 'frequent target pieces always allowed', lower_bound=0, **own)
    absl.DEFINE_float('tau', None, 'temperature of the latent noise (flow models)', **own)
    absl.DEFINE_integer('nlen', None, 'lengths to try (flow models)', **own)
    absl.DEFINE_integer('ntr', None, 'samples a length (flow models), or in all (mbr of other models; 32 by default)',
                        **own)  # fmt: skip
    absl.DEFINE_integer('iw_k', None, 'posterior samples of importance-weighted decoding (flow models)', **own)
    absl.DEFINE_string('rescore_model', None, 'folder of an autoregressive model: it ranks the candidates of npd, and '
                       'scores the one that mbr chooses', **own)  # fmt: skip
    absl.DEFINE_string('utility', None, 'agreement that mbr ranks by: chrf (default) or bleu, of sentences', **own)
    absl.DEFINE_bool('attention', None, 'add attention weights (with --format jsonl)', **own)
    absl.DEFINE_integer('batch_tokens', None, 'source tokens decoded together, padding included', **own)
    absl.DEFINE_enum('format', 'text', ['text', 'jsonl'], 'a translation a line, or a JSON object a line', **own)
    absl.DEFINE_enum('precision', None, ['float32', 'mixed_bfloat16', 'mixed_float16'], 'of the arithmetic', **own)
    absl.DEFINE_enum('strategy', 'auto', ['auto', 'one', 'mirrored'], "'mirrored': a copy of the model on every GPU; "
                     "'auto': the same where there are several", **own)  # fmt: skip
    absl.DEFINE_integer('threads', None, 'CPU threads; 0 for all cores', lower_bound=0, **own)
    absl.DEFINE_integer('seed', None, 'seed of sampling', **own)


def main(argv=None):
    return cli.run(infer, define_flags, argv, USAGE)


def infer(flags):
    model_dir = flags.model_dir
    if not model_dir and flags.config:
        model_dir = load_config(flags.config, flags.config_file)[0].model_dir
    if not model_dir:
        raise UserError('--model_dir is required: the folder of a trained model.')
    check_format(flags)
    lines = open_source(flags.test_src)
    references = read_references(flags)
    prefixes = read_prefixes(flags)
    translator = load_translator(model_dir, flags)
    options = {name: flags[name].value for name in DECODE_FLAGS}
    options |= {'prefixes': prefixes, 'shortlist': read_shortlist(flags, translator)}
    return write_translations(translator, lines, references, flags, options)


def check_format(flags):
    """Refuses what a line of text has no room for."""
    several = (flags.nbest or 1) > 1
    if flags.format == 'text' and (several or ('attention' in flags and flags.attention)):
        name = '--nbest' if several else '--attention'
        raise UserError(f'{name} needs --format jsonl: a line of text is one translation and nothing else.')


def write_translations(translator, lines, references, flags, options):
    """Translates and writes line by line, tells what was cut or replaced, and scores; nmt_np.py does the same."""
    outputs, few_lengths = [], 0
    asked = {name: value for name, value in options.items() if name not in ('prefixes', 'shortlist')}
    for message in unread(translator.model, translator.config, **asked):
        cli.note(message)
    with open_output(flags.output_file) as file:
        for number, result in enumerate(translator.stream(lines, **options), start=1):
            tell_what_was_cut(result, number, flags.test_src)
            few_lengths += result.candidates_missing > 0
            file.write(encode_line(as_json(result, options) if flags.format == 'jsonl' else best(result)))
            if lines.waits:
                file.flush()
            if references:
                outputs.append(best(result))
    if lines.replaced:
        cli.note(f'{flags.test_src}: {lines.replaced} lines held bytes that are not UTF-8, or NUL; each such byte was '
                 'read as U+FFFD.')  # fmt: skip
    if few_lengths:
        reach = translator.config.model.length.reach
        cli.note(f'{flags.test_src}: {few_lengths} lines have fewer lengths than --nlen asks for; the length predictor '
                 f'tells lengths up to {reach} tokens from that of the source.')  # fmt: skip
    if references:
        print_scores(outputs, references, flags.test_trg, translator.config.data.trg_lang)
    return 0


def load_translator(model_dir, flags):
    cli.quiet_tensorflow()  # here and not above: a mistake in the flags is told without waiting for TensorFlow
    import tensorflow as tf

    from sequencing.translator import load, load_on

    for gpu in tf.config.list_physical_devices('GPU'):
        tf.config.experimental.set_memory_growth(gpu, True)
    cli.use_threads(flags.threads)
    several = len(tf.config.list_physical_devices('GPU')) > 1
    if flags.strategy == 'mirrored' or (flags.strategy == 'auto' and several):
        from sequencing.distribution import all_devices

        return load_on(all_devices(), model_dir, flags.checkpoint, flags.precision)
    return load(model_dir, flags.checkpoint, flags.precision)


def read_prefixes(flags):
    """The lines of --prefix_file, or None; as many as the source has, where that can be told beforehand."""
    if not flags.prefix_file:
        return None
    prefixes = list(read_lines(flags.prefix_file, '--prefix_file'))
    if os.path.isfile(flags.test_src):
        count = sum(1 for _ in read_lines(flags.test_src, '--test_src'))
        if count != len(prefixes):
            raise UserError(f'--prefix_file {flags.prefix_file} has {len(prefixes)} lines, and --test_src '
                            f'{flags.test_src} has {count}: give a prefix a line, an empty one for none.')  # fmt: skip
    return prefixes


def read_references(flags):
    """The lines of each --test_trg, as many as the source has, where that can be told beforehand."""
    references = [list(read_lines(path, 'reference')) for path in flags.test_trg]
    if references and os.path.isfile(flags.test_src):
        check_references(references, flags.test_trg, sum(1 for _ in read_lines(flags.test_src, '--test_src')))
    return references


def check_references(references, paths, count):
    for path, reference in zip(paths, references):
        if len(reference) != count:
            raise UserError(f'--test_trg {path} has {len(reference)} lines, but {count} are to be translated.')


def read_shortlist(flags, translator):
    if not flags.shortlist:
        return None
    from sequencing.shortlist import Shortlist

    vocabs = translator.src_vocab, translator.trg_vocab
    shortlist = Shortlist.from_file(flags.shortlist, *vocabs, flags.shortlist_best, flags.shortlist_frequent)
    if shortlist.unknown:
        cli.note(f'{flags.shortlist}: {shortlist.unknown} lines have pieces that the model does not know; left out.')
    return shortlist


def open_source(path):
    """The lines to translate; `waits` says whether they may come with pauses."""
    if path == '-':
        # Unbuffered: a thread waits in this read, and one that held a buffer's lock could not be left at the end.
        lines = read_lines(open(0, 'rb', buffering=0, closefd=False), 'standard input')
    else:
        lines = read_lines(path, '--test_src')
    lines.waits = path == '-'
    return lines


@contextlib.contextmanager
def open_output(path):
    """A binary file: standard output, or a file that appears only when it is complete."""
    if path == '-':
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # a device or a named pipe
        with open(path, 'wb') as file:
            yield file
        return
    folder = os.path.dirname(path) or '.'
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UserError(f'--output_file {path}: cannot be written; give the name of a file in a folder that exists.')
    with output_file(path) as file:
        yield file


def best(result):
    return result.outputs[0].translation


def as_json(result, options):
    """One JSON object: the best output, with `nbest` the list of all, with `attention` the weights."""
    values = {**output_values(result.outputs[0]), 'source_truncated': result.source_truncated}
    if result.candidates is not None:
        values['candidates'] = result.candidates
    if (options['nbest'] or 1) > 1:
        values['nbest'] = [output_values(output) for output in result.outputs]
    if options.get('attention'):
        attention = result.outputs[0].attention
        values['source_tokens'] = result.source_tokens
        values['attention'] = [] if attention is None else [[round(float(w), 6) for w in row] for row in attention]
    return json.dumps(values, ensure_ascii=False)


def output_values(output):
    values = {
        'translation': output.translation,
        'tokens': output.tokens,
        'length': output.length,
        'score': output.score if math.isfinite(output.score) else None,
        'rank_score': output.rank_score if math.isfinite(output.rank_score) else None,
        'output_truncated': output.output_truncated,
    }
    if output.span is not None:  # of a flow model
        values.update(length_log_prob=output.length_log_prob, span=output.span, sample=output.sample)
    return values


def tell_what_was_cut(result, number, path):
    if result.source_truncated:
        cli.note(f'{path}, line {number}: longer than the model reads; only its beginning was translated.')
    if result.rescoring_truncated:
        cli.note(f'{path}, line {number}: longer than the model of --rescore_model reads; its candidates were scored '
                 'against the beginning only.')  # fmt: skip
    if result.prefix_truncated:
        cli.note(f'{path}, line {number}: its prefix is longer than --max_length; only its beginning was written.')
    elif result.outputs[0].output_truncated:
        cli.note(f'{path}, line {number}: the translation reached the length limit and was cut; see --max_length.')


def print_scores(outputs, references, paths, language):
    from sequencing.scores import format_scores, score_lines

    check_references(references, paths, len(outputs))
    cli.note(format_scores(score_lines(outputs, references, language)))


if __name__ == '__main__':
    sys.exit(main(sys.argv))
