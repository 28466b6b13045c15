"""Shuffles files that translate each other line by line, all in the same way, in bounded memory."""

import contextlib
import os
import random
import struct
import sys
import tempfile

from sequencing import cli
from sequencing.cli import note
from sequencing.errors import UserError
from sequencing.text import check_file, encode_line, output_file, read_parallel, scratch_beside

USAGE = """
Shuffles files that belong together line by line, all in the same way, in bounded memory.

  python tools/shuffle_data.py --input $DATA/train.en,$DATA/train.de --output $DATA/mixed.en,$DATA/mixed.de
  python tools/shuffle_data.py --input $DATA/train.en.gz,$DATA/train.de.gz --output a.gz,b.gz --seed 7 --memory 1000
      what ends in .gz is compressed, in and out

All text goes through scratch files: an uncompressed copy of it, and 12 bytes a line, lie beside the first output
meanwhile. --memory is kept to, but for a single line that is larger.

The order is decided by the seed and the number of lines, and by nothing else. Files may be shuffled in place.
"""
HEADER = struct.Struct('<dI')  # of a record: its key, the bytes that follow
MOST_BUCKETS = 64  # files open at once
OF_A_RECORD = 160  # bytes of memory beside its text, while a bucket is sorted
OVERHEAD = 4  # memory that text takes, relative to its bytes: a guess, and what proves larger is divided again
COMPRESSION = 6  # how much larger a .gz is when it is read: a guess too


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_list('input', [], 'text files, parted by commas', **own)
    absl.DEFINE_list('output', [], 'as many files to write', **own)
    absl.DEFINE_integer('seed', 1, 'decides the order', **own)
    absl.DEFINE_integer('memory', 500, 'memory for the text that is sorted, in MB', lower_bound=1, **own)


def main(argv=None):
    return cli.run(shuffle, define_flags, argv, USAGE, in_place=True)


def shuffle(flags):
    cli.require(flags, 'input', 'output')
    if len(flags.output) != len(flags.input):
        raise UserError(f'--input names {len(flags.input)} files and --output {len(flags.output)}: name as many.')
    if len({os.path.abspath(path) for path in flags.output}) < len(flags.output):
        raise UserError('--output names a file twice.')
    for path in flags.input:
        check_file(path, 'text file')
    memory, reader = flags.memory * 10**6, read_parallel(flags.input)
    with scratch_beside(flags.output) as scratch:
        buckets = scatter(keyed(reader, flags.seed), 0.0, 1.0, bucket_count(flags.input, memory), scratch)
        with contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(output_file(path)) for path in flags.output]
            parts = sum(gather(bucket, memory, scratch, outputs) for bucket in buckets)
    if reader.replaced:
        note(f'{reader.replaced} lines held bytes that are not UTF-8; each became U+FFFD.')
    note(f'{reader.lines} lines of {len(flags.input)} files shuffled with seed {flags.seed}, in {parts} parts')
    return 0


def bucket_count(paths, memory):
    """How many parts are small enough for `memory` bytes, one at a time."""
    size = sum(os.path.getsize(path) * (COMPRESSION if path.endswith('.gz') else 1) for path in paths)
    return min(MOST_BUCKETS, 1 + OVERHEAD * size // memory)


class Bucket:
    """A file of the records whose keys lie from `low` to below `high`."""

    def __init__(self, low, high, path):
        self.low, self.high, self.path = low, high, path
        self.records = self.size = 0

    def open(self):
        self.file = open(self.path, 'wb')
        return self.file

    def write(self, key, record):
        self.file.write(HEADER.pack(key, len(record)))
        self.file.write(record)
        self.records, self.size = self.records + 1, self.size + HEADER.size + len(record)

    def read(self):
        """Yields its keys and records, in the order in which they were written."""
        with open(self.path, 'rb') as file:
            while header := file.read(HEADER.size):
                key, size = HEADER.unpack(header)
                yield key, file.read(size)


def keyed(reader, seed):
    """Gives every line (of all files together) a random key: yields keys from 0 to below 1, and records."""
    draw = random.Random(seed)
    for row in reader:
        yield draw.random(), b''.join(map(encode_line, row))


def scatter(records, low, high, count, folder):
    """Writes records with keys from `low` to below `high` into `count` buckets of keys alike, which it returns."""
    buckets = []
    for i in range(count):
        handle, path = tempfile.mkstemp(dir=folder)
        os.close(handle)
        buckets.append(Bucket(low + (high - low) * i / count, low + (high - low) * (i + 1) / count, path))
    with contextlib.ExitStack() as stack:
        for bucket in buckets:
            stack.enter_context(bucket.open())
        for key, record in records:
            buckets[min(int((key - low) / (high - low) * count), count - 1)].write(key, record)
    return buckets


def gather(bucket, memory, folder, outputs):
    """Writes a bucket's lines in the order of their keys, line i of a record to output i, and deletes the bucket.

    One that is too large for `memory` bytes is divided first.

    Returns:
      in how many parts it was written.
    """
    needed = bucket.size + OF_A_RECORD * bucket.records
    if needed > memory and bucket.records > 1:
        count = min(MOST_BUCKETS, 2 * needed // memory)
        smaller = scatter(bucket.read(), bucket.low, bucket.high, count, folder)
        os.unlink(bucket.path)
        return sum(gather(part, memory, folder, outputs) for part in smaller)
    for _, record in sorted(bucket.read(), key=lambda item: item[0]):
        for output, line in zip(outputs, record.split(b'\n')):
            output.write(line + b'\n')
    os.unlink(bucket.path)
    return 1


if __name__ == '__main__':
    sys.exit(main(sys.argv))
