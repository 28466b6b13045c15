"""A small English-German grammar: phrases that know their form in both languages.

German inflects here for gender, case and number (articles, adjectives, nouns with weak declension and dative plural),
puts the finite verb second, or last in subordinate clauses, sends infinitives and separable prefixes to the end,
negates with `nicht` or `kein`, and writes numbers as one word. Every English sentence has exactly one German one.
"""

from typing import NamedTuple


class Noun(NamedTuple):
    """A noun in both languages."""

    en: str
    en_plural: str
    de: str
    gender: str  # m, f or n
    de_plural: str
    weak: bool  # ends in -(e)n everywhere but in the nominative singular


def _nouns(table):
    """Reads `english[/plural] German gender plural`, parted by commas; `m*` marks weak masculines."""
    nouns = []
    for entry in table.split(','):
        en, de, gender, de_plural = entry.split()
        en, slash, plural = en.partition('/')
        nouns.append(Noun(en, plural if slash else en + 's', de, gender[0], de_plural, gender.endswith('*')))
    return nouns


PERSONS = _nouns(
    'man/men Mann m Männer, woman/women Frau f Frauen, child/children Kind n Kinder, boy Junge m* Jungen, '
    'girl Mädchen n Mädchen, teacher Lehrer m Lehrer, doctor Arzt m Ärzte, student Student m* Studenten, '
    'neighbor Nachbar m* Nachbarn, friend Freund m Freunde, sister Schwester f Schwestern, brother Bruder m Brüder, '
    'mother Mutter f Mütter, father Vater m Väter, daughter Tochter f Töchter, son Sohn m Söhne, '
    'queen Königin f Königinnen, guest Gast m Gäste'
)
ANIMALS = _nouns(
    'dog Hund m Hunde, cat Katze f Katzen, horse Pferd n Pferde, bird Vogel m Vögel, cow Kuh f Kühe, '
    'mouse/mice Maus f Mäuse, duck Ente f Enten, pig Schwein n Schweine'
)
READING = _nouns('book Buch n Bücher, letter Brief m Briefe, newspaper Zeitung f Zeitungen')
THINGS = READING + _nouns(
    'picture Bild n Bilder, car Auto n Autos, bicycle Fahrrad n Fahrräder, ball Ball m Bälle, '
    'key Schlüssel m Schlüssel, coat Mantel m Mäntel, dress/dresses Kleid n Kleider, shirt Hemd n Hemden, '
    'hat Hut m Hüte, shoe Schuh m Schuhe, bag Tasche f Taschen, cup Tasse f Tassen, bottle Flasche f Flaschen, '
    'knife/knives Messer n Messer, table Tisch m Tische, chair Stuhl m Stühle, lamp Lampe f Lampen, '
    'clock Uhr f Uhren, flower Blume f Blumen, stone Stein m Steine'
)
FOODS = _nouns(
    'apple Apfel m Äpfel, egg Ei n Eier, cake Kuchen m Kuchen, potato/potatoes Kartoffel f Kartoffeln, '
    'tomato/tomatoes Tomate f Tomaten, pear Birne f Birnen, soup Suppe f Suppen, sausage Wurst f Würste'
)
PLACES = _nouns(
    'house Haus n Häuser, garden Garten m Gärten, school Schule f Schulen, kitchen Küche f Küchen, '
    'room Zimmer n Zimmer, village Dorf n Dörfer, forest Wald m Wälder, park Park m Parks, shop Laden m Läden, '
    'church/churches Kirche f Kirchen, hotel Hotel n Hotels, office Büro n Büros, castle Schloss n Schlösser'
)

# English: (as a predicate, stem before endings)
ADJECTIVES = {
    en: (de.split('/')[0], de.split('/')[-1])
    for en, de in (
        entry.split()
        for entry in 'big groß, small klein, old alt, new neu, beautiful schön, red rot, blue blau, green grün, '
        'black schwarz, white weiß, cheap billig, expensive teuer/teur, heavy schwer, good gut, long lang, '
        'strong stark, young jung, tired müde/müd, friendly freundlich, happy glücklich, sad traurig, '
        'hungry hungrig, rich reich, famous berühmt, empty leer, warm warm, cold kalt, clever klug'.split(', ')
    )
}
OF_PERSONS = ['old', 'young', 'tired', 'friendly', 'happy', 'sad', 'hungry', 'rich', 'famous', 'clever', 'strong']
OF_ANIMALS = ['big', 'small', 'old', 'young', 'black', 'white', 'tired', 'hungry', 'strong', 'clever', 'beautiful']
OF_THINGS = ['big', 'small', 'old', 'new', 'beautiful', 'red', 'blue', 'green', 'black', 'white', 'cheap', 'expensive',
             'heavy', 'good', 'long']  # fmt: skip
