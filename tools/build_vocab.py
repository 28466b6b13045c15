"""Makes a vocabulary from text: a SentencePiece model, or a list of words or characters.

    python tools/build_vocab.py --input=train.en.gz,train.de.gz --output=joint.model --kind=unigram --size=8000
    python tools/build_vocab.py --input=train.en --output=words.tokens --kind=words --size=30000

A config then names the file: `VocabConfig('sentencepiece', file='joint.model')` or
`VocabConfig('list', file='words.tokens')`, with `delimiter=''` for characters.
"""

import os
import sys

from absl import flags

from sequencing import cli
from sequencing.text import read_lines
from sequencing.vocab import VocabMaker


def main(argv=None):
    """The command; returns the exit code."""
    return cli.run(build, define, argv, usage=__doc__)


def define(values):
    flags.DEFINE_list('input', [], 'text files, parted by commas; .gz is read as it is', flag_values=values)
    flags.DEFINE_string('output', '', 'file to write', flag_values=values)
    flags.DEFINE_enum(
        'kind', 'unigram', ['unigram', 'bpe', 'words', 'characters'], 'kind of tokens', flag_values=values
    )
    flags.DEFINE_integer('size', 8000, 'tokens, four special ones included', lower_bound=5, flag_values=values)


def build(values):
    cli.require(values, 'input', 'output')
    maker = VocabMaker(values.kind, values.size, ', '.join(values.input))
    for path in values.input:
        for line in read_lines(path, 'text (--input)'):
            maker.add(line)
    vocab = maker.make()
    os.makedirs(os.path.dirname(values.output) or '.', exist_ok=True)
    vocab.save_as(values.output)
    cli.note(f'{values.output}: {vocab.size} tokens')


if __name__ == '__main__':
    sys.exit(main())
