"""Tagging: the corpus against sentences tagged by hand, accuracy by hand, and a model that learns to tag."""

import os
import tempfile
import unittest

import nmt_train
from sequencing.text import read_lines
from sequencing.translator import load
from tests.support import run_tool, seeds
from tests.toy import ROOT
from tools import make_tag_data, tag_accuracy

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
        for part, size in (('train', 25_000), ('dev', 500), ('test', 500)):
            words, tags = self.read(f'{part}.words'), self.read(f'{part}.tags')
            self.assertEqual((len(words), len(tags)), (size, size))
            for one, two in zip(words, tags):
                self.assertEqual(len(one.split()), len(two.split()))
                self.assertRegex(one, r' [.?]$')
                self.assertRegex(two, r' PUNCT$')
            self.assertTrue(seen.isdisjoint(words))
            seen.update(words)
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

    def test_a_small_model_learns_to_tag_sentences_it_has_not_seen(self):
        settings = {
            'data.folder': f'{self.folder}/data', 'data.cache_dir': f'{self.folder}/cache', 'data.dev_src': '',
            'data.dev_trg': '[]', 'model.encoder.state_size': 64, 'model.decoder.state_size': 64,
            'model.decoder.attention_size': 32, 'model.decoder.readout_size': 32, 'model.embedding_size': 32,
            'train.max_steps': 450, 'train.learning_rate': 1e-2, 'train.batch_size': 450, 'train.warmup_steps': 20,
            'seed': seeds(self).randrange(1000),
        }  # fmt: skip
        code, _, err = run_tool(
            nmt_train.main, '--config=config_word2pos', f'--config_file={ROOT}/config_example.py',
            f'--model_dir={self.folder}/model', *[f'--set={field}={value}' for field, value in settings.items()],
        )  # fmt: skip
        self.assertEqual(code, 0, err)
        words, tags = self.read('test.words')[:100], self.read('test.tags')[:100]
        said = load(f'{self.folder}/model').translate(words)
        right, places, *_ = tag_accuracy.count(zip(said, tags))
        self.assertGreater(right / places, 0.85)


if __name__ == '__main__':
    unittest.main()
