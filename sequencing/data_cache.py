"""Parallel text as ids on disk: encoded once, keyed by content, read in place.

A corpus is a folder of three files: `ids` (of every kept pair the source, then the target, without EOS), `index` (where
each pair starts and how long its two sides are) and `meta.json` (what was read, kept and dropped). The folder takes its
name when it is complete, so it is whole wherever it exists.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import time
from typing import NamedTuple

import numpy as np

from sequencing.cli import note
from sequencing.errors import UserError
from sequencing.text import atomic_file, check_file, read_parallel

try:
    import fcntl
except ImportError:  # no file locks here: two processes may both do the work, and the result is the same
    fcntl = None

_FORMAT = 1
_INDEX = np.dtype([('start', '<i8'), ('src', '<i4'), ('trg', '<i4')])
_CHUNK_PAIRS, _CHUNK_CHARACTERS = 20_000, 4_000_000  # encoded at a time, whichever is reached first
_TOUCHED = 512  # pairs looked up before their pages are given back: at most 64 KiB of pages each
_LONGEST_COUNTED = 2000  # the last bin of the histograms holds all that is longer
DROPPED = ('empty', 'source too long', 'target too long', 'length ratio')  # the first that applies is counted


class LengthRules(NamedTuple):
    """Which pairs are kept, and the form that targets take."""

    max_src: int  # tokens of the source, EOS included
    max_trg: int  # tokens of the target as the model sees it, EOS included
    max_ratio: float  # of the longer side to the shorter, in tokens without EOS; 0 for any
    length_unit: int = 0  # 0: targets end in one EOS; u > 0: targets are filled with EOS to a multiple of u

    def src_length(self, tokens):
        """Length of a source in a batch, from its tokens without EOS."""
        return tokens + 1

    def trg_length(self, tokens):
        """Length of a target in a batch, from its tokens without EOS."""
        unit = self.length_unit
        return np.maximum(-(-tokens // unit), 1) * unit if unit else tokens + 1

    def fate(self, src_tokens, trg_tokens):
        """For each pair 0 if it is kept, else 1 + its place in `DROPPED`."""
        shorter, longer = np.minimum(src_tokens, trg_tokens), np.maximum(src_tokens, trg_tokens)
        tests = (
            shorter == 0,
            self.src_length(src_tokens) > self.max_src,
            self.trg_length(trg_tokens) > self.max_trg,
            (longer > self.max_ratio * shorter) & (self.max_ratio > 0),
        )
        return np.select(tests, range(1, 1 + len(tests)), 0)


class EncodedCorpus:
    """A corpus on disk, opened for reading; `size` pairs, of which any can be had at once.

    What is read is mapped into memory and given back right after, so that the process stays small; the system keeps
    in its page cache what fits.
    """

    def __init__(self, folder, rules):
        with open(os.path.join(folder, 'meta.json'), encoding='utf-8') as file:
            self.meta = json.load(file)
        self.size, self.rules = self.meta['kept'], rules
        self.key = os.path.basename(folder)
        self._ids, self._map_of_ids = _map(os.path.join(folder, 'ids'), np.dtype(self.meta['dtype']))
        self._index, self._map_of_index = _map(os.path.join(folder, 'index'), _INDEX)

    def rows(self, pairs):
        """Index rows of `[n]` pairs: fields `start`, `src` and `trg`, the last two in tokens without EOS."""
        found = np.empty(len(pairs), _INDEX)
        for first in range(0, len(pairs), _TOUCHED):
            found[first : first + _TOUCHED] = self._index[pairs[first : first + _TOUCHED]]
            _give_back(self._map_of_index)
        return found

    def tokens(self, rows):
        """Ids of index rows: for each the source, then the target, all in a row, int32."""
        lengths = rows['src'] + rows['trg']
        ends = np.cumsum(lengths)
        shifts = rows['start'] - ends + lengths  # from a place in the result to one in the file
        found = np.empty(lengths.sum(), np.int32)
        for first in range(0, len(rows), _TOUCHED):
            some = slice(first, first + _TOUCHED)
            inside = slice(ends[first] - lengths[first], ends[some][-1])
            places = np.arange(inside.start, inside.stop) + np.repeat(shifts[some], lengths[some])
            found[inside] = self._ids[places]
            _give_back(self._map_of_ids)
        return found


def _map(path, dtype):
    with open(path, 'rb') as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype), mapped


def _give_back(mapped):
    if hasattr(mmap, 'MADV_DONTNEED'):
        mapped.madvise(mmap.MADV_DONTNEED)


def open_corpus(cache_dir, src_file, trg_file, src_vocab, trg_vocab, rules, threads=0, say=None):
    """The encoded form of two parallel files, from the cache or made now.

    Args:
      cache_dir: folder of the cache, made if it is not there.
      src_file, trg_file: paths of text.
      src_vocab, trg_vocab: `Vocab`s.
      rules: `LengthRules`.
      threads: of the encoding; 0 for all cores.
      say: called with a line of progress; None prints it on standard error.
    Returns:
      `EncodedCorpus`.
    Raises:
      UserError: a file is missing, empty or shorter than the other, or no pair is kept.
    """
    for path in (src_file, trg_file):
        check_file(path, 'training text')
    say = say or note
    try:
        os.makedirs(cache_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f'data.cache_dir {cache_dir}: the folder cannot be made: {error.strerror}.') from error
    with _locked(cache_dir) as alone:
        key = _key(cache_dir, src_file, trg_file, src_vocab, trg_vocab, rules)
        folder = os.path.join(cache_dir, key)
        if not os.path.isdir(folder):
            if alone:
                _sweep(cache_dir)
            partial = f'{folder}.{os.getpid()}.{time.time_ns()}.partial'
            os.mkdir(partial)
            try:
                _encode(partial, src_file, trg_file, src_vocab, trg_vocab, rules, threads, say)
                os.rename(partial, folder)
            except OSError:
                if not os.path.isdir(folder):  # where there are no locks, another process may have been first
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return EncodedCorpus(folder, rules)


@contextlib.contextmanager
def _locked(folder):
    """Holds the lock of a folder; gives False where locks do not work. A killed process leaves none behind."""
    try:
        file = open(os.path.join(folder, 'lock'), 'ab')
    except OSError as error:
        raise UserError(f'data.cache_dir {folder}: cannot be written: {error.strerror}.') from error
    with file:
        try:
            if fcntl is None:
                raise OSError('no file locks')
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def _sweep(cache_dir):
    """Removes what killed processes left half done."""
    for name in os.listdir(cache_dir):
        if name.endswith('.partial'):
            shutil.rmtree(os.path.join(cache_dir, name), ignore_errors=True)


def _key(cache_dir, src_file, trg_file, src_vocab, trg_vocab, rules):
    parts = (_FORMAT, content_hash(src_file, cache_dir), content_hash(trg_file, cache_dir),
             src_vocab.content_key(), trg_vocab.content_key(), *rules)  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def content_hash(path, cache_dir):
    """A hash of a file's bytes. It is noted in the cache, and taken from there while size and time stay the same."""
    notes_path = os.path.join(cache_dir, 'hashes.json')
    try:
        with open(notes_path, encoding='utf-8') as file:
            notes = json.load(file)
    except (OSError, ValueError):
        notes = {}
    name, stat = os.path.realpath(path), os.stat(path)
    state = [stat.st_size, stat.st_mtime_ns]
    if name in notes and notes[name][:2] == state:
        return notes[name][2]
    digest = hashlib.blake2b(digest_size=16)
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if time.time_ns() - stat.st_mtime_ns > 2_000_000_000:  # a younger file might change again at the same time stamp
        notes[name] = [*state, digest.hexdigest()]
        with atomic_file(notes_path) as file:
            file.write(json.dumps(notes, indent=1).encode())
    return digest.hexdigest()