OF_FOODS = ['big', 'small', 'good', 'cheap', 'expensive', 'red', 'green', 'warm', 'cold']
OF_PLACES = ['big', 'small', 'old', 'new', 'beautiful', 'empty', 'famous', 'cold', 'warm']

NAMES = 'Anna Peter Maria Paul Julia Thomas Laura Martin Emma Felix Sophie Jonas Lena David Clara Max'.split()
CITIES = dict(
    entry.split('/') if '/' in entry else (entry, entry)
    for entry in 'Berlin Hamburg Munich/München Cologne/Köln Vienna/Wien Zurich/Zürich Leipzig Dresden Bremen '
    'Rome/Rom Paris London Prague/Prag Warsaw/Warschau'.split()
)
WEEKDAYS = dict(
    zip(
        'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split(),
        'Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag'.split(),
    )
)
TIMES = {'today': 'heute', 'tomorrow': 'morgen', 'now': 'jetzt', 'sometimes': 'manchmal', 'soon': 'bald'}
TIMES.update({f'on {en}': f'am {de}' for en, de in WEEKDAYS.items()})
OFTEN = {'often': 'oft', 'always': 'immer', 'never': 'nie', 'rarely': 'selten'}


class Verb(NamedTuple):
    """A verb in both languages."""

    en: str
    en_s: str  # third person singular
    infinitive: str
    de_s: str  # third person singular, prefix left out
    prefix: str = ''  # separable
    particle: str = ''  # what follows in English, as in `gets up`
    preposition: str = ''  # what the German object takes, with the accusative


def _verbs(table):
    """Reads `english infinitive [third person]`, parted by commas; `ein|laden` has a separable prefix."""
    verbs = []
    for entry in table.split(','):
        en, infinitive, *third = entry.split()
        en, _, particle = en.partition('_')
        prefix, _, stem = infinitive.rpartition('|')
        root = stem[:-2]
        de_s = third[0] if third else root + ('et' if root.endswith(('t', 'd', 'chn', 'ffn')) else 't')
        en_s = 'has' if en == 'have' else en + ('es' if en.endswith(('s', 'sh', 'ch', 'go')) else 's')
        if en.endswith('y') and en[-2] not in 'aeou':
            en_s = en[:-1] + 'ies'
        verbs.append(Verb(en, en_s, stem, de_s, prefix, particle))
    return verbs


def verb(en, verbs):
    """The verb of that English form among `verbs`."""
    return next(v for v in verbs if v.en == en)


ANY_OBJECT = _verbs(
    'buy kaufen, sell verkaufen, see sehen sieht, find finden, need brauchen, have haben hat, paint malen, '
    'draw zeichnen, forget vergessen vergisst, lose verlieren'
)
ON_THINGS = _verbs(
    'carry tragen trägt, clean putzen, use benutzen, bring bringen, steal stehlen stiehlt, hide verstecken'
)
ON_READING = _verbs('read lesen liest, write schreiben, open öffnen')
ON_FOODS = _verbs('eat essen isst, cook kochen')
ON_PERSONS = _verbs('love lieben, visit besuchen, hear hören, know kennen, call an|rufen, invite ein|laden lädt, '
                    'ask fragen')  # fmt: skip
ON_PERSONS += [Verb('wait', 'waits', 'warten', 'wartet', particle='for', preposition='auf'),
               Verb('look', 'looks', 'suchen', 'sucht', particle='for')]  # fmt: skip
WITH_DATIVE = _verbs('help helfen hilft, thank danken, follow folgen, answer antworten, trust vertrauen')
GIVING = _verbs('give geben gibt, show zeigen, send schicken, bring bringen')
ALONE = _verbs('sleep schlafen schläft, work arbeiten, laugh lachen, sing singen, dance tanzen, swim schwimmen, '
               'play spielen, cry weinen, sit sitzen, live wohnen')  # fmt: skip
COMING = _verbs('arrive an|kommen, get_up auf|stehen')
SAYING = _verbs('know wissen weiß, believe glauben, say sagen, hope hoffen, think denken')
ASKING = _verbs('ask fragen, know wissen weiß')
TRAVEL, COME = _verbs('travel reisen, come kommen')

