"""Makes a lexical shortlist from parallel text, by IBM model 1 over the pieces of a model.

    t(y | x): how often source piece x gives target piece y
    E:  a[j, i] = t(y[j] | x[i]) / sum over i' of t(y[j] | x[i']), for each pair of sentences, x[0] being nothing
    M:  t(y | x) = sum of a where x and y meet / the same over all y

Reference: Brown et al., 1993, The mathematics of statistical machine translation, section 4.1
"""

import itertools
import os
import sys

import numpy as np

from sequencing import cli
from sequencing.text import read_parallel, write_lines

USAGE = """
Makes a lexical shortlist for nmt_infer.py --shortlist from parallel text.

  python tools/make_shortlist.py --model_dir runs/en2de --src train.en.gz --trg train.de.gz \\
      --output_file en2de.lex
  python nmt_infer.py --model_dir runs/en2de --test_src test.en --shortlist en2de.lex

Each line of the output is a source piece, a target piece and t(target | source), parted by tabs.
"""
CHUNK = 2000  # sentence pairs whose meetings are counted together


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('model_dir', '', 'model folder whose pieces are meant', **own)
    absl.DEFINE_string('src', '', 'source text, .gz too', **own)
    absl.DEFINE_string('trg', '', 'target text, line by line', **own)
    absl.DEFINE_string('output_file', '', 'file to write', **own)
    absl.DEFINE_integer('best', 100, 'target pieces kept for a source piece', lower_bound=1, **own)
    absl.DEFINE_integer('iterations', 5, 'of expectation maximisation', lower_bound=1, **own)
    absl.DEFINE_integer('lines', 100_000, 'pairs of lines read, from the top', lower_bound=1, **own)


def main(argv=None):
    return cli.run(make, define_flags, argv, USAGE)


def make(flags):
    cli.require(flags, 'model_dir', 'src', 'trg', 'output_file')
    cli.quiet_tensorflow()
    from sequencing.model_folder import read_config
    from sequencing.translator import load_vocabs

    vocabs = load_vocabs(read_config(flags.model_dir), flags.model_dir)
    lines = list(itertools.islice(read_parallel([flags.src, flags.trg]), flags.lines))
    pairs = list(zip(*[vocab.encode_lines(side) for vocab, side in zip(vocabs, map(list, zip(*lines)))]))
    sources, targets, probs = ibm_model_1(pairs, vocabs[1].size, flags.iterations)
    write_lines(flags.output_file, best_pairs(sources, targets, probs, *vocabs, flags.best))
    cli.note(f'{os.path.abspath(flags.output_file)}: from {len(pairs)} pairs of lines')
    return 0


def ibm_model_1(pairs, size, iterations):
    """Learns t(y | x) for every x and y that meet in a pair of sentences.

    Args:
      pairs: list of id arrays of source and target.
      size: ids of the target.
    Returns:
      source ids (-1 stands for nothing), target ids, t, each `[n]`.
    """
    chunks = [meetings(pairs[i : i + CHUNK], size) for i in range(0, len(pairs), CHUNK)]
    keys = np.unique(np.concatenate([np.unique(found) for found, _ in chunks]))
    chunks = [(np.searchsorted(keys, found).astype(np.int32), counts) for found, counts in chunks]
    sources = keys // size - 1
    t = np.ones(len(keys))
    for _ in range(iterations):
        total = np.zeros(len(keys))
        for places, counts in chunks:
            shares = t[places]
            of_token = np.add.reduceat(shares, np.cumsum(counts) - counts) if len(counts) else shares
            total += np.bincount(places, shares / np.repeat(of_token, counts), len(keys))
        t = total / np.bincount(sources + 1, total)[sources + 1]
    return sources, keys % size, t


def meetings(pairs, size):
    """Which pieces meet: keys `(source + 1) * size + target`, target token by target token, and how many each has."""
    keys, counts = [np.zeros([0], np.int64)], [np.zeros([0], np.int64)]
    for source, target in pairs:
        with_nothing = np.append(0, source.astype(np.int64) + 1)
        keys.append((with_nothing * size + target[:, np.newaxis]).ravel())
        counts.append(np.full([len(target)], len(with_nothing)))
    return np.concatenate(keys), np.concatenate(counts)


def best_pairs(sources, targets, probs, src_vocab, trg_vocab, best):
    """The lines of the file: the likeliest targets of each source piece, special tokens left out."""
    special = [{v.pad_id, v.unk_id, v.bos_id, v.eos_id} for v in (src_vocab, trg_vocab)]
    rank, last = 0, None
    for i in np.lexsort((-probs, sources)):
        source, target = int(sources[i]), int(targets[i])
        if source < 0 or source in special[0] or target in special[1]:
            continue
        rank, last = (rank + 1, source) if source == last else (1, source)
        pieces = src_vocab.tokens[source], trg_vocab.tokens[target]
        if rank <= best and '\t' not in ''.join(pieces):
            yield f'{pieces[0]}\t{pieces[1]}\t{probs[i]:.6g}'


if __name__ == '__main__':
    sys.exit(main(sys.argv))
