"""Batches of sentence pairs: the endless, resumable stream of a training, and a dev set in the order of its file."""

import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sequencing.data_cache import DROPPED
from sequencing.data_order import cut_into_batches, key_of, permute, shuffled
from sequencing.structures import Batch

_WINDOW_BATCHES = 100  # sorted by length together: more means less padding and a little less chance in what meets
_PREFETCH = 16  # batches that wait ready

# Training -----------------------------------------------------------------------------------------------------------


class Position(NamedTuple):
    """A place in the endless stream of batches, from which it goes on exactly as it would have."""

    epoch: int = 0  # int64 scalars in a dataset; the epoch and
    window: int = 0  # the window in it that the next batch belongs to, and
    batch: int = 0  # how many batches of that window are behind us
    sentences: int = 0  # pairs given out since the start


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What the training data look like; lengths and tokens as a batch holds them, EOS included."""

    read: int  # pairs in the files
    kept: int
    dropped: dict  # pairs by reason
    replaced_lines: int  # lines with bytes that are not UTF-8, or NUL
    src_tokens: int  # in kept pairs
    trg_tokens: int
    src_lengths: dict  # percentile (50, 90, 99, 100) to length, of all pairs that are not empty
    trg_lengths: dict
    padding: float  # share of both sides' batch cells that hold no token

    def __str__(self):
        dropped = ', '.join(f'{count:,} {reason}' for reason, count in self.dropped.items() if count) or 'none'
        lengths = lambda side: ', '.join(f'{percent}%: {length}' for percent, length in side.items())
        return (
            f'{self.read:,} pairs read, {self.kept:,} kept, dropped: {dropped}\n'
            f'{self.src_tokens:,} source tokens, {self.trg_tokens:,} target tokens; padding {self.padding:.1%}\n'
            f'source lengths {lengths(self.src_lengths)}; target lengths {lengths(self.trg_lengths)}'
        )


class ParallelInputs:
    """Batches of the training corpora.

    An epoch holds every pair exactly once, in an order that is a function of (seed, epoch). It is read in windows,
    each sorted by length and cut into batches that come in random order. Corpora with weights run each in epochs of
    its own and have their share of every window; an epoch is then as many pairs as they hold together.

    Args:
      corpora: list of `EncodedCorpus`.
      weights: list of their shares, or None to read each as often as the others.
      unit, limit: 'sentences' or 'tokens', and how many of them a batch may hold.
      by_length: whether the pairs of a batch are of like lengths.
      src_vocab, trg_vocab: `Vocab`s.
      rules: `LengthRules`.
      seed: int.
    Attributes:
      size: pairs in an epoch.
      report: `DataReport`.
      keys: of the corpora, equal where text, vocabularies and length rules are.
    """

    def __init__(self, corpora, weights, unit, limit, by_length, src_vocab, trg_vocab, rules, seed):
        self._corpora, self._unit, self._limit, self._rules, self._seed = corpora, unit, limit, rules, seed
        self._by_length = by_length
        self._src, self._trg = (src_vocab.pad_id, src_vocab.eos_id), (trg_vocab.pad_id, trg_vocab.eos_id)
        sizes = np.array([corpus.size for corpus in corpora])
        self._first = np.concatenate([[0], np.cumsum(sizes)])  # number of each corpus's first pair
        self.size = int(sizes.sum())
        if unit == 'tokens':
            tokens = sum(max(corpus.meta['src_tokens'], corpus.meta['trg_tokens']) for corpus in corpora)
            limit = limit * self.size / tokens
        # a small corpus has four windows, so that its pairs meet others in the next epoch; all are about as large
        windows = max(1, -(-self.size // int(max(min(limit * _WINDOW_BATCHES, self.size / 4), limit * 8, 1))))
        self._window = -(-self.size // windows)
        if unit == 'sentences':
            self._window = -(-self._window // limit) * limit
        self._corpus_shares = None if weights is None else _apportion(np.array(weights), self._window)
        self._windows = -(-self.size // self._window)
        self.report = self._make_report()
        self.keys = [corpus.key for corpus in corpora]

    def batches(self, position=None, replicas=None):
        """An endless iterator over (`Batch` of NumPy arrays, `Position` after it), from `position` on.

        Args:
          position: `Position`; None for the beginning.
          replicas: `Replicas`: a tuple of `Batch`es in place of one, the share of each of those here. All shares of a
            batch hold its pairs once, as equally many each as can be; where there are fewer pairs than replicas, some
            shares are one pair with index -1, which counts for nothing.
        """
        position = Position(*map(int, position)) if position is not None else Position()
        while True:
            for batch, after in self._epoch(position, replicas):
                yield batch, after
            position = after

    def sample(self, count, turn=0):
        """One `Batch` of `count` random pairs of any length; another one for every `turn`."""
        places = np.arange(min(count, self.size))
        numbers = permute(places, self.size, key_of(self._seed, turn, 3))
        return self._batch(self._rows(numbers), numbers)

    def one_epoch(self, epoch=0, replicas=None):
        """As `batches`, over one epoch."""
        return self._epoch(Position(epoch), replicas)

    def dataset(self, position=None, replicas=None):
        """`batches` as a `tf.data.Dataset` that works ahead; positions are int64 scalars."""
        shares = replicas and replicas.local
        return as_dataset(lambda: self.batches(position, replicas), with_position=True, shares=shares)

    def epochs(self, position):
        """Passes over the data that lie behind `position`, a float."""
        return int(position.sentences) / (self.size if self._corpus_shares is None else self._windows * self._window)

    def _epoch(self, position, replicas=None):
        epoch, _, done, sentences = position
        for window in range(position.window, self._windows):
            corpus_rows, numbers, plan = self._plan(epoch, window)
            for i in range(done, len(plan)):
                places = plan[i]
                sentences += len(places)
                last = i + 1 == len(plan)
                after = Position(epoch, window + last, 0 if last else i + 1, sentences)
                if after.window == self._windows:
                    after = Position(epoch + 1, 0, 0, sentences)
                if replicas is None:
                    yield self._batch(corpus_rows[places], numbers[places]), after
                else:
                    yield tuple(self._shares(corpus_rows[places], numbers[places], replicas)), after
            done = 0

    def _shares(self, rows, numbers, replicas):
        """The shares of a batch for `Replicas`; every one has short and long pairs, as pairs come by length."""
        for replica in range(replicas.first, replicas.first + replicas.local):
            if replica < len(rows):
                yield self._batch(rows[replica :: replicas.total], numbers[replica :: replicas.total])
            else:
                yield self._batch(rows[:1], numbers[:1])._replace(index=np.array([-1]))

    def _plan(self, epoch, window):
        """The rows of a window, the numbers of its pairs, and its batches as places in it, in the order they come."""
        numbers = self._numbers(epoch, window)
        rows = self._rows(numbers)
        lengths = self._rules.src_length(rows['src']), self._rules.trg_length(rows['trg'])
        batches = cut_into_batches(*lengths, self._unit, self._limit, self._by_length)
        return rows, numbers, [batches[i] for i in shuffled(len(batches), key_of(self._seed, epoch, window, 1))]

    def _numbers(self, epoch, window):
        """Numbers of the pairs in a window, `[n]` int64."""
        if self._corpus_shares is None:
            places = np.arange(window * self._window, min((window + 1) * self._window, self.size))
            return permute(places, self.size, key_of(self._seed, epoch))
        numbers = []
        for i, (corpus, share) in enumerate(zip(self._corpora, self._corpus_shares)):
            start = (epoch * self._windows + window) * share  # in the endless stream of this corpus
            place = np.arange(start, start + share)
            for turn in np.unique(place // corpus.size):
                inside = place[place // corpus.size == turn] % corpus.size
                numbers.append(self._first[i] + permute(inside, corpus.size, key_of(self._seed, turn, i, 2)))
        return np.concatenate(numbers)

    def _rows(self, numbers):
        owners = np.searchsorted(self._first, numbers, side='right') - 1
        rows = np.empty(len(numbers), self._corpora[0].rows(np.zeros(0, np.int64)).dtype)
        for i, corpus in enumerate(self._corpora):
            rows[owners == i] = corpus.rows(numbers[owners == i] - self._first[i])
        return rows

    def _batch(self, rows, numbers):
        owners = np.searchsorted(self._first, numbers, side='right') - 1
        sides = np.stack([rows['src'], rows['trg']], axis=1)
        flats = [None] * len(rows)
        if (owners == owners[0]).all():
            flat = self._corpora[owners[0]].tokens(rows)
        else:
            for i, corpus in enumerate(self._corpora):
                mine = np.flatnonzero(owners == i)
                cuts = np.split(corpus.tokens(rows[mine]), np.cumsum(sides[mine].sum(axis=1))[:-1])
                for place, part in zip(mine, cuts):
                    flats[place] = part
            flat = np.concatenate(flats)
        return make_batch(flat, rows['src'], rows['trg'], numbers, self._src, self._trg, self._rules)

    def _make_report(self):
        metas = [corpus.meta for corpus in self._corpora]
        total = lambda name: sum(meta[name] for meta in metas)
        cells = tokens = 0
        for window in range(min(3, self._windows)):
            rows, _, plan = self._plan(0, window)
            for lengths in (self._rules.src_length(rows['src']), self._rules.trg_length(rows['trg'])):
                tokens += int(lengths.sum())
                cells += sum(len(places) * int(lengths[places].max()) for places in plan)
        return DataReport(
            read=total('read'),
            kept=total('kept'),
            dropped={reason: sum(meta['dropped'][reason] for meta in metas) for reason in DROPPED},
            replaced_lines=total('replaced'),
            src_tokens=total('src_tokens'),
            trg_tokens=total('trg_tokens'),
            src_lengths=_percentiles([meta['src_lengths'] for meta in metas]),
            trg_lengths=_percentiles([meta['trg_lengths'] for meta in metas]),
            padding=1.0 - tokens / cells,
        )


def _apportion(weights, total):
    """Whole numbers in the proportion of `weights` that add up to `total`, each at least 1 (largest remainders)."""
    exact = weights / weights.sum() * total
    whole = np.maximum(1, np.floor(exact)).astype(np.int64)
    whole[np.argsort(whole - exact)[: max(0, total - whole.sum())]] += 1
    return whole


def _percentiles(histograms):
    counts = np.zeros(max(map(len, histograms)), np.int64)
    for histogram in histograms:
        counts[: len(histogram)] += histogram
    share = np.cumsum(counts) / counts.sum()
    return {percent: int(np.searchsorted(share, percent / 100 - 1e-12)) for percent in (50, 90, 99, 100)}


# Evaluation ---------------------------------------------------------------------------------------------------------


class EvalInputs:
    """Pairs of a dev set in the order of their files, in batches of neighbours; `size` pairs, none left out."""

    def __init__(self, flat, src_tokens, trg_tokens, src_vocab, trg_vocab, rules, batch_tokens):
        self._flat, self._rules = flat, rules
        self._sides = src_tokens, trg_tokens
        self._src, self._trg = (src_vocab.pad_id, src_vocab.eos_id), (trg_vocab.pad_id, trg_vocab.eos_id)
        self._starts = np.concatenate([[0], np.cumsum(src_tokens + trg_tokens)])
        self._batch_tokens = batch_tokens
        self.size = len(src_tokens)

    def batches(self):
        """An iterator over `Batch`es of NumPy arrays; `index` is the line's number from 0."""
        src_tokens, trg_tokens = self._sides
        longest = np.maximum(self._rules.src_length(src_tokens), self._rules.trg_length(trg_tokens)).tolist()
        start = 0
        while start < self.size:
            end, widest = start + 1, longest[start]
            while end < self.size and (end + 1 - start) * max(widest, longest[end]) <= self._batch_tokens:
                widest = max(widest, longest[end])
                end += 1
            flat = self._flat[self._starts[start] : self._starts[end]]
            numbers = np.arange(start, end)
            yield make_batch(flat, src_tokens[start:end], trg_tokens[start:end], numbers, self._src, self._trg,
                             self._rules)  # fmt: skip
            start = end

    def dataset(self):
        """`batches` as a `tf.data.Dataset`."""
        return as_dataset(self.batches)


