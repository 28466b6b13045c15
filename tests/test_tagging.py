"""Tagging: the corpus against sentences tagged by hand, and accuracy by hand."""

import functools
import os
import tempfile
import unittest
from unittest import mock

from sequencing.text import read_lines
from tests.support import run_tool
from tools import make_tag_data, tag_accuracy
from tools.make_demo_data import make_demo_data

BY_HAND = {
    'Her old cat sees her on Monday .': 'DET ADJ NOUN VERB PRON ADP PROPN PUNCT',
    'Anna and Peter wait for her .': 'PROPN CCONJ PROPN VERB ADP PRON PUNCT',
    'She cannot give her his twenty-one keys .': 'PRON AUX VERB PRON DET NUM NOUN PUNCT',
    'Why does he get up soon , but they do not know that I sleep ?':
        'ADV AUX PRON VERB ADP ADV PUNCT CCONJ PRON AUX PART VERB SCONJ PRON VERB PUNCT',
    'There are no knives in the kitchen .': 'PRON AUX DET NOUN ADP DET NOUN PUNCT',
}  # fmt: skip


class TaggingTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.folder = scratch.name
        few = functools.partial(make_demo_data, train=500, dev=60, test=100)
        with mock.patch.object(make_tag_data, 'make_demo_data', few):
            cls.code, _, cls.error = run_tool(make_tag_data.main, f'--folder={cls.folder}/data', '--seed=3')

    def read(self, name):
        return list(read_lines(os.path.join(self.folder, 'data', name)))

    def test_tags_are_those_given_by_hand(self):
        lexicon = make_tag_data.make_lexicon()
        for words, tags in BY_HAND.items():
            self.assertEqual(make_tag_data.tag(words.split(), lexicon), tags.split(), words)

    def test_every_token_has_a_tag_and_no_sentence_is_in_two_parts(self):
        self.assertEqual(self.code, 0, self.error)
        seen = set()
        for part, size in (('train', 500), ('dev', 60), ('test', 100)):
            words, tags = self.read(f'{part}.words'), self.read(f'{part}.tags')
            self.assertEqual((len(words), len(tags)), (size, size))
            for one, two in zip(words, tags):
                self.assertEqual(len(one.split()), len(two.split()))
                self.assertRegex(one, r' [.?]$')
                self.assertRegex(two, r' PUNCT$')
            self.assertTrue(seen.isdisjoint(words))
            seen.update(words)
        words, tags = self.read('train.words'), self.read('train.tags')
        both = [dict(zip(one.split(), two.split())).get('her') for one, two in zip(words, tags)]
        self.assertLessEqual({'DET', 'PRON'}, set(both))  # a token whose neighbours decide

    def test_accuracy_counts_missing_and_needless_tags_as_wrong(self):
        pairs = [('A B C', 'A B C'), ('A B', 'A C D'), ('', 'A'), ('A A', 'A')]
        self.assertEqual(tag_accuracy.count(pairs), (3 + 1 + 0 + 1, 3 + 3 + 1 + 2, 1, 3, 4))
        for name, column in (('said', 0), ('right', 1)):
            with open(os.path.join(self.folder, name), 'w') as file:
                file.writelines(pair[column] + '\n' for pair in pairs)
        arguments = f'--hypothesis={self.folder}/said', f'--reference={self.folder}/right'
        code, out, err = run_tool(tag_accuracy.main, *arguments)
        self.assertEqual(code, 0, err)
        self.assertEqual(out, 'accuracy = 55.56 (5 of 9 tags; 1 of 4 sentences all right, 3 with another number of '
                              'tags)\n')  # fmt: skip


if __name__ == '__main__':
    unittest.main()
