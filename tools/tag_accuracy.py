"""Tells how many tokens got the right tag.

    python nmt_infer.py --model_dir runs/word2pos --test_src runs/tag_data/test.words --output_file test.out
    python tools/tag_accuracy.py --hypothesis test.out --reference runs/tag_data/test.tags

A tag counts for the token in its place; a token without a tag is wrong, and so is a tag without a token.
"""

import sys

from absl import flags

from sequencing import cli
from sequencing.text import read_parallel


def count(pairs):
    """Counts over sentences.

    Args:
      pairs: (tags, reference tags) of sentences, texts.
    Returns:
      right, places, sentences all right, sentences with another number of tags, sentences; `places` are those that
      have a tag on either side.
    """
    right = places = perfect = uneven = sentences = 0
    for line, reference in pairs:
        tags, wanted = line.split(), reference.split()
        right += sum(a == b for a, b in zip(tags, wanted))
        places += max(len(tags), len(wanted))
        perfect += tags == wanted
        uneven += len(tags) != len(wanted)
        sentences += 1
    return right, places, perfect, uneven, sentences


def main(argv=None):
    """The command; returns the exit code."""

    def define(values):
        flags.DEFINE_string('hypothesis', '', 'tags, a sentence a line', flag_values=values)
        flags.DEFINE_string('reference', '', 'right tags', flag_values=values)

    def body(values):
        cli.require(values, 'hypothesis', 'reference')
        lines = read_parallel([values.hypothesis, values.reference], 'tags')
        right, places, perfect, uneven, sentences = count(lines)
        print(f'accuracy = {100 * right / max(places, 1):.2f} ({right:,} of {places:,} tags; {perfect:,} of '
              f'{sentences:,} sentences all right, {uneven:,} with another number of tags)')  # fmt: skip

    return cli.run(body, define, argv, usage=__doc__)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
