"""Shuffles files that translate each other line by line, all in the same way, however large they are."""

import contextlib
import os
import random
import struct
import sys
import tempfile

from sequencing import cli
from sequencing.cli import note
from sequencing.errors import UserError
from sequencing.text import check_file, encode_line, output_file, read_parallel

USAGE = """
Shuffles files that belong together line by line, all in the same way, in bounded memory.

  python tools/shuffle_data.py --input $DATA/train.en,$DATA/train.de --output $DATA/mixed.en,$DATA/mixed.de
  python tools/shuffle_data.py --input $DATA/train.en.gz,$DATA/train.de.gz --output a.gz,b.gz --seed 7 --memory 1000
      what ends in .gz is compressed, in and out

The order is decided by the seed and the number of lines, and by nothing else. Files may be shuffled in place.
"""
HEADER = struct.Struct('<dI')  # of a record: its key, the bytes that follow
MOST_BUCKETS = 256  # files open at once
OVERHEAD = 4  # memory that a record takes, relative to its bytes in a bucket
COMPRESSION = 6  # how much larger a .gz is when it is read


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_list('input', [], 'text files, parted by commas', **own)
    absl.DEFINE_list('output', [], 'as many files to write', **own)
    absl.DEFINE_integer('seed', 1, 'decides the order', **own)
    absl.DEFINE_integer('memory', 500, 'memory to use, in MB', lower_bound=1, **own)


def main(argv=None):
    return cli.run(shuffle, define_flags, argv, USAGE)


def shuffle(flags):
    cli.require(flags, 'input', 'output')
    if len(flags.output) != len(flags.input):
        raise UserError(f'--input names {len(flags.input)} files and --output {len(flags.output)}: name as many.')
    if len({os.path.abspath(path) for path in flags.output}) < len(flags.output):
        raise UserError('--output names a file twice.')
    for path in flags.input:
        check_file(path, 'text file')
    count = bucket_count(flags.input, flags.memory * 10**6)
    folder = os.path.dirname(os.path.abspath(flags.output[0]))
    try:
        with tempfile.TemporaryDirectory(prefix='.shuffle.', dir=folder) as scratch:
            buckets = [os.path.join(scratch, str(i)) for i in range(count)]
            lines, replaced = scatter(flags.input, buckets, flags.seed)
            with contextlib.ExitStack() as stack:
                outputs = [stack.enter_context(output_file(path)) for path in flags.output]
                for bucket in buckets:
                    gather(bucket, outputs)
                    os.unlink(bucket)
    except OSError as error:
        raise UserError(f'{folder}: cannot be written: {error.strerror}.') from error
    if replaced:
        note(f'{replaced} lines held bytes that are not UTF-8; each became U+FFFD.')
    note(f'{lines} lines of {len(flags.input)} files shuffled with seed {flags.seed}, in {count} parts')
    return 0


def bucket_count(paths, memory):
    """How many parts are small enough for `memory` bytes, one at a time."""
    size = sum(os.path.getsize(path) * (COMPRESSION if path.endswith('.gz') else 1) for path in paths)
    return min(MOST_BUCKETS, 1 + OVERHEAD * size // memory)


def scatter(paths, buckets, seed):
    """Gives every line (of all files together) a random key, and writes it to the bucket of keys like it.

    Returns:
      how many lines there were, and how many of them held invalid bytes.
    """
    draw, reader = random.Random(seed), read_parallel(paths)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(bucket, 'wb')) for bucket in buckets]
        for row in reader:
            key, record = draw.random(), b''.join(map(encode_line, row))
            file = files[int(key * len(files))]
            file.write(HEADER.pack(key, len(record)))
            file.write(record)
    return reader.lines, reader.replaced


def gather(bucket, outputs):
    """Writes a bucket's lines in the order of their keys, line i of a record to output i."""
    with open(bucket, 'rb') as file:
        content = file.read()
    places, at = [], 0
    while at < len(content):
        key, size = HEADER.unpack_from(content, at)
        at += HEADER.size
        places.append((key, at, at + size))
        at += size
    for _, start, end in sorted(places):
        for output, line in zip(outputs, content[start:end].split(b'\n')):
            output.write(line + b'\n')


if __name__ == '__main__':
    sys.exit(main(sys.argv))
