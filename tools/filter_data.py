"""Drops sentence pairs that do training no good, and tells how many for which reason."""

import contextlib
import hashlib
import os
import sys

import numpy as np
import regex

from sequencing import cli
from sequencing.cli import note
from sequencing.errors import UserError
from sequencing.text import encode_line, output_file, read_parallel, scratch_beside

USAGE = """
Drops sentence pairs that do training no good, from both files alike. Memory holds no text, and a few bytes a pair while
duplicates are looked for; scratch files of up to 25 bytes a pair lie beside the first output.

  python tools/filter_data.py --src $DATA/raw.en --trg $DATA/raw.de \\
      --output_src $DATA/train.en --output_trg $DATA/train.de
  python tools/filter_data.py --src raw.zh.gz --trg raw.en.gz --output_src zh.gz --output_trg en.gz \\
      --unit characters --max_ratio 8 --src_script Han --trg_script Latin

A pair is dropped for the first of these reasons that it gives:
  blank      a side is empty
  damaged    a side holds U+FFFD, or bytes that are not UTF-8
  length     a side is longer than --max_length or shorter than --min_length
  ratio      a side is more than --max_ratio times as long as the other
  script     less than --min_script of a side's letters are of its script, or of those that Unicode counts to several
  copy       the target is the source, but for case and white space, and holds letters
  duplicate  the same pair (or source, or target) came before
"""
REASONS = ('kept', 'blank', 'damaged', 'length', 'ratio', 'script', 'copy', 'duplicate')
DUPLICATE = REASONS.index('duplicate')
LETTERS = regex.compile(r'\p{L}')
BUCKETS = 64  # parts in which duplicates are looked for, one at a time; as many files are open at once
RECORD = np.dtype([('digest', '<u8', 2), ('line', '<i8')])


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('src', '', 'source text', **own)
    absl.DEFINE_string('trg', '', 'target text', **own)
    absl.DEFINE_string('output_src', '', 'source text to write', **own)
    absl.DEFINE_string('output_trg', '', 'target text to write', **own)
    absl.DEFINE_enum('unit', 'words', ['words', 'characters'], 'what lengths count', **own)
    absl.DEFINE_integer('min_length', 1, 'shortest side that is kept', lower_bound=1, **own)
    absl.DEFINE_integer('max_length', 250, 'longest side that is kept; 0 for any', lower_bound=0, **own)
    absl.DEFINE_float('max_ratio', 5.0, 'most times that a side may be as long as the other, 1 or more; 0 for any',
                      lower_bound=0, **own)  # fmt: skip
    absl.DEFINE_list('src_script', [], 'Unicode scripts of the source, parted by commas, as in Han,Latin; none for '
                     'any', **own)  # fmt: skip
    absl.DEFINE_list('trg_script', [], 'the same of the target', **own)
    absl.DEFINE_float('min_script', 0.5, "least share of a side's letters that are of its scripts", lower_bound=0,
                      upper_bound=1, **own)  # fmt: skip
    absl.DEFINE_bool('keep_copies', False, 'keep pairs whose target is the source', **own)
    absl.DEFINE_enum('duplicates', 'pair', ['pair', 'source', 'target', 'keep'], 'what may not come twice, or keep all',
                     **own)  # fmt: skip


def main(argv=None):
    return cli.run(filter_files, define_flags, argv, USAGE, in_place=True)


def filter_files(flags):
    cli.require(flags, 'src', 'trg', 'output_src', 'output_trg')
    if os.path.abspath(flags.output_src) == os.path.abspath(flags.output_trg):
        raise UserError('--output_src and --output_trg name the same file.')
    if flags.max_length and flags.max_length < flags.min_length:
        raise UserError(f'--max_length {flags.max_length} is below --min_length {flags.min_length}.')
    if 0 < flags.max_ratio < 1:
        raise UserError(f'--max_ratio {flags.max_ratio} would drop every pair: it is at least 1, or 0 for any.')
    judge = Judge(flags)
    paths, outputs = (flags.src, flags.trg), (flags.output_src, flags.output_trg)
    with scratch_beside(outputs) as scratch:
        verdicts = os.path.join(scratch, 'verdicts')
        buckets = [] if flags.duplicates == 'keep' else [os.path.join(scratch, str(i)) for i in range(BUCKETS)]
        judge_lines(paths, judge, verdicts, buckets, flags.duplicates)
        for bucket in buckets:
            mark_duplicates(bucket, verdicts)
        counts = write_kept(paths, outputs, verdicts)
    dropped = ', '.join(f'{count} {reason}' for reason, count in zip(REASONS[1:], counts[1:]) if count)
    note(f'{counts[0]} of {sum(counts)} pairs kept; dropped: {dropped or "none"}')
    return 0


