"""Lines of text in and out, the same way everywhere.

Only `\\n` ends a line; a `\\r` before it is dropped, and U+0085, U+2028 or a form feed are ordinary characters. A byte
order mark at the start is dropped. Invalid UTF-8 and NUL become U+FFFD and are counted, so that it can be said.
"""

import contextlib
import gzip
import os
import tempfile
import zlib

from sequencing.errors import UserError

_CHUNK = 1 << 20  # bytes read at a time
_BOM = '\ufeff'


class LineReader:
    """An iterator over the lines of a file, with no more than a chunk of it in memory.

    Args:
      open_file: called for the binary file when the first line is asked for; close: whether to close it in the end.
    Attributes:
      name: of the file, for messages.
      lines: how many lines have been given out.
      replaced: how many of them held bytes that are not UTF-8, or NUL.
    """

    def __init__(self, open_file, name, close=True):
        self.name, self.lines, self.replaced = name, 0, 0
        self._iterator = self._read(open_file, close)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._iterator)

    def close(self):
        """Closes the file early; nothing more comes."""
        self._iterator.close()

    def _read(self, open_file, close):
        file = open_file()
        read = getattr(file, 'read1', file.read)  # read1 gives what a pipe holds without waiting for more
        rest = []
        try:
            while True:
                try:
                    chunk = read(_CHUNK)
                except (OSError, EOFError, zlib.error) as error:
                    raise UserError(f'{self.name}, after line {self.lines}: cannot be read: {error}.') from error
                if not chunk:
                    break
                head, newline, tail = chunk.rpartition(b'\n')
                if newline:
                    yield from self._lines(b''.join([*rest, head]).split(b'\n'))
                    rest = []
                rest.append(tail)
            rest = b''.join(rest)
            if rest:
                yield from self._lines([rest])
        finally:
            if close:
                file.close()

    def _lines(self, raw):
        for line in raw:
            if line.endswith(b'\r'):
                line = line[:-1]
            try:
                text = line.decode('utf-8')
                replaced = '\0' in text
            except UnicodeDecodeError:
                text, replaced = line.decode('utf-8', errors='replace'), True
            if replaced:
                self.replaced += 1
                text = text.replace('\0', '\ufffd')
            if self.lines == 0 and text.startswith(_BOM):
                text = text[1:]
            self.lines += 1
            yield text


def check_file(path, what='file'):
    """Refuses a path that is no readable file.

    Raises:
      UserError: nothing there, a folder, or not readable.
    """
    if os.path.isdir(path):
        raise UserError(f'{path} is a folder; the {what} has to be a file.')
    if not os.path.exists(path):
        folder = os.path.dirname(path) or '.'
        missing = '' if os.path.isdir(folder) else f' (there is no folder {folder} either)'
        raise UserError(f'{path}: no such file{missing}. It was given as the {what}.')
    if not os.access(path, os.R_OK):
        raise UserError(f'{path}: no permission to read it. It was given as the {what}.')


def read_lines(source, what='text file'):
    """Iterates over the lines of a text.

    Args:
      source: path (decompressed when it ends in `.gz`), or a binary file, whose lines come as soon as they are there.
      what: how messages call the file.
    Returns:
      `LineReader`.
    Raises:
      UserError: the file is missing, a folder, unreadable, or, while iterating, a damaged `.gz`.
    """
    if hasattr(source, 'read'):
        return LineReader(lambda: source, getattr(source, 'name', what), close=False)
    path = os.fspath(source)
    check_file(path, what)
    return LineReader(lambda: gzip.open(path, 'rb') if path.endswith('.gz') else open(path, 'rb'), path)


