"""Lexical shortlists: which target tokens a sentence may need, judging by its source tokens.

A shortlist is a text file with a pair a line, `source_piece target_piece [number]`, parted by tabs or else by spaces
(`.gz` too): the table that `fast_align -p` writes and Sockeye reads, source, target, log-probability. The number, a
probability or its logarithm, only tells which pairs of a source piece are better; without it the first ones are.
(Marian's lexicons have the target first: `awk '{print $2, $1, $3}'` turns them.) `tools/make_shortlist.py` makes one.

Reference: Jean et al., 2015, section 3.3 (candidate lists), https://arxiv.org/abs/1412.2007
"""

import numpy as np

from sequencing.errors import UserError
from sequencing.structures import AllowedTokens
from sequencing.text import read_lines


class Shortlist:
    """The target tokens that each source token allows.

    Args:
      sources, targets: `[n]` int, ids of pairs.
      scores: `[n]` float, larger is better; equal ones count in their order.
      src_vocab, trg_vocab: `Vocab`s of an autoregressive model.
      best: how many targets each source token allows.
      frequent: how many tokens at the head of the target vocabulary are always allowed: vocabularies made here begin
        with special tokens, and then the frequent ones.
      unknown: pairs that were left out because the model does not know their pieces.
    """

    def __init__(self, sources, targets, scores, src_vocab, trg_vocab, best=100, frequent=100, unknown=0):
        self.unknown = unknown
        sources, targets = np.asarray(sources, np.int64), np.asarray(targets, np.int64)
        order = np.lexsort((-np.asarray(scores, float), sources))
        sources, targets = sources[order], targets[order]
        rank = np.arange(len(sources)) - np.searchsorted(sources, sources)
        sources, self._targets = sources[rank < best], targets[rank < best]
        self._starts = np.searchsorted(sources, np.arange(src_vocab.size + 1))
        special = [trg_vocab.pad_id, trg_vocab.unk_id, trg_vocab.bos_id, trg_vocab.eos_id]
        self._always = np.zeros([trg_vocab.size], bool)
        self._always[special] = True
        self._always[len(special) : len(special) + frequent] = True

    @classmethod
    def from_file(cls, path, src_vocab, trg_vocab, best=100, frequent=100):
        """Reads a file.

        Raises:
          UserError: with file and line: a line that is no pair; or there is no pair that the model knows.
        """
        src_ids, trg_ids = ({piece: i for i, piece in enumerate(vocab.tokens)} for vocab in (src_vocab, trg_vocab))
        pairs, unknown = [], 0
        for number, line in enumerate(read_lines(path, '--shortlist'), start=1):
            source, target, score = _pair(line, path, number)
            if source in src_ids and target in trg_ids:
                pairs.append((src_ids[source], trg_ids[target], score))
            else:
                unknown += 1
        if not pairs:
            raise UserError(f'{path}: no line has a source piece and then a target piece of this model, as its '
                            'vocabularies spell them.')  # fmt: skip
        return cls(*zip(*pairs), src_vocab, trg_vocab, best, frequent, unknown)

    def __call__(self, sources, prefixes=None):
        """The tokens of a batch.

        Args:
          sources: a list of id arrays; prefixes: the same for what outputs begin with, which is allowed too, or None.
        Returns:
          `AllowedTokens` of NumPy arrays.
        """
        allowed = np.repeat(self._always[np.newaxis], len(sources), axis=0)
        for row, ids in zip(allowed, sources):
            for i in np.unique(ids):
                row[self._targets[self._starts[i] : self._starts[i + 1]]] = True
        for row, ids in zip(allowed, prefixes or ()):
            row[ids] = True
        tokens = np.flatnonzero(allowed.any(axis=0))
        return AllowedTokens(tokens.astype(np.int32), allowed[:, tokens])


def _pair(line, path, number):
    fields = line.split('\t') if '\t' in line else line.split(' ')
    try:
        source, target = fields[:2]
        score = float(fields[2]) if len(fields) > 2 else 0.0
        if len(fields) > 3 or score != score:
            raise ValueError
    except ValueError:
        raise UserError(f'{path}, line {number}: {line[:80]!r} is not a source piece, a target piece and, if you like, '
                        'a number, parted by tabs or by single spaces.') from None  # fmt: skip
    return source, target, score