# Arrays -------------------------------------------------------------------------------------------------------------


def make_batch(flat, src_tokens, trg_tokens, numbers, src_special, trg_special, rules):
    """Pads pairs into a `Batch`.

    Args:
      flat: ids of the pairs in a row, for each the source, then the target, without EOS.
      src_tokens, trg_tokens: `[B]` int, how many ids each side has there.
      numbers: `[B]` int64, the pairs' numbers in the corpus.
      src_special, trg_special: (PAD, EOS) of each side.
      rules: `LengthRules`, which knows how many EOS follow.
    Returns:
      `Batch` of NumPy arrays.
    """
    sides = np.stack([src_tokens, trg_tokens], axis=1).reshape(-1)
    is_src = np.repeat(np.tile([True, False], len(src_tokens)), sides)
    src_ids, src_mask = _pad(flat[is_src], src_tokens, rules.src_length(src_tokens), *src_special)
    trg_ids, trg_mask = _pad(flat[~is_src], trg_tokens, rules.trg_length(trg_tokens), *trg_special)
    return Batch(src_ids, src_mask, trg_ids, trg_mask, numbers.astype(np.int64))


def _pad(flat, tokens, lengths, pad_id, eos_id):
    """`[B, T]` int32 and mask: each row its tokens, then EOS up to its length, then PAD."""
    steps = np.arange(lengths.max())
    mask = steps < lengths[:, np.newaxis]
    ids = np.where(mask, np.int32(eos_id), np.int32(pad_id))
    ids[steps < tokens[:, np.newaxis]] = flat
    return ids, mask


def as_dataset(batches, with_position=False, shares=None):
    """A `tf.data.Dataset` over what the callable `batches` gives, made in a thread of its own, ahead of its use.

    `shares` is the length of the tuples of `Batch`es that it gives; None where it gives single ones.
    """
    ids, mask = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, None], tf.bool)
    signature = Batch(ids, mask, ids, mask, tf.TensorSpec([None], tf.int64))
    if shares is not None:
        signature = (signature,) * shares
    if with_position:
        signature = (signature, Position(*[tf.TensorSpec([], tf.int64)] * len(Position._fields)))
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(_PREFETCH)
