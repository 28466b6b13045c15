"""The encoded corpus: what is kept, where it lies, and that it is never half there."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import unittest

import numpy as np

from sequencing.data_cache import DROPPED, LengthRules, content_hash, open_corpus
from sequencing.errors import UserError
from sequencing.vocab import Vocab
from tests.support import seeds

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORDS = [f'w{i}' for i in range(50)]


class CacheTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder, self.cache, self.said = folder.name, os.path.join(folder.name, 'cache'), []
        self.src_vocab, self.trg_vocab = Vocab(WORDS), Vocab(WORDS[::-1])

    def write(self, name, lines):
        path = os.path.join(self.folder, name)
        with open(path, 'wb') as file:
            file.write(''.join(line + '\n' for line in lines).encode('utf-8', 'surrogateescape'))
        return path

    def open(self, src, trg, rules=LengthRules(100, 100, 0.0), cache=None):  # noqa: B008 - a NamedTuple does not change
        return open_corpus(cache or self.cache, src, trg, self.src_vocab, self.trg_vocab, rules, say=self.said.append)

    def pairs_of(self, corpus):
        rows = corpus.rows(np.arange(corpus.size))
        flat, pairs, at = corpus.tokens(rows).tolist(), [], 0
        for row in rows:
            middle, end = at + row['src'], at + row['src'] + row['trg']
            pairs.append((flat[at:middle], flat[middle:end]))
            at = end
        self.assertEqual(at, len(flat))
        return pairs

    def random_lines(self, chance, count, longest=9):
        return [' '.join(chance.choices([*WORDS, 'unknown'], k=chance.randrange(longest))) for _ in range(count)]

    def test_pairs_are_the_encoded_lines_in_any_order(self):
        chance = seeds(self)
        src, trg = self.random_lines(chance, 1300), self.random_lines(chance, 1300)
        corpus = self.open(self.write('src', src), self.write('trg', trg))
        want = [(self.src_vocab.encode(s).tolist(), self.trg_vocab.encode(t).tolist())
                for s, t in zip(src, trg) if s and t]  # fmt: skip
        self.assertEqual(self.pairs_of(corpus), want)
        some = np.array([chance.randrange(corpus.size) for _ in range(700)])
        rows = corpus.rows(some)
        flat = [token for pair in some for side in want[pair] for token in side]
        self.assertEqual(corpus.tokens(rows).tolist(), flat)

    def test_wide_vocabularies_keep_their_ids(self):
        self.trg_vocab = Vocab([f't{i}' for i in range(70_000)])
        corpus = self.open(self.write('src', ['w1 w2']), self.write('trg', ['t69999 t0']))
        self.assertEqual(self.pairs_of(corpus), [([5, 6], [70_003, 4])])

    def test_pairs_are_dropped_by_rule_and_counted(self):
        rules = LengthRules(max_src=6, max_trg=5, max_ratio=2.5)
        lines = (
            ('w1', 'w1'),  # kept
            ('', 'w1'),  # empty
            ('w1', '  '),  # empty
            ('w1 ' * 5, 'w1 ' * 4),  # kept: with EOS 6 and 5
            ('w1 ' * 6, 'w1 ' * 4),  # source too long
            ('w1 ' * 5, 'w1 ' * 5),  # target too long
            ('w1 ' * 5, 'w1 w2'),  # kept: ratio 2.5
            ('w1 ' * 3, 'w1'),  # ratio 3
            ('w1', 'w1 ' * 3),  # ratio 3
        )
        corpus = self.open(self.write('src', [s for s, _ in lines]), self.write('trg', [t for _, t in lines]), rules)
        self.assertEqual(corpus.meta['dropped'], dict(zip(DROPPED, (2, 1, 1, 2))))
        self.assertEqual((corpus.meta['read'], corpus.size), (9, 3))
        self.assertEqual((corpus.meta['src_tokens'], corpus.meta['trg_tokens']), (2 + 6 + 6, 2 + 5 + 3))
        self.assertEqual(corpus.meta['trg_lengths'], [0, 0, 2, 1, 1, 2, 1])  # of the seven pairs that are not empty

    def test_flow_targets_are_measured_in_units(self):
        rules = LengthRules(max_src=50, max_trg=8, max_ratio=0.0, length_unit=4)
        self.assertEqual(rules.trg_length(np.array([0, 1, 4, 5, 8, 9])).tolist(), [4, 4, 4, 8, 8, 12])
        trg = ['w1 ' * count for count in (1, 4, 5, 8, 9, 0)]
        corpus = self.open(self.write('src', ['w1'] * 6), self.write('trg', trg), rules)
        self.assertEqual((corpus.size, corpus.meta['trg_tokens']), (4, 4 + 4 + 8 + 8))
        self.assertEqual(corpus.meta['dropped'], dict(zip(DROPPED, (1, 0, 1, 0))))

    def test_nothing_left_is_refused_with_the_reasons(self):
        src, trg = self.write('src', ['w1 ' * 9, '']), self.write('trg', ['w1', 'w1'])
        with self.assertRaisesRegex(UserError, r'all 2 pairs would be dropped \(1 empty, 1 source too long\)'):
            self.open(src, trg, LengthRules(5, 5, 0.0))
        self.assert_nothing_half_done()

    def test_bad_files_are_refused_and_leave_nothing(self):
        good = self.write('good', ['w1', 'w2', 'w3'])
        for bad, message in (
            (self.write('short', ['w1']), r'good, line 2: has no counterpart, as .*short ends after line 1'),
            (self.write('empty', []), r'empty, line 1: the file is empty'),
            (self.folder, 'is a folder'),
            (os.path.join(self.folder, 'missing'), 'missing: no such file'),
        ):
            for pair in ((good, bad), (bad, good)):
                with self.assertRaisesRegex(UserError, message):
                    self.open(*pair)
        self.assert_nothing_half_done()
        with self.assertRaisesRegex(UserError, 'data.cache_dir .* cannot be made'):
            self.open(good, good, cache=os.path.join(good, 'cache'))

    def test_replaced_lines_are_counted_and_said(self):
        corpus = self.open(self.write('src', ['w1 \udcff', 'w2\0']), self.write('trg', ['w1', 'w2']))
        self.assertEqual(corpus.meta['replaced'], 2)
        self.assertRegex(self.said[0], r'2 lines hold bytes that are not UTF-8')

    def assert_nothing_half_done(self):
        left = [name for name in os.listdir(self.cache) if name not in ('lock', 'hashes.json')]
        self.assertEqual(left, [])

    def corpora(self):
        return [name for name in os.listdir(self.cache) if os.path.isdir(os.path.join(self.cache, name))]

    def test_cache_is_used_while_nothing_changed_and_only_then(self):
        src, trg = self.write('src', ['w1', 'w2']), self.write('trg', ['w3', 'w4'])
        self.open(src, trg)
        (name,) = self.corpora()
        index = os.path.join(self.cache, name, 'index')
        before = os.stat(index).st_mtime_ns
        self.open(src, trg)
        self.assertEqual(os.stat(index).st_mtime_ns, before)
        self.open(src, trg, LengthRules(100, 99, 0.0))
        self.assertEqual(len(self.corpora()), 2)
        self.src_vocab = Vocab(WORDS[:7])
        self.open(src, trg)
        self.assertEqual(len(self.corpora()), 3)
        self.write('src', ['w2', 'w1'])  # as long as before, and written in the same moment
        self.assertEqual(self.pairs_of(self.open(src, trg))[0][0], self.src_vocab.encode('w2').tolist())
        self.assertEqual(len(self.corpora()), 4)

    def test_hash_is_noted_for_files_that_are_old_enough_to_be_done(self):
        os.makedirs(self.cache)
        src = self.write('src', ['w1'])
        notes = os.path.join(self.cache, 'hashes.json')
        first = content_hash(src, self.cache)
        self.assertFalse(os.path.exists(notes))
        os.utime(src, (1, 1))
        self.assertEqual(content_hash(src, self.cache), first)
        with open(notes) as file:
            self.assertEqual(list(json.load(file).values()), [[3, 1_000_000_000, first]])
        with open(notes, 'w') as file:
            file.write('{"half')  # damaged notes are no reason to stop
        self.assertEqual(content_hash(src, self.cache), first)

    def run_build(self, more=''):
        """A process that encodes src and trg of this test, and prints how many pairs there are."""
        code = textwrap.dedent(f"""
            import sys, time
            sys.path.insert(0, {ROOT!r})
            from sequencing import data_cache
            from sequencing.vocab import Vocab
            words = [f'w{{i}}' for i in range(50)]
            {more}
            corpus = data_cache.open_corpus({self.cache!r}, {self.folder!r} + '/src', {self.folder!r} + '/trg',
                                            Vocab(words), Vocab(words[::-1]), data_cache.LengthRules(100, 100, 0.0))
            print(corpus.size, flush=True)
        """)
        return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)

    def test_a_killed_process_leaves_nothing_that_is_taken_for_a_corpus(self):
        lines = self.random_lines(seeds(self), 50)
        src, trg = self.write('src', lines), self.write('trg', lines[::-1])
        slow = 'data_cache.os.fsync = lambda file: (print("written", flush=True), time.sleep(60))'
        process = self.run_build(slow)
        self.assertEqual(process.stdout.readline(), b'written\n')  # the files are there, under another name
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        (partial,) = self.corpora()
        self.assertTrue(partial.endswith('.partial'))
        corpus = self.open(src, trg)
        (name,) = self.corpora()  # what was left half done is swept away
        self.assertFalse(name.endswith('.partial'))
        want = [(self.src_vocab.encode(s).tolist(), self.trg_vocab.encode(t).tolist())
                for s, t in zip(lines, lines[::-1]) if s and t]  # fmt: skip
        self.assertEqual(self.pairs_of(corpus), want)

    def test_racing_processes_agree(self):
        lines = self.random_lines(seeds(self), 3000)
        src, trg = self.write('src', lines), self.write('trg', lines)
        for locks in ('', 'data_cache.fcntl = None'):  # also where files cannot be locked
            self.cache = os.path.join(self.folder, f'cache {locks}')
            processes = [self.run_build(locks) for _ in range(3)]
            sizes = [int(process.communicate(timeout=60)[0]) for process in processes]
            self.assertEqual(sizes, [self.open(src, trg).size] * 3)
            self.assertEqual(len(self.corpora()), 1)

    def test_an_open_corpus_outlives_its_files(self):
        corpus = self.open(self.write('src', ['w1']), self.write('trg', ['w2']))
        for name in self.corpora():
            for file in os.listdir(os.path.join(self.cache, name)):
                os.unlink(os.path.join(self.cache, name, file))
        self.assertEqual(self.pairs_of(corpus), [([5], self.trg_vocab.encode('w2').tolist())])


if __name__ == '__main__':
    unittest.main()