MODALS = {  # English: infinitive, singular of the first and third person
    'can': ('können', 'kann'),
    'must': ('müssen', 'muss'),
    'may': ('dürfen', 'darf'),
    'should': ('sollen', 'soll'),
    'will': ('werden', 'wird'),
}
CONJUNCTIONS = {'because': 'weil', 'although': 'obwohl', 'if': 'wenn', 'before': 'bevor', 'while': 'während'}

ONES = (
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen '
    'eighteen nineteen'
).split()
TENS = ' ten twenty thirty forty fifty sixty seventy eighty ninety'.split(' ')
EINER = (
    'null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn '
    'achtzehn neunzehn'
).split()
ZEHNER = ' zehn zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig'.split(' ')


def number_words(number):
    """2 to 99 in both languages: 21 is `twenty-one` and `einundzwanzig`."""
    if number < 20:
        return ONES[number], EINER[number]
    tens, ones = divmod(number, 10)
    if not ones:
        return TENS[tens], ZEHNER[tens]
    return f'{TENS[tens]}-{ONES[ones]}', ('ein' if ones == 1 else EINER[ones]) + 'und' + ZEHNER[tens]


# Endings by case, for m, f, n, plural.
_DER = {'nom': 'der die das die', 'acc': 'den die das die', 'dat': 'dem der dem den'}
_DIESER = {'nom': 'er e es e', 'acc': 'en e es e', 'dat': 'em er em en'}
_EIN = {'nom': '- e - e', 'acc': 'en e - e', 'dat': 'em er em en'}
_WEAK = {'nom': 'e e e en', 'acc': 'en e e en', 'dat': 'en en en en'}
_MIXED = {'nom': 'er e es en', 'acc': 'en e es en', 'dat': 'en en en en'}
_STRONG = {'nom': 'er e es e', 'acc': 'en e es e', 'dat': 'em er em en'}
_DER_WORDS = {'this': 'dies', 'these': 'dies', 'every': 'jed'}
_EIN_WORDS = {'a': 'ein', 'my': 'mein', 'his': 'sein', 'her': 'ihr', 'our': 'unser', 'no': 'kein'}


def _ending(table, case, form):
    return table[case].split()['mfnp'.index(form)].replace('-', '')


def _determiner(det, case, form):
    """The German determiner, and the declension that adjectives take after it."""
    if det == 'the':
        return _ending(_DER, case, form), _WEAK
    if det in _DER_WORDS:
        return _DER_WORDS[det] + _ending(_DIESER, case, form), _WEAK
    if det in _EIN_WORDS:
        return _EIN_WORDS[det] + _ending(_EIN, case, form), _MIXED
    return 'viel' + _ending(_STRONG, case, form) if det == 'many' else det, _STRONG


class Phrase(NamedTuple):
    """What can be a subject or an object."""

    en: str  # as a subject
    en_object: str
    de: dict  # case to text
    person: str  # '1s', '3s' or 'p'
    pronoun: bool = False
    negated: dict = None  # German with `kein`, where the determiner is `a`


def noun_phrase(det, adjective, noun, plural=False):
    """A noun with its determiner and an adjective or none.

    Args:
      det: an English determiner, or a number from 2 to 99.
      adjective: English, or ''.
      noun: `Noun`.
      plural: bool.
    Returns:
      `Phrase`.
    """
    en_det, de_det = number_words(det) if isinstance(det, int) else (det, det)
    en = ' '.join(filter(None, [en_det, adjective, noun.en_plural if plural else noun.en]))
    if en.startswith('a ') and en[2] in 'aeiou':
        en = 'an' + en[1:]
    german = lambda word: {case: _german_noun(word, adjective, noun, plural, case) for case in _DER}
    return Phrase(en, en, german(de_det), 'p' if plural else '3s', negated=german('no') if det == 'a' else None)


def _german_noun(det, adjective, noun, plural, case):
    form = 'p' if plural else noun.gender
    article, declension = _determiner(det, case, form)
    inflected = ADJECTIVES[adjective][1] + _ending(declension, case, form) if adjective else ''
    word = noun.de_plural if plural else noun.de
    if plural and case == 'dat' and word[-1] not in 'ns':
        word += 'n'
    elif not plural and noun.weak and case != 'nom':
        word += 'n' if word[-1] in 'er' else 'en'
    return ' '.join(filter(None, [article, inflected, word]))


def name(*names):
    """A name, or two joined by `and`."""
    en, de = ' and '.join(names), ' und '.join(names)
    return Phrase(en, en, dict(nom=de, acc=de, dat=de), 'p' if len(names) > 1 else '3s')