def _encode(folder, src_file, trg_file, src_vocab, trg_vocab, rules, threads, say):
    """Writes the three files of a corpus into `folder`."""
    dtype = np.dtype('<u2' if max(src_vocab.size, trg_vocab.size) <= 1 << 16 else '<i4')
    counts = np.zeros(1 + len(DROPPED), np.int64)  # kept, then dropped by reason
    tokens = np.zeros(2, np.int64)  # of kept sources and targets, as they stand in batches
    histograms = np.zeros((2, _LONGEST_COUNTED + 1), np.int64)
    reader = read_parallel((src_file, trg_file), 'training text')
    next_start, next_report = 0, 1_000_000
    with open(os.path.join(folder, 'ids'), 'wb') as ids_file, open(os.path.join(folder, 'index'), 'wb') as index_file:
        for src_lines, trg_lines in _chunks(reader):
            src, src_tokens = src_vocab.encode_flat(src_lines, threads)
            trg, trg_tokens = trg_vocab.encode_flat(trg_lines, threads)
            fate = rules.fate(src_tokens, trg_tokens)
            counts += np.bincount(fate, minlength=len(counts))
            for side, lengths in enumerate((rules.src_length(src_tokens), rules.trg_length(trg_tokens))):
                shown = np.minimum(lengths[fate != 1], _LONGEST_COUNTED)
                histograms[side] += np.bincount(shown, minlength=_LONGEST_COUNTED + 1)
                tokens[side] += lengths[fate == 0].sum()
            ids, rows = _interleave(src, src_tokens, trg, trg_tokens, fate == 0, next_start)
            ids_file.write(ids.astype(dtype).tobytes())
            index_file.write(rows.tobytes())
            next_start += len(ids)
            if reader.lines >= next_report:
                say(f'encoded {reader.lines:,} pairs of {src_file}, {trg_file}')
                next_report += 1_000_000
        for file in (ids_file, index_file):
            file.flush()
            os.fsync(file.fileno())
    meta = dict(format=_FORMAT, src_file=os.path.abspath(src_file), trg_file=os.path.abspath(trg_file),
                read=reader.lines, kept=int(counts[0]), replaced=reader.replaced,
                dropped=dict(zip(DROPPED, counts[1:].tolist())),
                src_tokens=int(tokens[0]), trg_tokens=int(tokens[1]), dtype=dtype.str,
                src_lengths=np.trim_zeros(histograms[0], 'b').tolist(),
                trg_lengths=np.trim_zeros(histograms[1], 'b').tolist())  # fmt: skip
    if reader.replaced:
        say(f'{src_file}, {trg_file}: {reader.replaced} lines hold bytes that are not UTF-8, or NUL; U+FFFD is read.')
    if not meta['kept']:
        reasons = ', '.join(f'{count} {reason}' for reason, count in meta['dropped'].items() if count)
        raise UserError(
            f'{src_file}, {trg_file}: all {reader.lines} pairs would be dropped ({reasons}). The limits are '
            f'data.max_src_length {rules.max_src}, data.max_trg_length {rules.max_trg} and data.max_length_ratio '
            f'{rules.max_ratio}.'
        )
    with atomic_file(os.path.join(folder, 'meta.json')) as file:
        file.write(json.dumps(meta).encode())


