"""The demo corpus: distinct, repeatable, and correct German, checked against tables of its own."""

import functools
import os
import re
import tempfile
import unittest
from unittest import mock

from sequencing.errors import UserError
from sequencing.text import read_lines, write_lines
from tests.support import scratch_folder, seeds
from tools import demo_grammar as g
from tools import make_demo_data as demo
from tools.demo_grammar import Clause, english, german, name, noun_phrase, number_words, sentence

# Written out by hand, apart from the grammar: gender and plural as a dictionary gives them.
MASCULINE = """Mann Junge Lehrer Arzt Student Nachbar Freund Bruder Vater Sohn Gast Hund Vogel Brief Ball Schlüssel
Mantel Hut Schuh Tisch Stuhl Stein Apfel Kuchen Garten Wald Park Laden""".split()
FEMININE = """Frau Schwester Mutter Tochter Königin Katze Kuh Maus Ente Zeitung Tasche Tasse Flasche Lampe Uhr Blume
Kartoffel Tomate Birne Suppe Wurst Schule Küche Kirche""".split()
NEUTER = """Kind Mädchen Pferd Schwein Buch Bild Auto Fahrrad Kleid Hemd Messer Ei Haus Zimmer Dorf Hotel Büro
Schloss""".split()
PLURALS = """Männer Frauen Kinder Jungen Mädchen Lehrer Ärzte Studenten Nachbarn Freunde Schwestern Brüder Mütter Väter
Töchter Söhne Königinnen Gäste Hunde Katzen Pferde Vögel Kühe Mäuse Enten Schweine Bücher Briefe Zeitungen Bilder Autos
Fahrräder Bälle Schlüssel Mäntel Kleider Hemden Hüte Schuhe Taschen Tassen Flaschen Messer Tische Stühle Lampen Uhren
Blumen Steine Äpfel Eier Kuchen Kartoffeln Tomaten Birnen Suppen Würste Häuser Gärten Schulen Küchen Zimmer Dörfer
Wälder Parks Läden Kirchen Hotels Büros Schlösser""".split()
WEAK = ('Junge', 'Student', 'Nachbar')
ADJECTIVE_STEMS = """groß klein alt neu schön rot blau grün schwarz weiß billig teur schwer gut lang stark jung müd
freundlich glücklich traurig hungrig reich berühmt leer warm kalt klug""".split()
# (determiner, ending of the adjective) to the cases, genders and numbers it can stand for: N, A, D with m, f, n, p.
DEFINITE = {'der': 'Nm Df', 'die': 'Nf Af Np Ap', 'das': 'Nn An', 'den': 'Am Dp', 'dem': 'Dm Dn'}
DIES = {'dieser': 'Nm Df', 'diese': 'Nf Af Np Ap', 'dieses': 'Nn An', 'diesen': 'Am Dp', 'diesem': 'Dm Dn'}
EIN = {'ein': 'Nm Nn An', 'eine': 'Nf Af', 'einen': 'Am', 'einer': 'Df', 'einem': 'Dm Dn'}
AFTER_DEFINITE = {'e': 'Nm Nf Nn Af An', 'en': 'Am Dm Df Dn Np Ap Dp'}
AFTER_EIN = {'er': 'Nm', 'e': 'Nf Af', 'es': 'Nn An', 'en': 'Am Dm Df Dn Np Ap Dp'}
AFTER_NOTHING = {'e': 'Np Ap', 'en': 'Dp'}
PREPOSITIONS = {
    'mit': 'D',
    'für': 'A',
    'ohne': 'A',
    'im': 'D',
    'in': 'D',
    'auf': 'A',
    'aus': 'D',
    'nach': 'D',
    'am': 'D',
}
PLURAL_FORMS = """sind können müssen dürfen sollen werden kosten kaufen verkaufen sehen finden brauchen
haben malen zeichnen vergessen verlieren tragen putzen benutzen bringen stehlen verstecken lesen schreiben
öffnen essen kochen lieben besuchen hören kennen rufen laden fragen warten suchen helfen danken folgen
antworten vertrauen geben zeigen schicken schlafen arbeiten lachen singen tanzen schwimmen spielen weinen
sitzen wohnen kommen stehen wissen glauben sagen hoffen denken reisen""".split()
SINGULAR_FORMS = """ist kann muss darf soll wird kostet kauft verkauft sieht findet braucht hat malt
zeichnet vergisst verliert trägt putzt benutzt bringt stiehlt versteckt liest schreibt öffnet isst kocht
liebt besucht hört kennt ruft lädt fragt wartet sucht hilft dankt folgt antwortet vertraut gibt zeigt
schickt schläft arbeitet lacht singt tanzt schwimmt spielt weint sitzt wohnt kommt steht weiß glaubt sagt
hofft denkt reist""".split()


