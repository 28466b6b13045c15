"""Scores translations: BLEU and chrF against references, and log-probabilities under a model."""

import json
import os
import sys

from sequencing import cli
from sequencing.errors import UserError
from sequencing.text import read_lines

USAGE = """
Scores given translations.

  python tools/score.py --hypothesis test.out --test_trg test.de --trg_lang de
      BLEU and chrF with their signatures
  python tools/score.py --hypothesis test.out --test_src test.en --model_dir runs/demo
      one log p(hypothesis | source) a line, in nats, EOS included

A hypothesis file that ends in .jsonl is read as nmt_infer.py --format jsonl wrote it: its pieces are scored as they
are, where plain text is cut into pieces anew. Of a flow model, argmax without noise and iw (with the same --iw_k and
--seed) give the scores that decoding reported; those of noisy latents are not kept anywhere and cannot be given again.
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
    absl.DEFINE_string('decode', None, 'mode that a flow model decoded with: iw for its estimate of log p(y | x); else '
                       'log p(y | z, x) of the latent without noise', **own)  # fmt: skip
    absl.DEFINE_integer('iw_k', None, 'posterior samples of iw', **own)
    absl.DEFINE_integer('seed', None, 'seed of iw', **own)


def main(argv=None):
    return cli.run(score, define_flags, argv, USAGE)


def score(flags):
    cli.require(flags, 'hypothesis')
    if not flags.test_trg and not flags.model_dir:
        raise UserError('nothing to do: give --test_trg for BLEU, or --model_dir and --test_src for log-probabilities.')
    hypotheses = read_hypotheses(flags.hypothesis)
    language = flags.trg_lang
    if flags.model_dir:
        cli.require(flags, 'test_src')
        source = same_length(flags.test_src, hypotheses, flags.hypothesis)
        cli.quiet_tensorflow()
        from sequencing.translator import load

        model = load(flags.model_dir, flags.checkpoint)
        language = language or model.config.data.trg_lang
        given = [tokens for _, tokens, _ in hypotheses], [span for _, _, span in hypotheses]
        options = {name: flags[name].value for name in ('decode', 'iw_k', 'seed')}
        for value in model.score(source, *given, **options):
            print(f'{value:.6f}')
    if flags.test_trg:
        from sequencing.scores import format_scores, score_lines

        references = [same_length(path, hypotheses, flags.hypothesis) for path in flags.test_trg]
        scores = format_scores(score_lines([text for text, _, _ in hypotheses], references, language))
        print(scores, file=sys.stderr if flags.model_dir else sys.stdout)
    return 0


def read_hypotheses(path):
    """Of each line its text, what a model scores (the text again, or the pieces that it was made of), and the length
    that a flow model decoded, or 0."""
    lines = list(read_lines(path, '--hypothesis'))
    if os.path.splitext(path)[1] != '.jsonl':
        return [(line, line, 0) for line in lines]
    hypotheses = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            hypotheses.append((values['translation'], values['tokens'], values.get('span', 0)))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(f'{path}, line {number}: not an object with translation and tokens.') from None
    return hypotheses


def same_length(path, hypotheses, name):
    lines = list(read_lines(path))
    if len(lines) != len(hypotheses):
        raise UserError(f'{path} has {len(lines)} lines, and {name} has {len(hypotheses)}: they have to match.')
    return lines


if __name__ == '__main__':
    sys.exit(main(sys.argv))