class ParallelReader:
    """An iterator over tuples of lines, line n of every file; `replaced` counts as in `LineReader`, over all files."""

    def __init__(self, paths, what='text file'):
        self._readers = [read_lines(path, what) for path in paths]
        self.lines = 0

    @property
    def replaced(self):
        return sum(reader.replaced for reader in self._readers)

    def __iter__(self):
        return self

    def __next__(self):
        row = [next(reader, None) for reader in self._readers]
        ended = [line is None for line in row]
        if not any(ended):
            self.lines += 1
            return tuple(row)
        if not all(ended):
            self._refuse_unequal(ended)
        if self.lines == 0:
            raise UserError(f'{self._readers[0].name}, line 1: the file is empty.')
        for reader in self._readers:
            reader.close()
        raise StopIteration

    def _refuse_unequal(self, ended):
        short = self._readers[ended.index(True)].name
        longer = self._readers[ended.index(False)]
        for _ in longer:  # to the end, to tell how many there are
            pass
        if self.lines == 0:
            raise UserError(f'{short}, line 1: the file is empty, while {longer.name} has {longer.lines} lines.')
        raise UserError(
            f'{longer.name}, line {self.lines + 1}: has no counterpart, as {short} ends after line {self.lines} and '
            f'{longer.name} has {longer.lines}. Line n of one file has to translate line n of the other.'
        )


def read_parallel(paths, what='text file'):
    """Iterates over tuples of lines of files that translate each other line by line.

    Raises:
      UserError: as `read_lines`; while iterating, an empty file, or a file that ends before another.
    """
    return ParallelReader(paths, what)


def one_line(text):
    """`text` as a single output line: line ends inside it become spaces."""
    return text.replace('\r\n', ' ').replace('\n', ' ').replace('\r', ' ')


def encode_line(text):
    """One output line as bytes, ending in the only `\\n` it holds."""
    return one_line(text).encode('utf-8', errors='replace') + b'\n'


def write_lines(target, lines):
    """Writes one line for each text.

    Args:
      target: path (compressed when it ends in `.gz`), which appears complete or not at all; or a binary file.
      lines: iterable of str.
    """
    if hasattr(target, 'write'):
        target.writelines(encode_line(line) for line in lines)
        target.flush()
        return
    with output_file(target) as file:
        file.writelines(encode_line(line) for line in lines)


@contextlib.contextmanager
def output_file(path):
    """A binary file to write, compressed when its name ends in `.gz`, that appears complete or not at all."""
    with atomic_file(path) as raw:
        if os.fspath(path).endswith('.gz'):
            with gzip.GzipFile('', 'wb', fileobj=raw, mtime=0) as file:
                yield file
        else:
            yield raw


@contextlib.contextmanager
def scratch_beside(paths):
    """A folder for scratch files beside the first of the files to write, which is gone when the `with` block ends.

    Raises:
      UserError: a file's folder is not there or cannot be written, which is told before the block; in the block, what
        could not be read or written.
    """
    for path in paths:
        folder = os.path.dirname(os.path.abspath(path))
        if os.path.isdir(path):
            raise UserError(f'{path} is a folder; name the file to write.')
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise UserError(f'{path}: cannot be written; give the name of a file in a folder that exists.')
    folder = os.path.dirname(os.path.abspath(paths[0]))
    try:
        with tempfile.TemporaryDirectory(prefix='.scratch.', dir=folder) as scratch:
            yield scratch
    except OSError as error:
        raise UserError(f'{error.filename or folder}: cannot be read or written: {error.strerror}.') from error


class atomic_file:
    """A binary file to write that takes its name only when the `with` block ends well."""

    def __init__(self, path):
        self.path = os.fspath(path)

    def __enter__(self):
        folder, name = os.path.split(self.path)
        if os.path.isdir(self.path):
            raise UserError(f'{self.path} is a folder; name the file to write.')
        try:
            handle, self._partial = tempfile.mkstemp(prefix=f'.{name}.', suffix='.partial', dir=folder or '.')
        except OSError as error:
            raise UserError(f'{self.path}: cannot be written: {error.strerror}.') from error
        self._file = os.fdopen(handle, 'wb')
        return self._file

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                os.fchmod(self._file.fileno(), 0o666 & ~_umask())
        finally:
            self._file.close()
            if kind is None:
                os.replace(self._partial, self.path)
            else:
                os.unlink(self._partial)


def _umask():
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