def possessives():
    """`mein`, `sein`, ... go like `ein`, with plurals."""
    forms = {}
    for stem in ('mein', 'sein', 'ihr', 'unser', 'kein'):
        for form, cases in EIN.items():
            forms[stem + form[3:]] = cases
        forms[stem + 'e'] += ' Np Ap'
        forms[stem + 'en'] += ' Dp'
    return forms


def determiners():
    """Each determiner to what it can stand for and the adjective endings after it."""
    table = {form: (cases, AFTER_DEFINITE) for form, cases in {**DEFINITE, **DIES}.items()}
    table.update({form: (cases, AFTER_EIN) for form, cases in {**EIN, **possessives()}.items()})
    table.update({'jede' + form[5:]: (cases.replace(' Np Ap', '').replace(' Dp', ''), AFTER_DEFINITE)
                  for form, cases in DIES.items()})  # fmt: skip
    table.update({'viele': ('Np Ap', AFTER_NOTHING), 'vielen': ('Dp', AFTER_NOTHING)})
    table['im'] = ('Dm Dn', AFTER_DEFINITE)
    return table


def noun_cases(word):
    """What the form of a noun can stand for, `''` if it is no noun of the lexicon."""
    found = set()
    for nouns, gender in ((MASCULINE, 'm'), (FEMININE, 'f'), (NEUTER, 'n')):
        if word in nouns:
            found |= {case + gender for case in ('N' if word in WEAK else 'NAD')}
    if word in ('Jungen', 'Studenten', 'Nachbarn'):
        found |= {'Am', 'Dm'}
    if word in PLURALS:
        found |= {'Np', 'Ap'} | ({'Dp'} if word[-1] in 'ns' else set())
    if word.endswith('n') and word[:-1] in PLURALS and word[-2] not in 'ns':
        found.add('Dp')
    return found


class AgreementTest(unittest.TestCase):
    """Every noun phrase has one case, gender and number that its determiner, adjective and noun allow."""

    @classmethod
    def setUpClass(cls):
        cls.table = determiners()

    def phrases(self, text):
        """(words before the noun, noun, position) of each noun phrase of a sentence."""
        words = re.findall(r'\w+', text)
        # Only plurals stand first without a determiner: 'Laden' is a verb there, not the shop.
        is_noun = 'Np' in noun_cases(words[0]) or words[0] in g.NAMES
        words[0] = words[0] if is_noun else words[0][0].lower() + words[0][1:]
        for i, word in enumerate(words):
            if noun_cases(word):
                start = i
                while start and (stem := re.sub('(e|en|er|es)$', '', words[start - 1])) in ADJECTIVE_STEMS:
                    self.assertNotEqual(stem, words[start - 1], text)
                    start -= 1
                yield words, start, i

    def cases(self, words, start, noun):
        """The cases, genders and numbers that all words of the phrase allow."""
        allowed = set(noun_cases(words[noun]))
        before = words[start - 1] if start else ''
        of_determiner, endings = self.table.get(before, ('Np Ap Dp', AFTER_NOTHING))
        allowed &= set(of_determiner.split())
        for adjective in words[start:noun]:
            ending = re.search('(e|en|er|es)$', adjective).group()
            allowed &= set(endings.get(ending, '').split())
        return allowed

    def test_determiner_adjective_and_noun_agree(self):
        chance = seeds(self)
        checked = 0
        for _, text in demo.make_demo_data(chance.randrange(2**32), 2000, 10, 10)['train']:
            for words, start, noun in self.phrases(text):
                allowed = self.cases(words, start, noun)
                self.assertTrue(allowed, (text, words[start - 1 : noun + 1]))
                before = words[start - 1] if start else ''
                if before in self.table and before != 'im' and start > 1:
                    before = words[start - 2]
                if before in PREPOSITIONS:
                    self.assertIn(PREPOSITIONS[before], {case[0] for case in allowed}, text)
                elif start <= 1:  # the subject stands first, and its verb follows
                    numbers = {case[1] == 'p' for case in allowed if case[0] == 'N'}
                    self.assertTrue(numbers, text)
                    if len(numbers) == 1:
                        self.assertIn(words[noun + 1], PLURAL_FORMS if numbers.pop() else SINGULAR_FORMS, text)
                checked += 1
        self.assertGreater(checked, 2000)

    def test_the_check_itself_sees_mistakes(self):
        for text in ('Dem Frau', 'Das große Hund', 'Ein großes Hund', 'Dem kleine Kind', 'Ich sehe den Junge',
                     'Drei große Hunden', 'Ich helfe den Kinder', 'Jeder Kinder'):  # fmt: skip
            self.assertFalse(all(self.cases(*phrase) for phrase in self.phrases(text)), text)

    def test_every_noun_of_the_grammar_is_in_the_tables(self):
        nouns = g.PERSONS + g.ANIMALS + g.THINGS + g.FOODS + g.PLACES
        tables = {'m': MASCULINE, 'f': FEMININE, 'n': NEUTER}
        for noun in nouns:
            self.assertIn(noun.de, tables[noun.gender])
            self.assertIn(noun.de_plural, PLURALS)
            self.assertEqual(noun.weak, noun.de in WEAK)