PRONOUNS = [
    Phrase('I', 'me', dict(nom='ich', acc='mich', dat='mir'), '1s', True),
    Phrase('he', 'him', dict(nom='er', acc='ihn', dat='ihm'), '3s', True),
    Phrase('she', 'her', dict(nom='sie', acc='sie', dat='ihr'), '3s', True),
    Phrase('we', 'us', dict(nom='wir', acc='uns', dat='uns'), 'p', True),
    Phrase('they', 'them', dict(nom='sie', acc='sie', dat='ihnen'), 'p', True),
]


def in_place(phrase):
    """`in` with a place: (English, German), `in dem` drawn together."""
    german = 'in ' + phrase.de['dat']
    return f'in {phrase.en}', 'im ' + german[7:] if german.startswith('in dem ') else german


class Clause(NamedTuple):
    """A subject and what it does."""

    subject: Phrase
    verb: Verb
    objects: tuple = ()  # of (case, Phrase), in the order of both languages
    places: tuple = ()  # of (English, German), at the end of the clause
    modal: str = ''
    negated: bool = False
    adverb: str = ''  # of OFTEN
    time: str = ''  # of TIMES


def _english_finite(clause):
    """The finite verb and what stands after the subject in a question."""
    if clause.modal:
        return clause.modal, clause.verb.en
    third = clause.subject.person == '3s'
    if clause.negated:
        return 'does' if third else 'do', clause.verb.en
    return clause.verb.en_s if third else clause.verb.en, ''


def english(clause, question='', front_time=False):
    """The clause in English, without capital and full stop.

    Args:
      clause: `Clause`.
      question: '' for a statement; 'yes' for a yes-or-no question; else the question word, which stands in front.
      front_time: the time stands in front.
    """
    time = clause.time
    subject = clause.subject.en
    if question:
        finite = clause.modal or ('does' if clause.subject.person == '3s' else 'do')
        words = ['' if question == 'yes' else question, finite, subject, clause.adverb, clause.verb.en]
    else:
        finite, base = _english_finite(clause)
        if clause.negated:
            finite = 'cannot' if finite == 'can' else f'{finite} not'
        ahead = [finite, clause.adverb] if clause.modal else [clause.adverb, finite]
        words = [time if front_time else '', subject, *ahead, base]
    words += [clause.verb.particle, *(phrase.en_object for _, phrase in clause.objects)]
    words += [en for en, _ in clause.places]
    return ' '.join(filter(None, [*words, '' if front_time else time]))


def german(clause, order='main', front=''):
    """The clause in German, without capital and full stop.

    Args:
      clause: `Clause`.
      order: 'main' for the verb second, after the subject or `front`; 'question' for the verb first, or second after
        the question word `front`; 'final' for the verb last.
      front: what stands before the finite verb in place of the subject.
    """
    subject, verb_, person = clause.subject.de['nom'], clause.verb, clause.subject.person
    if clause.modal:
        infinitive, singular = MODALS[clause.modal]
        if clause.modal == 'will' and person == '1s':
            singular = 'werde'
        finite = infinitive if person == 'p' else singular
        closing = verb_.prefix + verb_.infinitive
    else:
        finite, closing = german_finite(verb_, person), verb_.prefix
    pronouns = [p.de[case] for case, p in clause.objects if p.pronoun and not verb_.preposition]
    full, negation = [], 'nicht' if clause.negated else ''
    for case, phrase in clause.objects:
        if verb_.preposition:
            continue
        if not phrase.pronoun:
            kein = clause.negated and phrase.negated and (case, phrase) == clause.objects[-1]
            full.append((phrase.negated if kein else phrase.de)[case])
            negation = '' if kein else negation
    after = [f'{verb_.preposition} {phrase.de[case]}' for case, phrase in clause.objects if verb_.preposition]
    time = '' if front == TIMES.get(clause.time) else TIMES.get(clause.time, '')
    middle = [*pronouns, time, OFTEN.get(clause.adverb, ''), *full, negation, *after, *(de for _, de in clause.places)]
    if order == 'final':
        last = [closing, finite] if clause.modal else [closing + finite]
        words = [subject, *middle, *last]
    elif order == 'question' or front:
        words = [front, finite, subject, *middle, closing]
    else:
        words = [subject, finite, *middle, closing]
    return ' '.join(filter(None, words))


def german_finite(verb_, person):
    """The finite form of a verb, its prefix left out."""
    if person == 'p':
        return verb_.infinitive
    if person == '1s':
        return verb_.de_s if verb_.infinitive == 'wissen' else verb_.infinitive[:-1]
    return verb_.de_s


def sentence(text, mark):
    """Capital in front, mark at the end."""
    return text[0].upper() + text[1:] + mark
