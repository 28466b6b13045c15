"""tools/build_vocab.py as a command: what it writes can be named in a config, and mistakes get one message."""

import contextlib
import io
import os
import tempfile
import unittest

from sequencing.vocab import SentencePieceVocab, Vocab
from tests.support import run_tool
from tools import build_vocab


class BuildVocabTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.text = self.path('text')
        with open(self.text, 'w', encoding='utf-8') as file:
            file.write('ein Hund sieht das Haus\ndas Haus ist groß\n' * 20)

    def path(self, name):
        return os.path.join(self.folder, name)

    def run_tool(self, *flags):
        """The exit code and what was said on standard error."""
        code, _, said = run_tool(build_vocab.main, *flags)
        return code, said

    def test_models_and_lists_are_written_and_read_back(self):
        for kind, size in (('unigram', 30), ('bpe', 40)):
            code, said = self.run_tool(
                f'--input={self.text}', f'--output={self.path("m")}', f'--kind={kind}', f'--size={size}'
            )
            self.assertEqual(code, 0, said)
            vocab = SentencePieceVocab.from_file(self.path('m'))
            self.assertEqual(vocab.decode(vocab.encode('ein Haus ist groß')), 'ein Haus ist groß')
            self.assertIn(f'{vocab.size} tokens', said)
        for kind, delimiter in (('words', ' '), ('characters', '')):
            output = self.path(f'new folder/{kind}')
            self.assertEqual(
                self.run_tool(f'--input={self.text},{self.text}', f'--output={output}', f'--kind={kind}')[0], 0
            )
            vocab = Vocab.from_file(output, delimiter)
            self.assertEqual((vocab.pad_id, vocab.unk_id, vocab.bos_id, vocab.eos_id), (0, 1, 2, 3))
            self.assertEqual(vocab.decode(vocab.encode('das Haus')), 'das Haus')

    def test_mistakes_are_refused_with_one_message_and_leave_nothing(self):
        before = sorted(os.listdir(self.folder))
        for flags, message in (
            ((f'--output={self.path("m")}',), '--input is required'),
            ((f'--input={self.text}',), '--output is required'),
            ((f'--input={self.path("none")}', f'--output={self.path("m")}'), 'none: no such file'),
            ((f'--input={self.folder}', f'--output={self.path("m")}'), 'is a folder'),
            ((f'--input={os.devnull}', f'--output={self.path("m")}'), 'there is no text'),
            ((f'--input={self.text}', f'--output={self.folder}'), 'is a folder'),
            ((f'--input={self.text}', f'--output={self.path("m")}', '--size=5'), 'no unigram vocabulary of size 5'),
            ((f'--input={self.text}', f'--output={self.path("m")}', '--kind=letters'), 'letters'),
            ((f'--inputs={self.text}',), 'inputs'),
        ):
            code, said = self.run_tool(*flags)
            self.assertEqual(code, 2, flags)
            self.assertIn(message, said)
            self.assertNotIn('Traceback', said)
        self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_help_shows_an_example(self):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            self.assertEqual(build_vocab.main(['build_vocab.py', '--help']), 0)
        self.assertIn('python tools/build_vocab.py --input=', shown.getvalue())


if __name__ == '__main__':
    unittest.main()