class WordOrderTest(unittest.TestCase):
    def test_subordinate_clauses_end_in_the_finite_verb(self):
        finite = {form for verb in self.verbs() for form in (verb.de_s, verb.infinitive, verb.infinitive[:-1])}
        finite |= {verb.prefix + form for verb in self.verbs() if verb.prefix
                   for form in (verb.de_s, verb.infinitive, verb.infinitive[:-1])}  # fmt: skip
        modals = {form for forms in g.MODALS.values() for form in forms} | {'werde'}
        checked = 0
        for _, text in demo.make_demo_data(seeds(self).randrange(2**32), 1500, 10, 10)['train']:
            match = re.search(r', (dass|ob|weil|obwohl|wenn|bevor|während) (.*)\.$', text)
            if match:
                words = match.group(2).split()
                self.assertIn(words[-1], finite | modals, text)
                if words[-1] in modals:
                    self.assertTrue(words[-2].endswith('en'), text)
                self.assertFalse(set(words[:-1]) & modals, text)
                checked += 1
        self.assertGreater(checked, 150)

    def verbs(self):
        return (g.ANY_OBJECT + g.ON_THINGS + g.ON_READING + g.ON_FOODS + g.ON_PERSONS + g.WITH_DATIVE + g.GIVING
                + g.ALONE + g.COMING + [g.TRAVEL, g.COME])  # fmt: skip


class KnownSentencesTest(unittest.TestCase):
    """Sentences translated by hand."""

    def setUp(self):
        nouns = {noun.en: noun for noun in g.PERSONS + g.ANIMALS + g.THINGS + g.FOODS + g.PLACES}
        self.np = lambda det, *words, plural=False: noun_phrase(
            det, words[0] if len(words) > 1 else '', nouns[words[-1]], plural
        )
        self.verbs = {}
        for verbs in (g.ANY_OBJECT, g.ON_PERSONS, g.WITH_DATIVE, g.GIVING, g.ALONE, g.COMING):
            self.verbs.update({verb.en: verb for verb in verbs})

    def check(self, clause, en, de, en_options=None, **de_options):
        self.assertEqual(sentence(english(clause, **(en_options or {})), '.'), en)
        self.assertEqual(sentence(german(clause, **de_options), '.'), de)

    def test_known_sentences(self):
        np, verbs = self.np, self.verbs
        self.check(
            Clause(np('the', 'old', 'man'), verbs['buy'], (('acc', np('a', 'red', 'car')),), time='today'),
            'The old man buys a red car today.', 'Der alte Mann kauft heute ein rotes Auto.')  # fmt: skip
        self.check(
            Clause(np('the', 'old', 'man'), verbs['buy'], (('acc', np('a', 'red', 'car')),), time='today'),
            'Today the old man buys a red car.', 'Heute kauft der alte Mann ein rotes Auto.',
            dict(front_time=True), front='heute')  # fmt: skip
        self.check(
            Clause(g.PRONOUNS[0], verbs['buy'], (('acc', np('a', 'expensive', 'hat')),), negated=True),
            'I do not buy an expensive hat.', 'Ich kaufe keinen teuren Hut.')  # fmt: skip
        self.check(
            Clause(np('my', 'child', plural=True), verbs['see'], (('acc', np('this', 'small', 'cat')),), negated=True),
            'My children do not see this small cat.', 'Meine Kinder sehen diese kleine Katze nicht.')  # fmt: skip
        self.check(
            Clause(name('Anna'), verbs['help'], (('dat', np('the', 'young', 'student')),), modal='can', negated=True),
            'Anna cannot help the young student.', 'Anna kann dem jungen Studenten nicht helfen.')  # fmt: skip
        friends, books = np('our', 'friend', plural=True), np(21, 'new', 'book', plural=True)
        self.check(
            Clause(g.PRONOUNS[3], verbs['give'], (('dat', friends), ('acc', books))),
            'We give our friends twenty-one new books.',
            'Wir geben unseren Freunden einundzwanzig neue Bücher.')  # fmt: skip
        self.check(
            Clause(name('Max', 'Lena'), verbs['invite'], (('acc', g.PRONOUNS[1]),), time='on Monday'),
            'Max and Lena invite him on Monday.', 'Max und Lena laden ihn am Montag ein.')  # fmt: skip
        self.check(
            Clause(np('the', 'queen'), verbs['wait'], (('acc', np('every', 'guest')),), adverb='never'),
            'The queen never waits for every guest.', 'Die Königin wartet nie auf jeden Gast.')  # fmt: skip

    def test_known_clauses_and_questions(self):
        np, verbs = self.np, self.verbs
        arrives = Clause(np('the', 'friendly', 'doctor'), verbs['get'], places=(), modal='')
        self.assertEqual(english(arrives), 'the friendly doctor gets up')
        self.assertEqual(german(arrives, 'final'), 'der freundliche Arzt aufsteht')
        wants = arrives._replace(modal='must')
        self.assertEqual(german(wants, 'final'), 'der freundliche Arzt aufstehen muss')
        self.assertEqual(german(wants, 'question'), 'muss der freundliche Arzt aufstehen')
        garden = g.in_place(np('the', 'big', 'garden'))
        self.assertEqual(garden, ('in the big garden', 'im großen Garten'))
        self.assertEqual(g.in_place(np('our', 'kitchen')), ('in our kitchen', 'in unserer Küche'))
        where = Clause(g.PRONOUNS[2], verbs['work'])
        self.assertEqual(english(where, 'where'), 'where does she work')
        self.assertEqual(german(where, 'question', 'wo'), 'wo arbeitet sie')

    def test_number_words(self):
        for number, en, de in ((2, 'two', 'zwei'), (12, 'twelve', 'zwölf'), (16, 'sixteen', 'sechzehn'),
                               (17, 'seventeen', 'siebzehn'), (20, 'twenty', 'zwanzig'), (30, 'thirty', 'dreißig'),
                               (21, 'twenty-one', 'einundzwanzig'), (76, 'seventy-six', 'sechsundsiebzig'),
                               (99, 'ninety-nine', 'neunundneunzig')):  # fmt: skip
            self.assertEqual(number_words(number), (en, de))
        self.assertEqual(len({number_words(number) for number in range(2, 100)}), 98)


