"""Writes a small English-German corpus made up by a grammar: train, dev and test, `.en` and `.de`, as raw text.

    python tools/make_demo_data.py --folder=runs/demo_data

No source and no target of dev or test occurs in training, and the same seed gives the same files.
"""

import os
import random
import sys

from absl import flags

from sequencing import cli
from sequencing.errors import UserError
from sequencing.text import read_lines, write_lines
from tools import demo_grammar as g
from tools.demo_grammar import Clause, english, german, in_place, name, noun_phrase, number_words, sentence

TRAIN_PAIRS, DEV_PAIRS, TEST_PAIRS = 25_000, 500, 500
_SHORTEST, _LONGEST = 5, 16  # words of an English sentence


class Writer:
    """Makes up one sentence pair after another from a seed."""

    def __init__(self, seed):
        self._random = random.Random(seed)

    def pair(self):
        """An (English, German) pair."""
        templates = (
            (self.plain, 32), (self.subordinate, 22), (self.question, 12), (self.state, 9), (self.passing_on, 9),
            (self.number, 7), (self.contrast, 5), (self.existence, 4),
        )  # fmt: skip
        while True:
            english_text, german_text = self.weighted(templates)()
            if _SHORTEST <= len(english_text.split()) <= _LONGEST:
                return english_text, german_text

    # Chance

    def chance(self, probability):
        return self._random.random() < probability

    def one_of(self, things):
        things = list(things)
        return things[int(self._random.random() * len(things))]

    def weighted(self, pairs):
        point = self._random.random() * sum(weight for _, weight in pairs)
        for thing, weight in pairs:
            point -= weight
            if point < 0:
                return thing
        return pairs[-1][0]

    # Phrases

    def noun(self, nouns, adjectives, definite=False):
        """A noun with a determiner; a definite one can be negated with `nicht`, or with `kein` after `a`."""
        plural = self.chance(0.3)
        if plural:
            dets = (('the', 5), ('these', 2), ('my', 1), ('his', 1), ('her', 1), ('our', 1))
            dets += () if definite else (('many', 1.5), (2 + int(self._random.random() * 98), 2), ('no', 0.5))
        else:
            dets = (('the', 6), ('a', 4), ('this', 2), ('my', 1), ('his', 1), ('her', 1), ('our', 1))
            dets += () if definite else (('every', 1), ('no', 0.5))
        adjective = self.one_of(adjectives) if self.chance(0.45) else ''
        return noun_phrase(self.weighted(dets), adjective, self.one_of(nouns), plural)

    def person(self, definite=False):
        return self.noun(g.PERSONS, g.OF_PERSONS, definite)

    def subject(self, definite=False):
        kind = self.weighted((('person', 10), ('animal', 2), ('name', 4), ('names', 1), ('pronoun', 4)))
        if kind == 'pronoun':
            return self.one_of(g.PRONOUNS)
        if kind == 'name':
            return name(self.one_of(g.NAMES))
        if kind == 'names':
            first = self.one_of(g.NAMES)
            return name(first, self.one_of(n for n in g.NAMES if n != first))
        return self.person(definite) if kind == 'person' else self.noun(g.ANIMALS, g.OF_ANIMALS, definite)

    def somebody(self, definite=False):
        """A person as an object."""
        kind = self.weighted((('noun', 6), ('name', 2), ('pronoun', 2)))
        if kind == 'noun':
            return self.person(definite)
        return name(self.one_of(g.NAMES)) if kind == 'name' else self.one_of(g.PRONOUNS)

    def thing(self, definite=False):
        return self.noun(g.THINGS, g.OF_THINGS, definite)

    def place(self):
        """(English, German) of where something happens."""
        if self.chance(0.35):
            city = self.one_of(g.CITIES)
            return f'in {city}', f'in {g.CITIES[city]}'
        det = self.weighted((('the', 6), ('this', 1), ('a', 1), ('our', 1)))
        adjective = self.one_of(g.OF_PLACES) if self.chance(0.3) else ''
        return in_place(noun_phrase(det, adjective, self.one_of(g.PLACES)))

    def company(self):
        """(English, German) of with, without or for whom."""
        en, de, case = self.one_of((('with', 'mit', 'dat'), ('without', 'ohne', 'acc'), ('for', 'für', 'acc')))
        phrase = self.person(definite=True) if self.chance(0.7) else name(self.one_of(g.NAMES))
        return f'{en} {phrase.en_object}', f'{de} {phrase.de[case]}'

    # Clauses

    def clause(self, longer=True):
        """Somebody does something; `longer` allows for times and places."""
        kind = self.weighted((('object', 10), ('dative', 3), ('alone', 4), ('travel', 1.5)))
        negated = self.chance(0.18)
        modal = self.weighted(
            (('', 7), ('can', 1), ('must', 0 if negated else 1), ('may', 0.5), ('should', 1), ('will', 1))
        )
        adverb = self.one_of(g.OFTEN) if not negated and not modal and self.chance(0.15) else ''
        time = self.one_of(g.TIMES) if longer and not negated and not adverb and self.chance(0.3) else ''
        subject, objects, places = self.subject(negated), (), ()
        if kind == 'object':
            verb, phrase = self.verb_and_object(negated)
            objects = (('acc', phrase),)
            if longer and self.chance(0.15):
                places = (self.place() if self.chance(0.6) else self.company(),)
        elif kind == 'dative':
            verb, objects = self.one_of(g.WITH_DATIVE), (('dat', self.somebody(negated)),)
        elif kind == 'alone':
            verb = self.one_of(g.ALONE + g.COMING)
            if verb.en == 'live' or verb not in g.COMING and self.chance(0.7):
                places = (self.place() if verb.en == 'live' or self.chance(0.6) else self.company(),)
        else:
            verb, (en, de) = self.one_of(((g.TRAVEL, ('to', 'nach')), (g.COME, ('from', 'aus'))))
            city = self.one_of(g.CITIES)
            places = ((f'{en} {city}', f'{de} {g.CITIES[city]}'),)
        return Clause(subject, verb, objects, places, modal, negated, adverb, time)

    def verb_and_object(self, definite):
        """A transitive verb and something that fits it."""
        kind = self.weighted((('any', 6), ('thing', 3), ('reading', 1.5), ('food', 2), ('person', 4)))
        if kind == 'any':
            nouns, adjectives = self.one_of(((g.THINGS, g.OF_THINGS), (g.ANIMALS, g.OF_ANIMALS)))
            return self.one_of(g.ANY_OBJECT), self.noun(nouns, adjectives, definite)
        if kind == 'thing':
            return self.one_of(g.ON_THINGS), self.thing(definite)
        if kind == 'reading':
            return self.one_of(g.ON_READING), self.noun(g.READING, ['new', 'old', 'long', 'good'], definite)
        if kind == 'food':
            return self.one_of(g.ON_FOODS), self.noun(g.FOODS, g.OF_FOODS, definite)
        return self.one_of(g.ON_PERSONS), self.somebody(definite)

    # Sentences: each gives an (English, German) pair

    def plain(self):
        clause = self.clause()
        if clause.time and self.chance(0.5):
            time = g.TIMES[clause.time]
            return sentence(english(clause, front_time=True), '.'), sentence(german(clause, front=time), '.')
        return sentence(english(clause), '.'), sentence(german(clause), '.')

    def subordinate(self):
        inner = self.clause(longer=False)
        if self.chance(0.5):
            outer, conjunction = self.clause(longer=False), self.one_of(g.CONJUNCTIONS)
            german_conjunction = g.CONJUNCTIONS[conjunction]
        else:
            asking = self.chance(0.25)
            outer = Clause(self.subject(), self.one_of(g.ASKING if asking else g.SAYING))
            conjunction, german_conjunction = ('whether', 'ob') if asking else ('that', 'dass')
        return (
            sentence(f'{english(outer)} {conjunction} {english(inner)}', '.'),
            sentence(f'{german(outer)}, {german_conjunction} {german(inner, "final")}', '.'),
        )

    def question(self):
        clause = self.clause()._replace(negated=False, adverb='')
        kind = self.weighted((('yes', 5), ('where', 1), ('why', 2), ('when', 2), ('who', 3), ('what', 2)))
        if kind == 'who':  # asks for the subject
            who = g.Phrase('who', 'whom', dict(nom='wer', acc='wen', dat='wem'), '3s')
            clause = clause._replace(subject=who)
            return sentence(english(clause), '?'), sentence(german(clause), '?')
        if kind == 'what':
            clause = Clause(
                self.subject(True), self.one_of(g.ANY_OBJECT), (), clause.places, clause.modal, time=clause.time
            )
        elif kind == 'where':
            clause = clause._replace(places=(), time='', verb=self.one_of(g.ALONE), objects=())
        elif kind == 'when':
            clause = clause._replace(time='')
        front = {'yes': '', 'where': 'wo', 'why': 'warum', 'when': 'wann', 'what': 'was'}[kind]
        return sentence(english(clause, kind), '?'), sentence(german(clause, 'question', front), '?')

    def state(self):
        kind = self.weighted((('person', 3), ('thing', 3), ('place', 2), ('animal', 2)))
        nouns, adjectives = {
            'person': (g.PERSONS, g.OF_PERSONS),
            'thing': (g.THINGS, g.OF_THINGS),
            'place': (g.PLACES, g.OF_PLACES),
            'animal': (g.ANIMALS, g.OF_ANIMALS),
        }[kind]
        subject, adjective = self.noun(nouns, adjectives, True), self.one_of(adjectives)
        plural = subject.person == 'p'
        degree = self.weighted(((('', ''), 4), (('very', 'sehr'), 3), (('not', 'nicht'), 2), (('too', 'zu'), 2)))
        words = lambda *parts: ' '.join(filter(None, parts))
        predicate = g.ADJECTIVES[adjective][0]
        if self.chance(0.25):
            return (
                sentence(words('are' if plural else 'is', subject.en, degree[0], adjective), '?'),
                sentence(words('sind' if plural else 'ist', subject.de['nom'], degree[1], predicate), '?'),
            )
        return (
            sentence(words(subject.en, 'are' if plural else 'is', degree[0], adjective), '.'),
            sentence(words(subject.de['nom'], 'sind' if plural else 'ist', degree[1], predicate), '.'),
        )

    def passing_on(self):
        """Somebody gives somebody something: dative before accusative, but a pronoun first."""
        negated = self.chance(0.15)
        modal = self.weighted((('', 4), ('can', 1), ('must', 0 if negated else 1), ('will', 1), ('should', 1)))
        objects = (('dat', self.somebody(True)), ('acc', self.thing(negated)))
        time = self.one_of(g.TIMES) if not negated and self.chance(0.2) else ''
        clause = Clause(self.subject(negated), self.one_of(g.GIVING), objects, (), modal, negated, time=time)
        return sentence(english(clause), '.'), sentence(german(clause), '.')

    def number(self):
        count = 2 + int(self._random.random() * 98)
        en, de = number_words(count)
        kind = self.weighted((('age', 2), ('price', 2), ('count', 2)))
        if kind == 'age':
            subject = name(self.one_of(g.NAMES)) if self.chance(0.5) else self.person(True)
            are, sind = ('are', 'sind') if subject.person == 'p' else ('is', 'ist')
            return (
                sentence(f'{subject.en} {are} {en} years old', '.'),
                sentence(f'{subject.de["nom"]} {sind} {de} Jahre alt', '.'),
            )
        if kind == 'price':
            subject = self.noun(g.THINGS + g.FOODS, ['big', 'small', 'old', 'new', 'good', 'red'], True)
            cost, kosten = ('cost', 'kosten') if subject.person == 'p' else ('costs', 'kostet')
            return (
                sentence(f'{subject.en} {cost} {en} euros', '.'),
                sentence(f'{subject.de["nom"]} {kosten} {de} Euro', '.'),
            )
        noun, subject, verb = self.one_of(g.THINGS + g.FOODS), self.subject(True), self.one_of(g.ANY_OBJECT)
        clause = Clause(subject, verb, places=(self.place(),) if self.chance(0.4) else ())
        return (
            sentence(english(clause, f'how many {noun.en_plural}'), '?'),
            sentence(german(clause, 'question', f'wie viele {noun.de_plural}'), '?'),
        )

    def existence(self):
        """`There is`: the place comes first in German."""
        nouns, adjectives = self.one_of(((g.ANIMALS, g.OF_ANIMALS), (g.THINGS, g.OF_THINGS), (g.PERSONS, g.OF_PERSONS)))
        adjective = self.one_of(adjectives) if self.chance(0.6) else ''
        plural = self.chance(0.5)
        det = self.one_of(['many', 'no', 2 + int(self._random.random() * 98)]) if plural else self.one_of(['a', 'no'])
        phrase = noun_phrase(det, adjective, self.one_of(nouns), plural)
        (en, de), are, sind = self.place(), 'are' if plural else 'is', 'sind' if plural else 'ist'
        return sentence(f'there {are} {phrase.en} {en}', '.'), sentence(f'{de} {sind} {phrase.de["nom"]}', '.')

    def contrast(self):
        first, second = self.clause(longer=False), self.clause(longer=False)
        return (
            sentence(f'{english(first)}, but {english(second)}', '.'),
            sentence(f'{german(first)}, aber {german(second)}', '.'),
        )


