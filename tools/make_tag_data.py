"""Writes sentences of the demo's English with the part of speech of each word: train, dev and test, `.words`, `.tags`.

    python tools/make_tag_data.py --folder=runs/tag_data

Line n of `.tags` has a tag for each token of line n of `.words`, in order. Tags are those of Universal Dependencies
(`is` and `are` always AUX). No sentence of dev or test occurs in training, and the same seed gives the same files.
"""

import re
import sys

from absl import flags

from sequencing import cli
from tools import demo_grammar as g
from tools.make_demo_data import make_demo_data, write_corpus

_CLOSED = {
    'DET': 'the a an this these every no many my his our',
    'PRON': 'I he she we they me him us them who whom what there',
    'AUX': 'do does is are cannot',
    'PART': 'not',
    'ADP': 'in on to from with without',
    'SCONJ': 'that whether',
    'CCONJ': 'and but',
    'ADV': 'where why when how very too',
    'NOUN': 'years euros',
    'VERB': 'cost costs',
    'PUNCT': '. , ?',
}


def make_lexicon():
    """The tag of each word of the grammar but `her`, which has two."""
    verbs = [*g.ANY_OBJECT, *g.ON_THINGS, *g.ON_READING, *g.ON_FOODS, *g.ON_PERSONS, *g.WITH_DATIVE, *g.GIVING,
             *g.ALONE, *g.COMING, *g.SAYING, *g.ASKING, g.TRAVEL, g.COME]  # fmt: skip
    nouns = [*g.PERSONS, *g.ANIMALS, *g.THINGS, *g.FOODS, *g.PLACES]
    groups = [
        *((tag, words.split()) for tag, words in _CLOSED.items()),
        ('ADJ', g.ADJECTIVES),
        ('NOUN', [word for noun in nouns for word in (noun.en, noun.en_plural)]),
        ('VERB', [word for verb in verbs for word in (verb.en, verb.en_s)]),
        ('ADP', [verb.particle for verb in verbs if verb.particle]),
        ('PROPN', [*g.NAMES, *g.CITIES, *g.WEEKDAYS]),
        ('ADV', [word for word in (*g.OFTEN, *g.TIMES) if ' ' not in word]),
        ('AUX', g.MODALS),
        ('SCONJ', g.CONJUNCTIONS),
        ('NUM', [g.number_words(number)[0] for number in range(2, 100)]),
    ]
    lexicon = {}
    for tag, words in groups:
        for word in words:
            if lexicon.setdefault(word, tag) != tag:
                raise ValueError(f'{word!r} is {lexicon[word]} and {tag}: a lexicon cannot tell which.')
    return lexicon


def tag(tokens, lexicon):
    """The tags of a sentence's tokens, the first of which has a capital whatever it is."""
    first = tokens[0] if tokens[0] in lexicon else tokens[0][0].lower() + tokens[0][1:]
    tags = ['' if word == 'her' else lexicon[word] for word in [first, *tokens[1:]]]
    for i, known in enumerate(tags):
        if not known:  # `her` belongs to the noun behind it, if there is one
            tags[i] = 'DET' if tags[i + 1] in ('NOUN', 'ADJ') else 'PRON'
    return tags


def write_tag_data(folder, seed=1):
    """Writes `{train,dev,test}.{words,tags}` into `folder`, which is made if it is not there."""
    lexicon, files = make_lexicon(), {}
    for part, pairs in make_demo_data(seed).items():
        sentences = [re.findall(r'[\w-]+|[.,?]', english) for english, _ in pairs]
        files[f'{part}.words'] = [' '.join(tokens) for tokens in sentences]
        files[f'{part}.tags'] = [' '.join(tag(tokens, lexicon)) for tokens in sentences]
    write_corpus(folder, files)


def main(argv=None):
    """The command; returns the exit code."""

    def define(values):
        flags.DEFINE_string('folder', '', 'folder to write to, made if it is not there', flag_values=values)
        flags.DEFINE_integer('seed', 1, 'another seed makes other sentences', flag_values=values)

    def body(values):
        cli.require(values, 'folder')
        write_tag_data(values.folder, values.seed)

    return cli.run(body, define, argv, usage=__doc__)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