class CorpusTest(unittest.TestCase):
    def test_files_are_distinct_and_unseen(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(demo.main(['make_demo_data.py', f'--folder={folder}/new', '--seed=1']), 0)
            sides = {language: [list(read_lines(os.path.join(folder, 'new', f'{part}.{language}')))
                                for part in ('train', 'dev', 'test')] for language in ('en', 'de')}  # fmt: skip
        for train, dev, test in sides.values():
            self.assertGreaterEqual(len(set(train)), 20_000)
            self.assertEqual((len(set(dev)), len(set(test))), (500, 500))
            self.assertFalse(set(train) & set(dev) | set(train) & set(test) | set(dev) & set(test))
        train = sides['en'][0]
        self.assertTrue(all(5 <= len(line.split()) <= 16 for line in train))
        for line in train + sides['de'][0]:
            self.assertRegex(line, r'^[A-ZÄÖÜ].*\w[.?]$')
            self.assertNotRegex(line, r'  | [.,?]')
        self.assertGreater(len({word for line in train for word in re.findall(r'\w+', line)}), 350)

    def test_the_seed_decides_the_sentences(self):
        first, second = (demo.make_demo_data(seed, 200, 20, 20) for seed in (1, 2))
        self.assertLess(len(set(first['train']) & set(second['train'])), 20)
        self.assertEqual(first, demo.make_demo_data(1, 200, 20, 20))

    def test_one_source_has_one_target(self):
        """The grammar never gives one English sentence two German ones."""
        writer, seen = demo.Writer(seeds(self).randrange(2**32)), {}
        for _ in range(4000):
            en, de = writer.pair()
            self.assertEqual(seen.setdefault(en, de), de, en)

    def test_other_text_is_not_overwritten(self):
        folder = scratch_folder(self.addCleanup)
        few = functools.partial(demo.make_demo_data, train=50, dev=6, test=10)
        with mock.patch.object(demo, 'make_demo_data', few):
            demo.write_demo_data(folder, 1)
            demo.write_demo_data(folder, 1)  # once more is no harm
            with self.assertRaisesRegex(UserError, 'holds other text'):
                demo.write_demo_data(folder, 2)
            own = os.path.join(folder, 'dev.en')
            write_lines(own, ['my own text'])
            os.remove(os.path.join(folder, 'train.de'))
            with self.assertRaisesRegex(UserError, 'dev.en is there already'):
                demo.write_demo_data(folder, 1)
        self.assertEqual(list(read_lines(own)), ['my own text'])
        self.assertFalse(os.path.exists(os.path.join(folder, 'train.de')))

    def test_the_folder_is_required(self):
        self.assertEqual(demo.main(['make_demo_data.py']), 2)


if __name__ == '__main__':
    unittest.main()
