"""tools/filter_data.py and tools/shuffle_data.py as commands."""

import collections
import gzip
import os
import unittest

from tests.support import FolderTest, run_tool
from tools import filter_data, shuffle_data


class ToolTest(FolderTest):
    def write(self, name, content):
        content = content if isinstance(content, bytes) else content.encode('utf-8')
        with (gzip.open if name.endswith('.gz') else open)(self.path(name), 'wb') as file:
            file.write(content)
        return self.path(name)

    def read(self, name):
        with (gzip.open if name.endswith('.gz') else open)(self.path(name), 'rb') as file:
            return file.read().decode('utf-8')

    def check_refused(self, tool, cases):
        before = sorted(os.listdir(self.folder))
        for flags, message in cases:
            code, _, said = run_tool(tool.main, *flags)
            self.assertEqual(code, 2, said)
            self.assertIn(message, said)
        self.assertEqual(sorted(os.listdir(self.folder)), before)


class FilterTest(ToolTest):
    def filter(self, pairs, *flags, ends=('', '')):
        """Runs the tool on pairs of lines; returns the pairs that it kept and what it said."""
        for side in (0, 1):
            self.write(f'in{side}{ends[0]}', ''.join(pair[side] + '\n' for pair in pairs))
        names = [f'out{side}{ends[1]}' for side in (0, 1)]
        code, _, said = run_tool(
            filter_data.main, f'--src={self.path(f"in0{ends[0]}")}', f'--trg={self.path(f"in1{ends[0]}")}',
            f'--output_src={self.path(names[0])}', f'--output_trg={self.path(names[1])}', *flags,
        )  # fmt: skip
        self.assertEqual(code, 0, said)
        sides = [self.read(name).split('\n')[:-1] for name in names]
        self.assertEqual(len(sides[0]), len(sides[1]))
        return list(zip(*sides)), said

    def test_every_reason_is_found_and_counted(self):
        good = [('the house is small', 'das Haus ist klein'), ('7 + 3', '7 + 3'), ('a\u2028dog', 'ein Hund')]
        bad = [
            ('blank', (' ', 'das')), ('blank', ('the', '')), ('damaged', ('the \ufffd', 'das')),
            ('length', ('w ' * 13, 'w ' * 9)), ('length', ('w ' * 9, 'w ' * 13)), ('ratio', ('a b c d e f g', 'a b')),
            ('script', ('дом', 'das Haus')), ('script', ('the cat', '这只猫')), ('copy', ('The  Cat', 'the cat ')),
            ('duplicate', good[0]), ('duplicate', (f' {good[0][0]}', f'{good[0][1]} ')),
        ]  # fmt: skip
        pairs = [('first', 'erster'), *[pair for _, pair in bad[:-2]]]
        self.draw.shuffle(pairs)
        pairs = good[:2] + pairs + [good[2]] + [pair for _, pair in bad[-2:]]
        kept, said = self.filter(pairs, '--max_length=12', '--max_ratio=3', '--src_script=Latin', '--trg_script=Latin')
        self.assertEqual(kept, [*good[:2], ('first', 'erster'), good[2]])
        self.assertIn(f'4 of {len(pairs)} pairs kept', said)
        for reason, count in collections.Counter(reason for reason, _ in bad).items():
            self.assertIn(f'{count} {reason}', said)

    def test_what_is_allowed_is_kept(self):
        pairs = [('a', 'a'), ('a', 'b'), ('a', 'b'), ('the', ' '.join('w' * 40)), ('猫', 'cat'), ('猫が', 'cats')]
        off = ('--max_length=0', '--max_ratio=0', '--keep_copies', '--duplicates=keep')
        self.assertEqual(self.filter(pairs, *off)[0], pairs)
        self.assertEqual(self.filter(pairs, *off[:2])[0], [pairs[1], *pairs[3:]])
        self.assertEqual(self.filter(pairs, *off[:3], '--duplicates=source')[0], [pairs[0], *pairs[3:]])
        self.assertEqual(self.filter(pairs, *off[:3], '--duplicates=target')[0], [*pairs[:2], *pairs[3:]])
        han = self.filter(pairs, *off[:3], '--src_script=Han,Hiragana', ends=('.gz', '.gz'))[0]
        self.assertEqual(han, pairs[4:])
        self.assertEqual(self.filter(pairs, *off[:3], '--src_script=Han', '--min_script=0.6')[0], [pairs[4]])
        japanese = [('コーヒー', 'coffee'), ('ラーメン', 'noodles'), ('々', 'again'), ('кофе', 'coffee')]
        self.assertEqual(self.filter(japanese, '--src_script=Katakana', '--min_script=1')[0], japanese[:2])
        self.assertEqual(self.filter(japanese, '--src_script=Han', '--min_script=1')[0], japanese[2:3])
        characters = self.filter(pairs, '--unit=characters', '--min_length=2', '--max_ratio=2')[0]
        self.assertEqual(characters, [pairs[5]])

    def test_duplicates_are_those_of_a_set(self):
        pairs = [tuple(''.join(self.draw.choices('ab', k=5)) + side for side in 'xy') for _ in range(900)]
        self.assertEqual(self.filter(pairs)[0], list(dict.fromkeys(pairs)))
        self.assertEqual(self.filter([('same', 'gleich')] * 5)[0], [('same', 'gleich')])

    def test_lines_end_at_line_feeds_alone(self):
        src = self.write('src', b'\xef\xbb\xbfone\r\ntwo\x0b2\nthree \xff\nfour')
        trg = self.write('trg', 'eins\nzwei\u0085\ndrei\nvier\n')
        files = [f'--src={src}', f'--trg={trg}', f'--output_src={src}', f'--output_trg={trg}']
        code, _, said = run_tool(filter_data.main, *files)
        self.assertEqual(code, 0, said)
        self.assertIn('3 of 4 pairs kept; dropped: 1 damaged', said)
        self.assertEqual((self.read('src'), self.read('trg')), ('one\ntwo\x0b2\nfour\n', 'eins\nzwei\u0085\nvier\n'))

    def test_mistakes_are_refused_and_leave_nothing(self):
        src, trg, short = (self.write(name, 'a b\n' * lines) for name, lines in (('s', 3), ('t', 3), ('short', 2)))
        outputs = f'--output_src={self.path("x")}', f'--output_trg={self.path("y")}'
        self.check_refused(filter_data, (
            ((f'--trg={trg}', *outputs), '--src is required'),
            ((f'--src={src}', f'--trg={short}', *outputs), 'line 3: has no counterpart'),
            ((f'--src={src}', f'--trg={self.path("none")}', *outputs), 'no such file'),
            ((f'--src={src}', f'--trg={trg}', *outputs, '--src_script=Latn1'), 'no script of this name'),
            ((f'--src={src}', f'--trg={trg}', outputs[0], f'--output_trg={self.path("x")}'), 'the same file'),
            ((f'--src={src}', f'--trg={trg}', *outputs, '--min_length=9', '--max_length=8'), 'is below'),
            ((f'--src={src}', f'--trg={trg}', *outputs, '--unit=bytes'), 'bytes'),
            ((f'--src={src}', f'--trg={trg}', *outputs, '--max_ratio=0.8'), 'would drop every pair'),
            ((f'--src={src}', f'--trg={short}', outputs[0], f'--output_trg={self.path("none/y")}'), 'none/y: cannot'),
            ((f'--src={src}', f'--trg={short}', outputs[0], f'--output_trg={self.folder}'), 'is a folder'),
        ))  # fmt: skip