class Judge:
    """Tells why a pair is dropped, duplicates apart."""

    def __init__(self, flags):
        self.flags = flags
        self.measure = len if flags.unit == 'characters' else lambda line: len(line.split())
        self.scripts = [pattern_of(flags.src_script, '--src_script'), pattern_of(flags.trg_script, '--trg_script')]

    def __call__(self, src, trg):
        """The place in `REASONS` of what becomes of a pair of lines."""
        return REASONS.index(self.reason(src.strip(), trg.strip()))

    def reason(self, src, trg):
        flags = self.flags
        if not src or not trg:
            return 'blank'
        if '\ufffd' in src or '\ufffd' in trg:
            return 'damaged'
        short, long = sorted((self.measure(src), self.measure(trg)))
        if short < flags.min_length or (flags.max_length and long > flags.max_length):
            return 'length'
        if flags.max_ratio and long > flags.max_ratio * short:
            return 'ratio'
        if any(script and self.foreign(line, script) for line, script in zip((src, trg), self.scripts)):
            return 'script'
        if not flags.keep_copies and src.casefold().split() == trg.casefold().split() and LETTERS.search(src):
            return 'copy'
        return 'kept'

    def foreign(self, line, script):
        letters = LETTERS.findall(line)
        own = sum(1 for letter in letters if script.match(letter))
        return own < self.flags.min_script * len(letters)


def pattern_of(scripts, flag):
    """A pattern of the letters of some scripts, those of several scripts included; None where none are named.

    Raises:
      UserError: Unicode has no such script.
    """
    for script in scripts:
        try:
            regex.compile(rf'\p{{scx={script}}}')
        except regex.error:
            raise UserError(
                f'{flag} {script}: Unicode has no script of this name; it has Latin, Cyrillic, Greek, Arabic, Hebrew, '
                'Devanagari, Han, Hiragana, Katakana, Hangul and others.'
            ) from None
    return regex.compile('|'.join(rf'\p{{scx={script}}}' for script in scripts)) if scripts else None


def judge_lines(paths, judge, verdicts, buckets, unique):
    """Writes a byte a pair, its place in `REASONS`, and the digests of those to keep into buckets of digests alike."""
    with contextlib.ExitStack() as stack:
        written = stack.enter_context(open(verdicts, 'wb'))
        files = [stack.enter_context(open(bucket, 'wb')) for bucket in buckets]
        for number, (src, trg) in enumerate(read_parallel(paths)):
            verdict = judge(src, trg)
            written.write(bytes([verdict]))
            if not verdict and files:
                said = {'pair': f'{src.strip()}\n{trg.strip()}', 'source': src.strip(), 'target': trg.strip()}[unique]
                digest = hashlib.blake2b(said.encode('utf-8', 'surrogatepass'), digest_size=16).digest()
                files[digest[0] % BUCKETS].write(digest + number.to_bytes(8, 'little'))


def mark_duplicates(bucket, verdicts):
    """Changes the verdict of all but the first of the pairs with one digest."""
    records = np.fromfile(bucket, RECORD)
    os.unlink(bucket)
    if not records.size:
        return
    # Records lie in the order of their lines, and the first of equal digests is the one that `unique` tells.
    _, first = np.unique(records['digest'], axis=0, return_index=True)
    again = np.delete(records['line'], first)
    if again.size:
        marks = np.memmap(verdicts, np.uint8, 'r+')
        marks[again] = DUPLICATE
        marks.flush()


def write_kept(paths, outputs, verdicts):
    """Writes the pairs that are kept; returns how many pairs each of `REASONS` has."""
    counts = [0] * len(REASONS)
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(open(verdicts, 'rb'))
        files = [stack.enter_context(output_file(path)) for path in outputs]
        for row in read_parallel(paths):
            verdict = told.read(1)[0]
            counts[verdict] += 1
            if not verdict:
                for file, line in zip(files, row):
                    file.write(encode_line(line))
    return counts


if __name__ == '__main__':
    sys.exit(main(sys.argv))
