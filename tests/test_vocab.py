"""Vocabularies: ids, round trips to raw text, files, and what is refused."""

import os
import subprocess
import sys
import tempfile
import unittest

import numpy as np

from sequencing.errors import UserError
from sequencing.text import read_lines
from sequencing.vocab import SentencePieceVocab, Vocab, VocabMaker
from tests.support import seeds, shared_folder

SPECIAL = ['<pad>', '<unk>', '<s>', '</s>']
LINES = [
    'Der alte Mann sieht den Hund.',
    'Die Frau kauft ein rotes Auto, weil sie reich ist.',
    'Große Häuser sind teuer!',
    'Wo arbeitet das Mädchen?',
] * 20


def made(kind, size=200, lines=LINES):
    maker = VocabMaker(kind, size)
    for line in lines:
        maker.add(line)
    return maker.make()


class MadeVocabTest(unittest.TestCase):
    def test_special_ids(self):
        for kind in ('words', 'characters', 'unigram', 'bpe'):
            vocab = made(kind)
            self.assertEqual((vocab.pad_id, vocab.unk_id, vocab.bos_id, vocab.eos_id), (0, 1, 2, 3), kind)
            self.assertEqual(vocab.tokens[:4], SPECIAL)
            self.assertEqual(len(vocab.tokens), vocab.size)

    def test_raw_text_comes_back(self):
        for kind in ('words', 'characters', 'unigram', 'bpe'):
            vocab = made(kind)
            for line in LINES[:4]:
                ids = vocab.encode(line)
                self.assertEqual((ids.dtype, ids.ndim), (np.int32, 1))
                self.assertTrue((ids > 3).all())
                self.assertEqual(vocab.decode(ids), line, kind)
                self.assertEqual(vocab.decode([2, *ids, 3, 0, 0]), line, kind)
                np.testing.assert_array_equal(vocab.ids_of(vocab.pieces(ids)), ids)

    def test_blank_lines_give_no_ids_and_no_text(self):
        for kind in ('words', 'characters', 'unigram', 'bpe'):
            vocab = made(kind)
            for line in ('', ' ', ' \t  '):
                self.assertEqual(len(vocab.encode(line)), 0, (kind, line))
            self.assertEqual(vocab.decode([]), '')
            self.assertEqual([len(ids) for ids in vocab.encode_lines(['', 'Mann', ''])][::2], [0, 0])
            self.assertEqual(vocab.encode_lines([]), [])
            self.assertEqual(vocab.encode('Mann \ud800').tolist()[-1], vocab.unk_id)  # no file, but a str can hold it

    def test_lines_together_are_the_lines_one_by_one_on_any_number_of_threads(self):
        chance = seeds(self)
        words = sorted({word for line in LINES for word in line.split()}) + ['?!xyz', '\u2028', '\x85', '中文']
        lines = [' '.join(chance.choices(words, k=chance.randrange(12))) for _ in range(200)]
        for kind in ('words', 'characters', 'unigram', 'bpe'):
            vocab = made(kind)
            one_by_one = [vocab.encode(line).tolist() for line in lines]
            for threads in (1, 3):
                self.assertEqual([ids.tolist() for ids in vocab.encode_lines(lines, threads)], one_by_one, kind)

    def test_words_are_ranked_by_count_then_alphabet_and_cut_to_size(self):
        vocab = made('words', 7, ['b a c', 'c a b d', 'c'])
        self.assertEqual(vocab.tokens, [*SPECIAL, 'c', 'a', 'b'])
        self.assertEqual(vocab.encode('a d  b\tzzz').tolist(), [5, 1, 6, 1])

    def test_text_that_spells_a_special_token_is_not_that_token(self):
        for kind in ('words', 'characters', 'unigram', 'bpe'):
            vocab = made(kind, lines=[*LINES, 'a </s> <pad> <s> b'])
            ids = vocab.encode('a </s> <pad> <s> b')
            self.assertTrue(np.isin([0, 2, 3], ids, invert=True).all(), kind)

    def test_the_same_text_gives_the_same_vocabulary_in_another_process(self):
        code = (
            'import sys; sys.path.insert(0, "."); from tests.test_vocab import made\n'
            'print([made(kind).content_key() for kind in ("words", "unigram", "bpe")])'
        )
        environment = {**os.environ, 'PYTHONHASHSEED': '7', 'OMP_NUM_THREADS': '1'}
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        said = subprocess.run([sys.executable, '-c', code], env=environment, cwd=root, capture_output=True, check=True)
        keys = [made(kind).content_key() for kind in ('words', 'unigram', 'bpe')]
        self.assertEqual(said.stdout.decode().strip(), str(keys))
        self.assertEqual(len(set(keys)), 3)

    def test_nothing_to_make_a_vocabulary_from(self):
        for kind in ('words', 'characters', 'unigram'):
            with self.assertRaisesRegex(UserError, 'there is no text'):
                made(kind, lines=['', '  '])
        with self.assertRaisesRegex(UserError, 'no unigram vocabulary of size 5 can be made'):
            made('unigram', 5)

    def test_a_huge_script_leaves_room_for_pieces(self):
        chance = seeds(self)
        rare = [chr(0x4E00 + i) for i in range(900)]
        lines = [''.join(rare[i : i + 30]) for i in range(0, 900, 30)] + ['你好世界，'] * 12000
        vocab = made('unigram', 600, lines)
        self.assertLessEqual(sum(token in rare for token in vocab.tokens), 300)
        self.assertEqual(vocab.decode(vocab.encode('你好世界')), '你好世界')
        self.assertIn(vocab.unk_id, vocab.encode(''.join(chance.sample(rare, 300))))


class FilesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def list_file(self, *lines, end='\n'):
        path = os.path.join(self.folder, 'list')
        with open(path, 'w', encoding='utf-8', newline='') as file:
            file.write('\n'.join(lines) + end)
        return path

    def test_saved_and_loaded_are_the_same(self):
        vocabs = [made(kind) for kind in ('words', 'characters', 'unigram', 'bpe')]
        vocabs += [Vocab(['a@@', 'b']), Vocab(['<pad>', '<unk>', '<eos>', 'x']), Vocab([' ', '\t', '\r', '\u2028'], '')]
        for vocab in vocabs:
            vocab.save(self.folder, 'v', made_by='a test')
            again = Vocab.load(self.folder, 'v')
            self.assertEqual(again.tokens, vocab.tokens)
            for name in ('size', 'pad_id', 'unk_id', 'bos_id', 'eos_id', 'delimiter', 'subword', 'kind'):
                self.assertEqual(getattr(again, name), getattr(vocab, name), name)
            self.assertEqual(again.content_key(), vocab.content_key())
            np.testing.assert_array_equal(again.encode(LINES[0]), vocab.encode(LINES[0]))

    def test_keys_tell_vocabularies_apart(self):
        vocabs = [Vocab(['a', 'bc']), Vocab(['ab', 'c']), Vocab(['bc', 'a']), Vocab(['a', 'bc'], ''), made('words'),
                  made('unigram'), Vocab(['a', 'bc'], subword='spm')]  # fmt: skip
        self.assertEqual(len({vocab.content_key() for vocab in vocabs}), len(vocabs))

    def test_a_changed_or_newer_file_is_refused(self):
        made('words').save(self.folder, 'v')
        with open(os.path.join(self.folder, 'v.tokens'), 'a') as file:
            file.write('more\n')
        with self.assertRaisesRegex(UserError, 'not the one that was saved'):
            Vocab.load(self.folder, 'v')
        with open(os.path.join(self.folder, 'v.json'), 'w') as file:
            file.write('{"format": 99}')
        with self.assertRaisesRegex(UserError, 'has format 99'):
            Vocab.load(self.folder, 'v')
        with open(os.path.join(self.folder, 'v.json'), 'w') as file:
            file.write('{"for')
        with self.assertRaisesRegex(UserError, 'is damaged'):
            Vocab.load(self.folder, 'v')

    def test_a_plain_list_gets_special_tokens(self):
        for end in ('\n', ''):
            vocab = Vocab.from_file(self.list_file('der', 'die', 'Haus\t17', end=end))
            self.assertEqual(vocab.tokens, [*SPECIAL, 'der', 'die', 'Haus'])
            self.assertEqual(vocab.encode('die Haus das').tolist(), [5, 6, 1])
            self.assertEqual(vocab.decode([5, 6, 1]), 'die Haus <unk>')

    def test_a_list_of_characters(self):
        vocab = Vocab.from_file(self.list_file('a', ' ', 'ß'), delimiter='')
        self.assertEqual(vocab.encode('aß a!').tolist(), [4, 6, 5, 4, 1])
        self.assertEqual(vocab.decode([4, 6, 5, 4]), 'aß a')

    def test_special_tokens_of_a_list_keep_their_ids(self):
        ours = Vocab.from_file(self.list_file('<pad>', '<unk>', '<s>', '</s>', 'a'))
        self.assertEqual((ours.size, ours.bos_id, ours.eos_id, ours.encode('a').tolist()), (5, 2, 3, [4]))
        flowseq = Vocab.from_file(self.list_file('<pad>', '<unk>', '<eos>', 'a'))
        self.assertEqual(
            (flowseq.size, flowseq.bos_id, flowseq.eos_id, flowseq.encode('a').tolist()), (4, None, 2, [3])
        )

    def test_unfit_lists_are_refused_with_file_and_line(self):
        for lines, message in (
            (['a', 'b', 'c', 'b'], "list, line 4: 'b' is there already, in line 2"),
            (['<pad>', '<unk>', '<s>', '</s>', 'a', 'a'], "list, line 6: 'a' is there already, in line 5"),
            (['a', '<pad>'], "list, line 2: '<pad>' has id 1"),
            (['<unk>', '<pad>', '<s>', '</s>'], "list, line 1: '<unk>' has id 0"),
            (['<pad>', '<unk>', '<eos>', 'a', '<s>'], "list, line 3: '<eos>' has id 2"),
            (['<pad>', '<unk>'], "list, line 2: '<unk>' has id 1"),
            (['a', '', 'b'], 'list, line 2: is empty'),
        ):
            with self.assertRaisesRegex(UserError, message):
                Vocab.from_file(self.list_file(*lines))
        with self.assertRaisesRegex(UserError, 'list, line 1: there is no token'):
            Vocab.from_file(self.list_file(end=''))
        with self.assertRaisesRegex(UserError, 'is a folder'):
            Vocab.from_file(self.folder)

    def test_sentencepiece_models_made_elsewhere(self):
        import io

        import sentencepiece

        def model(**ids):
            buffer = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(LINES), model_writer=buffer, vocab_size=50, minloglevel=3, **ids)  # fmt: skip
            path = os.path.join(self.folder, 'sp.model')
            with open(path, 'wb') as file:
                file.write(buffer.getvalue())
            return path

        vocab = SentencePieceVocab.from_file(model(pad_id=0, unk_id=1, bos_id=2, eos_id=3))
        self.assertEqual(vocab.decode(vocab.encode(LINES[0])), LINES[0])
        with self.assertRaisesRegex(UserError, r'sp\.model: .*--pad_id=0 --unk_id=1 --bos_id=2 --eos_id=3'):
            SentencePieceVocab.from_file(model())
        with self.assertRaisesRegex(UserError, 'is not a SentencePiece model'):
            SentencePieceVocab.from_file(self.list_file('no', 'model'))