class ShuffleTest(ToolTest):
    def shuffle(self, inputs, outputs, *flags):
        paths = [','.join(self.path(name) for name in names) for names in (inputs, outputs)]
        code, _, said = run_tool(shuffle_data.main, f'--input={paths[0]}', f'--output={paths[1]}', *flags)
        self.assertEqual(code, 0, said)
        return said

    def test_files_are_shuffled_alike_by_seed_alone(self):
        count = 20_000
        self.write('a', ''.join(f'{i} {"x" * 30}\n' for i in range(count)))
        self.write('b.gz', ''.join(f'{-i}\n' for i in range(count)))
        said = self.shuffle(['a', 'b.gz'], ['a1.gz', 'b1'], '--memory=1')
        self.assertIn(f'{count} lines of 2 files', said)
        self.assertNotIn('in 1 parts', said)
        first, second = self.read('a1.gz').split('\n')[:-1], self.read('b1').split('\n')[:-1]
        order = [int(line.split()[0]) for line in first]
        self.assertEqual(sorted(order), list(range(count)))
        self.assertEqual([-int(line) for line in second], order)
        self.assertLess(sum(a == b for a, b in enumerate(order)), 30)  # 1 is to be expected
        self.assertLess(abs(sum(order[: count // 2]) / (count // 2) - count / 2), 0.05 * count)
        self.shuffle(['a', 'b.gz'], ['a2', 'b2'])  # in one part
        self.assertEqual(self.read('a2'), self.read('a1.gz'))
        self.shuffle(['a', 'b.gz'], ['a', 'b2'], f'--seed={self.draw.randrange(2, 10**6)}')
        self.assertNotEqual(self.read('a'), self.read('a2'))
        self.assertEqual(sorted(self.read('a').split('\n')), sorted(self.read('a2').split('\n')))

    def test_memory_decides_the_parts_and_not_the_order(self):
        count = 13_000
        self.write('short', ''.join(f'{i}\n' for i in range(count)))
        self.assertIn('in 1 parts', self.shuffle(['short'], ['whole']))
        # So short that each takes far more memory than bytes: what seemed one part is divided.
        said = self.shuffle(['short'], ['divided'], '--memory=1')
        self.assertGreater(int(said.split()[-2]), count * shuffle_data.OF_A_RECORD // 10**6)
        self.assertEqual(self.read('divided'), self.read('whole'))
        self.assertEqual(sorted(map(int, self.read('whole').split())), list(range(count)))
        self.write('long', ''.join(f'{i} {"x" * 400_000}\n' for i in range(7)))
        said = self.shuffle(['long'], ['long2'], '--memory=1')  # two to a part, and one where one is not enough
        self.assertEqual(sorted(self.read('long2').split('\n')), sorted(self.read('long').split('\n')))
        self.assertEqual(sorted(os.listdir(self.folder)), ['divided', 'long', 'long2', 'short', 'whole'])

    def test_all_orders_are_as_likely(self):
        self.write('a', '1\n2\n3\n')
        found = collections.Counter()
        for seed in range(150):
            self.shuffle(['a'], ['b'], f'--seed={seed}')
            found[self.read('b')] += 1
        self.assertEqual(len(found), 6)
        self.assertGreater(min(found.values()), 10)  # 25 each are to be expected; the seeds are always these

    def test_lines_end_at_line_feeds_alone(self):
        self.write('a', b'one\r\n\n two\x0c2\xff')
        said = self.shuffle(['a'], ['b'])
        self.assertEqual(sorted(self.read('b').split('\n')[:-1]), ['', ' two\x0c2\ufffd', 'one'])
        self.assertIn('1 lines held bytes that are not UTF-8', said)

    def test_mistakes_are_refused_and_leave_nothing(self):
        a, b = self.write('a', 'x\n' * 3), self.write('b', 'x\n' * 4)
        out = self.path('out')
        self.check_refused(shuffle_data, (
            ((f'--output={out}',), '--input is required'),
            ((f'--input={a},{b}', f'--output={out}'), '--input names 2 files and --output 1'),
            ((f'--input={a},{a}', f'--output={out},{out}'), 'names a file twice'),
            ((f'--input={a},{b}', f'--output={out},{out}2'), 'has no counterpart'),
            ((f'--input={a}', f'--output={self.path("none/out")}'), 'cannot be written'),
            ((f'--input={a},{b}', f'--output={out},{self.path("none/out")}'), 'none/out: cannot be written'),
            ((f'--input={self.folder}', f'--output={out}'), 'is a folder'),
        ))  # fmt: skip


if __name__ == '__main__':
    unittest.main()