def _chunks(reader):
    src_lines, trg_lines, characters = [], [], 0
    for src, trg in reader:
        src_lines.append(src)
        trg_lines.append(trg)
        characters += len(src) + len(trg)
        if len(src_lines) >= _CHUNK_PAIRS or characters >= _CHUNK_CHARACTERS:
            yield src_lines, trg_lines
            src_lines, trg_lines, characters = [], [], 0
    if src_lines:
        yield src_lines, trg_lines


def _interleave(src, src_tokens, trg, trg_tokens, kept, start):
    """Ids of the kept pairs, source then target, and their index rows."""
    lengths = np.stack([src_tokens, trg_tokens], axis=1).reshape(-1)  # source, target, source, ...
    ids = np.empty(len(src) + len(trg), np.int32)
    is_src = np.repeat(np.tile([True, False], len(kept)), lengths)
    ids[is_src], ids[~is_src] = src, trg
    ids = ids[np.repeat(np.repeat(kept, 2), lengths)]
    rows = np.empty(int(kept.sum()), _INDEX)
    rows['src'], rows['trg'] = src_tokens[kept], trg_tokens[kept]
    ends = np.cumsum(rows['src'].astype(np.int64) + rows['trg'])
    rows['start'] = start + np.concatenate([[0], ends[:-1]]) if len(ends) else 0
    return ids, rows