class SubwordsTest(unittest.TestCase):
    def test_continuation_marks_are_glued(self):
        vocab = Vocab(['neu@@', 'es', 'Haus', 'bau@@'])
        self.assertEqual(vocab.subword, 'bpe')
        self.assertEqual(vocab.decode(vocab.encode('neu@@ es Haus')), 'neues Haus')
        self.assertEqual(vocab.decode(vocab.encode('Haus neu@@ bau@@')), 'Haus neubau')

    def test_padding_within_text_is_kept_where_asked(self):
        for tokens, text in ((['neu@@', 'es'], 'neu<pad> es'), (['\u2581neu', 'es'], 'neu<pad>es'),
                             (['neu', 'es'], 'neu <pad> es')):  # fmt: skip
            vocab = Vocab(tokens)
            ids = [2, 4, 0, 5, 3]
            self.assertEqual(vocab.decode(ids, keep_pad=True), text)
            self.assertEqual(vocab.decode(ids), vocab.decode([4, 5]))

    def test_pieces_are_glued(self):
        vocab = Vocab(['\u2581neu', 'es', '\u2581Haus', '\u2581'])
        self.assertEqual(vocab.subword, 'spm')
        self.assertEqual(vocab.decode(vocab.encode('\u2581neu es \u2581Haus \u2581')), 'neues Haus')

    def test_marks_stay_when_told_so(self):
        vocab = Vocab(['neu@@', 'es'], subword='none')
        self.assertEqual(vocab.decode(vocab.encode('neu@@ es')), 'neu@@ es')


class FlowSeqGoldenTest(unittest.TestCase):
    def test_vocabulary_and_joined_lines_are_those_of_the_reference(self):
        folder = shared_folder('goldens', 'flowseq')
        vocab = Vocab.from_file(os.path.join(folder, 'variant1_checkpoint', 'vocab', 'de.vocab'))
        self.assertEqual(
            (vocab.pad_id, vocab.unk_id, vocab.bos_id, vocab.eos_id, vocab.subword), (0, 1, None, 2, 'bpe')
        )
        raw = list(read_lines(os.path.join(folder, 'variant1_translations', 'test.argmax.raw')))
        want = list(read_lines(os.path.join(folder, 'variant1_translations', 'test.argmax.order.mt')))
        self.assertEqual(len(raw), len(want))
        for line, joined in zip(raw, want):
            if '<unk>' in line or '<pad>' in line:
                continue
            text = vocab.decode(vocab.encode(line))
            if joined != '@@':  # the reference loses lines that end in a mark; ours drops the mark
                self.assertEqual(text, joined)
            self.assertNotIn('@@', text)


if __name__ == '__main__':
    unittest.main()
