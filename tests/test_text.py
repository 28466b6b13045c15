"""Lines in and out: what ends a line, what is replaced, what is refused."""

import gzip
import io
import os
import tempfile
import unittest

from sequencing.errors import UserError
from sequencing.text import encode_line, one_line, read_lines, read_parallel, write_lines
from tests.support import seeds


class LinesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name, data):
        path = os.path.join(self.folder, name)
        with open(path, 'wb') as file:
            file.write(data)
        return path

    def lines(self, data, name='text'):
        return list(read_lines(self.path(name, data)))

    def test_only_a_line_feed_ends_a_line(self):
        text = 'a\x85b\u2028c\u2029d\x0ce\x0bf\x1cg\rh'
        self.assertEqual(self.lines(f'{text}\nlast\n'.encode()), [text, 'last'])

    def test_carriage_return_before_the_line_feed_is_dropped_once(self):
        self.assertEqual(self.lines(b'a\r\n\r\nb\r\r\nc\r'), ['a', '', 'b\r', 'c'])

    def test_last_line_needs_no_line_feed_and_blank_lines_count(self):
        self.assertEqual(self.lines(b'\n \na'), ['', ' ', 'a'])
        self.assertEqual(self.lines(b'\n \na\n'), ['', ' ', 'a'])
        self.assertEqual(self.lines(b''), [])

    def test_byte_order_mark_is_dropped_at_the_start_only(self):
        self.assertEqual(self.lines(b'\xef\xbb\xbfa\n\xef\xbb\xbfb\n'), ['a', '\ufeffb'])

    def test_invalid_utf8_and_nul_are_replaced_and_counted_by_line(self):
        reader = read_lines(self.path('text', b'fine\nbad \xff\xfe!\nn\0ul\0\ncut \xc3\nfine \xc3\xa4\n'))
        self.assertEqual(list(reader), ['fine', 'bad \ufffd\ufffd!', 'n\ufffdul\ufffd', 'cut \ufffd', 'fine ä'])
        self.assertEqual((reader.replaced, reader.lines), (3, 5))

    def test_lines_that_cross_chunks_are_whole(self):
        chance = seeds(self)
        lines = ['ä€𝄞' * chance.choice([0, 1, 7, 100_000]) + str(i) for i in range(60)]
        data = '\r\n'.join(lines).encode()
        self.assertEqual(self.lines(data), lines)
        self.assertEqual(self.lines(gzip.compress(data), 'text.gz'), lines)

    def test_lines_of_a_pipe_come_as_soon_as_they_are_there(self):
        reading, writing = os.pipe()
        with open(reading, 'rb') as source, open(writing, 'wb', buffering=0) as sink:
            lines = read_lines(source)
            for line in ('first', 'second'):
                sink.write(line.encode() + b'\n')
                self.assertEqual(next(lines), line)  # would wait for ever if more had to come first

    def test_damaged_gzip_is_refused_with_the_line(self):
        whole = gzip.compress(b'line\n' * 5)
        for data in (whole[:-9], b'no gzip at all'):
            with self.assertRaisesRegex(UserError, r'bad\.gz, after line \d'):
                self.lines(data, 'bad.gz')

    def test_folder_and_missing_file_are_refused_by_name(self):
        with self.assertRaisesRegex(UserError, 'is a folder'):
            read_lines(self.folder)
        with self.assertRaisesRegex(UserError, 'nothing: no such file'):
            read_lines(os.path.join(self.folder, 'nothing'))

    def test_parallel_lines(self):
        src, trg = self.path('src', b'a\n\nc'), self.path('trg', b'A\nB\r\n\xff\n')
        reader = read_parallel([src, trg])
        self.assertEqual(list(reader), [('a', 'A'), ('', 'B'), ('c', '\ufffd')])
        self.assertEqual(reader.replaced, 1)

    def test_unequal_and_empty_files_are_refused_with_file_and_line(self):
        short, longer = self.path('short', b'a\nb\n'), self.path('longer', b'a\nb\nc\nd\ne\n')
        empty = self.path('empty', b'')
        for pair in ([short, longer], [longer, short], [longer, longer, short]):
            with self.assertRaisesRegex(UserError, r'longer, line 3: .*short ends after line 2.*longer has 5'):
                list(read_parallel(pair))
        with self.assertRaisesRegex(UserError, r'empty, line 1: the file is empty'):
            list(read_parallel([empty, empty]))
        with self.assertRaisesRegex(UserError, r'empty, line 1: the file is empty, while .*short has 2 lines'):
            list(read_parallel([short, empty]))

    def test_output_is_one_line_whatever_it_holds(self):
        self.assertEqual(one_line('a\nb\r\nc\rd\u2028e'), 'a b c d\u2028e')
        self.assertEqual(encode_line('a\n\ud800'), b'a ?\n')

    def test_written_lines_are_read_back(self):
        lines = ['', ' ä ', 'x\u2028y\x85z', '']
        for name in ('out', 'out.gz'):
            path = os.path.join(self.folder, name)
            write_lines(path, lines)
            self.assertEqual(list(read_lines(path)), lines)
        stream = io.BytesIO()
        write_lines(stream, lines)
        self.assertEqual(stream.getvalue().count(b'\n'), len(lines))

    def test_a_file_that_fails_half_way_leaves_the_old_one(self):
        path = self.path('out', b'old\n')

        def failing():
            yield 'new'
            raise RuntimeError('half way')

        with self.assertRaises(RuntimeError):
            write_lines(path, failing())
        self.assertEqual(list(read_lines(path)), ['old'])
        self.assertEqual(os.listdir(self.folder), ['out'])

    def test_a_place_that_cannot_be_written_is_refused(self):
        with self.assertRaisesRegex(UserError, 'cannot be written'):
            write_lines(os.path.join(self.folder, 'no', 'out'), ['a'])
        with self.assertRaisesRegex(UserError, 'is a folder'):
            write_lines(self.folder, ['a'])


if __name__ == '__main__':
    unittest.main()