def make_demo_data(seed=1, train=TRAIN_PAIRS, dev=DEV_PAIRS, test=TEST_PAIRS):
    """The corpus.

    Args:
      seed: int; the same gives the same corpus.
      train, dev, test: pairs of each.
    Returns:
      A dict of 'train', 'dev' and 'test' to lists of (English, German). No English and no German sentence of one of
      them occurs in another, and none occurs twice anywhere.
    """
    writer, seen_english, seen_german, pairs = Writer(seed), set(), set(), []
    while len(pairs) < train + dev + test:
        en, de = writer.pair()
        if en not in seen_english and de not in seen_german:
            seen_english.add(en)
            seen_german.add(de)
            pairs.append((en, de))
    return {'dev': pairs[:dev], 'test': pairs[dev : dev + test], 'train': pairs[dev + test :]}


def write_demo_data(folder, seed=1):
    """Writes `{train,dev,test}.{en,de}` into `folder`, which is made if it is not there."""
    corpus = make_demo_data(seed)
    sides = ((1, 'de'), (0, 'en'))
    write_corpus(folder, {  # `test.en` comes last: where it is, all are
        f'{part}.{language}': [pair[side] for pair in corpus[part]]
        for part in ('train', 'dev', 'test') for side, language in sides
    })  # fmt: skip


def write_corpus(folder, files):
    """Writes a dict of file name to lines into `folder`, which is made if it is not there.

    Raises:
      UserError: a file of that name is there and holds something else.
    """
    os.makedirs(folder, exist_ok=True)
    paths = {os.path.join(folder, file): lines for file, lines in files.items()}
    for path, lines in paths.items():
        if os.path.exists(path) and list(read_lines(path, '--folder')) != lines:
            raise UserError(f'--folder {folder}: {path} is there already and holds other text; name another folder.')
    for path, lines in paths.items():
        write_lines(path, lines)


def main(argv=None):
    """The command; returns the exit code."""

    def define(values):
        flags.DEFINE_string('folder', '', 'folder to write to, made if it is not there', flag_values=values)
        flags.DEFINE_integer('seed', 1, 'another seed makes other sentences', flag_values=values)

    def body(values):
        cli.require(values, 'folder')
        write_demo_data(values.folder, values.seed)

    return cli.run(body, define, argv, usage=__doc__)


if __name__ == '__main__':
    sys.exit(main())
