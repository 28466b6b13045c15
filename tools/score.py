"""Scores translations: BLEU and chrF against references, and log-probabilities under a model."""

import json
import os
import sys
from typing import Any, NamedTuple

from sequencing import cli
from sequencing.errors import UserError
from sequencing.text import read_lines

USAGE = """
Scores given translations.

  python tools/score.py --hypothesis test.out --test_trg test.de --trg_lang de
      BLEU and chrF with their signatures
  python tools/score.py --hypothesis test.out --test_src test.en --model_dir runs/demo
      one log p(hypothesis | source) a line, in nats, EOS included
  python tools/score.py --hypothesis out.jsonl --test_src x.en --model_dir runs/flow --decode sample --tau 0.5 --nbest 4
      those of four outputs a line, each with the latent that it came from

A hypothesis file that ends in .jsonl is read as nmt_infer.py --format jsonl wrote it: its pieces are scored as they
are, where plain text is cut into pieces anew. With the --decode, --tau, --iw_k, --rescore_model and --seed of
nmt_infer.py, the scores are those that it reported.
"""


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('hypothesis', '', 'translations, a line each', **own)
    absl.DEFINE_multi_string('test_trg', [], 'reference; repeatable', **own)
    absl.DEFINE_string('trg_lang', '', 'language code of the target, for BLEU', **own)
    absl.DEFINE_string('test_src', '', 'source, for --model_dir', **own)
    absl.DEFINE_string('model_dir', '', 'model folder whose log-probabilities are wanted', **own)
    absl.DEFINE_string('checkpoint', 'best', "'best', 'last' or the path of a checkpoint", **own)
    absl.DEFINE_integer('nbest', 1, 'outputs a line to score, of those that nmt_infer.py --nbest wrote; their scores '
                        'stand on one line', lower_bound=1, **own)  # fmt: skip
    absl.DEFINE_string('decode', None, 'mode that wrote the hypotheses: iw for its estimate of log p(y | x); of other '
                       'flow decoding log p(y | z, x)', **own)  # fmt: skip
    absl.DEFINE_float('tau', None, 'temperature of the latent noise that they were decoded with', **own)
    absl.DEFINE_integer('iw_k', None, 'posterior samples of iw', **own)
    absl.DEFINE_string('rescore_model', None, 'folder of the model that scored the candidates of npd or mbr', **own)
    absl.DEFINE_integer('seed', None, 'seed of the latent noise and of iw', **own)


def main(argv=None):
    return cli.run(score, define_flags, argv, USAGE)


def score(flags):
    cli.require(flags, 'hypothesis')
    if not flags.test_trg and not flags.model_dir:
        raise UserError('nothing to do: give --test_trg for BLEU, or --model_dir and --test_src for log-probabilities.')
    if flags.nbest > 1 and not is_json(flags.hypothesis):
        raise UserError(f'--nbest {flags.nbest} needs JSON lines, as nmt_infer.py --format jsonl writes them to a file '
                        f'that ends in .jsonl; {flags.hypothesis} has one output a line.')  # fmt: skip
    hypotheses = read_hypotheses(flags.hypothesis, flags.nbest)
    language = flags.trg_lang
    if flags.model_dir:
        cli.require(flags, 'test_src')
        source = same_length(flags.test_src, hypotheses, flags.hypothesis)
        cli.quiet_tensorflow()
        from sequencing.translator import load

        model = load(flags.model_dir, flags.checkpoint)
        language = language or model.config.data.trg_lang
        options = {name: flags[name].value for name in ('decode', 'tau', 'iw_k', 'rescore_model', 'seed')}
        scores = iter(model.score(*columns(source, hypotheses), **options))
        for outputs in hypotheses:
            print(*(f'{next(scores):.6f}' for _ in outputs))
    if flags.test_trg:
        from sequencing.scores import format_scores, score_lines

        references = [same_length(path, hypotheses, flags.hypothesis) for path in flags.test_trg]
        scores = format_scores(score_lines([outputs[0].text for outputs in hypotheses], references, language))
        print(scores, file=sys.stderr if flags.model_dir else sys.stdout)
    return 0


class Hypothesis(NamedTuple):
    """One output."""

    text: str
    target: Any  # what a model scores: the text again, or the pieces that it was made of
    span: int = 0  # the length that a flow model decoded
    sample: int = None  # which of its latents this came from


def read_hypotheses(path, nbest=1):
    """Of each line a list of `Hypothesis`, the best first, at most `nbest`."""
    lines = list(read_lines(path, '--hypothesis'))
    if not is_json(path):
        return [[Hypothesis(line, line)] for line in lines]
    hypotheses = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            outputs = (values.get('nbest') or [values])[:nbest]
            hypotheses.append([_hypothesis(**each) for each in outputs])
        except (json.JSONDecodeError, AttributeError, TypeError, ValueError):
            raise UserError(f'{path}, line {number}: not an object with translation and tokens, as nmt_infer.py '
                            '--format jsonl writes them.') from None  # fmt: skip
    return hypotheses


def is_json(path):
    return os.path.splitext(path)[1] == '.jsonl'


def _hypothesis(translation, tokens, span=0, sample=None, **_):
    numbers, texts = [span, 0 if sample is None else sample], [translation, *tokens]
    right = all(isinstance(number, int) for number in numbers) and all(isinstance(text, str) for text in texts)
    if not right or not isinstance(tokens, list):
        raise ValueError
    return Hypothesis(translation, tokens, span, sample)


def columns(source, hypotheses):
    """Sources, targets, spans and samples (None where they are not told) of all outputs, as `Translator.score` takes
    them."""
    every = [(line, output) for line, outputs in zip(source, hypotheses) for output in outputs]
    samples = [output.sample for _, output in every]
    targets, spans = [output.target for _, output in every], [output.span for _, output in every]
    return [line for line, _ in every], targets, spans, None if None in samples else samples


def same_length(path, hypotheses, name):
    lines = list(read_lines(path))
    if len(lines) != len(hypotheses):
        raise UserError(f'{path} has {len(lines)} lines, and {name} has {len(hypotheses)}: they have to match.')
    return lines


if __name__ == '__main__':
    sys.exit(main(sys.argv))
