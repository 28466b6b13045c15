"""Blocks of FlowSeq's networks; see `sequencing.blocks`. All work on flat rows `[B * T, D]`."""

import numpy as np

from sequencing_np.layers import (
    PENALTY,
    LayerNorm,
    Linear,
    attend,
    key_penalty,
    linear,
    position_signal,
    softmax,
    split_heads,
)
from sequencing_np.rnn import CELLS, read_sequence


class Rows:
    """Where the rows of a flat array belong; made once a batch, from its mask `[B, T]` bool.

    Attributes:
      real: `[B * T, 1]` bool, or None where there is no padding; penalty: of keys at padding, likewise.
      counts: `[B]` float32, real rows of each sentence.
    """

    def __init__(self, xp, mask):
        self.xp, self.mask, (self.batch, self.time) = xp, mask, mask.shape
        self.full = bool(mask.all())
        self.real = None if self.full else mask.reshape(-1, 1)
        self.penalty = None if self.full else key_penalty(mask)
        self.counts = mask.sum(axis=1).astype(np.float32)
        self._kept = {}

    def kept(self, key, make):
        """`make()`, called once for each `key`."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def only_real(self, x):
        """Flat rows with zeros at padding."""
        return x if self.full else np.where(self.real, x, np.float32(0))

    def sums(self, x):
        """Sum over the real rows of each sentence of flat `[B * T, D]`, `[B]`."""
        return self.only_real(x).reshape(self.batch, -1).sum(axis=1)

    def repeated(self, count):
        """The rows of `count` sentences for each, next to each other."""
        return self if count == 1 else Rows(self.xp, np.repeat(self.mask, count, axis=0))

    def positions(self, size):
        """The signal of positions 1, 2, ..., flat `[B * T, size]`."""
        return self.kept(size, lambda: np.tile(position_signal(self.xp, 1, self.time, size), (self.batch, 1)))

    def even(self):
        """Rows of steps 0, 2, ..."""
        return self.kept('even', lambda: Rows(self.xp, self.mask[:, ::2]))

    def odd(self):
        """Rows of steps 1, 3, ..."""
        return self.kept('odd', lambda: Rows(self.xp, self.mask[:, 1::2]))

    def paired(self):
        """Rows where two neighbouring steps are one; a pair is real if either of the two is."""
        return self.kept('paired', lambda: Rows(self.xp, self.mask[:, ::2] | self.mask[:, 1::2]))


def source_beside_target(rows, states, lengths):
    """What the source says at the place of each target position; see `sequencing.blocks`.

    Args:
      rows: `Rows` of the targets, one or several a source; states: `[B, S, D]`, of the source; lengths: `[B]` float32.
    """
    steps, half = rows.xp.arange(states.shape[1], dtype=np.float32), np.float32(0.5)
    stretch = np.repeat(lengths, rows.batch // len(lengths)) / np.maximum(rows.counts, np.float32(1))
    places = (rows.xp.arange(rows.time, dtype=np.float32) + half) * stretch[:, np.newaxis] - half
    places = places.reshape(len(lengths), -1, 1)
    far = np.float32(-2) * np.square(steps - places)
    weights = softmax(np.where(steps < lengths[:, np.newaxis, np.newaxis], far, np.float32(-PENALTY)))
    return rows.only_real((weights @ states).reshape(-1, states.shape[2]))


class SelfAttentionBlock:
    """`norm(x + attention of x over itself)`."""

    def __init__(self, weights, heads):
        size = len(weights['kernel'])
        self.heads, self.norm = heads, LayerNorm(weights.below('norm'))
        self.packed = Linear(weights['kernel'], weights['bias']).scaled(size, (size // heads) ** -0.5)

    def __call__(self, x, rows):
        found = attend(*split_heads(self.packed(x), rows.batch, self.heads, 3), rows.penalty)
        found += x
        return self.norm(found)


class SourceAttentionBlock:
    """`norm(query + attention of query over source)`; several targets may share a source."""

    def __init__(self, weights, heads):
        query = linear(weights.below('query'))
        size = query.kernel.shape[1]
        self.heads, self.norm = heads, LayerNorm(weights.below('norm'))
        self.query, self.source = query.scaled(size, (size // heads) ** -0.5), linear(weights.below('source'))

    def keys_and_values(self, source, batch):
        """Flat source rows to keys and values `[2, B, heads, S, d]`."""
        return split_heads(self.source(source), batch, self.heads, 2)

    def __call__(self, query, memory, penalty):
        """Flat rows, what `keys_and_values` gave, and the penalty of its keys."""
        found = attend(split_heads(self.query(query), memory.shape[1], self.heads)[0], *memory, penalty)
        found += query
        return self.norm(found)


class FeedForwardBlock:
    """`norm(x + outer(relu(inner(x))))`."""

    def __init__(self, weights):
        self.inner, self.outer = linear(weights.below('inner')), linear(weights.below('outer'))
        self.norm = LayerNorm(weights.below('norm'))

    def __call__(self, x):
        hidden = self.inner(x)
        found = self.outer(np.maximum(hidden, 0.0, out=hidden))
        found += x
        return self.norm(found)


class EncoderBlock:
    """Attention over the sentence itself, then feed-forward."""

    def __init__(self, weights, heads):
        self.self_attention = SelfAttentionBlock(weights.below('self_attention'), heads)
        self.feed_forward = FeedForwardBlock(weights.below('feed_forward'))

    def __call__(self, x, rows):
        return self.feed_forward(self.self_attention(x, rows))


class DecoderBlock(EncoderBlock):
    """Attention over the target itself, over the source, then feed-forward."""

    def __init__(self, weights, heads):
        super().__init__(weights, heads)
        self.source_attention = SourceAttentionBlock(weights.below('source_attention'), heads)

    def __call__(self, x, rows, memory, penalty):
        return self.feed_forward(self.source_attention(self.self_attention(x, rows), memory, penalty))


class GlobalAttention:
    """One head, scores not scaled, a projection at the end."""

    def __init__(self, weights):
        self.query, self.source, self.output = [linear(weights.below(name)) for name in ('query', 'source', 'output')]

    def keys_and_values(self, source, batch):
        """Flat source rows to keys and values `[2, B, 1, S, d]`."""
        return split_heads(self.source(source), batch, 1, 2)

    def __call__(self, query, memory, penalty):
        return self.output(attend(split_heads(self.query(query), memory.shape[1], 1)[0], *memory, penalty))


class Bidirectional:
    """A stack of recurrent layers over whole sentences, read both ways or forwards only."""

    def __init__(self, weights, cell):
        ways = [[CELLS[cell](layer) for layer in weights.listed(name)] for name in ('forwards', 'backwards')]
        self.layers = list(zip(*filter(None, ways)))

    def __call__(self, x, rows):
        """Flat rows to flat rows, zero at padding; forward units come first."""
        for layer in self.layers:
            read = [read_sequence(cell, x, rows.mask, reverse=i == 1) for i, cell in enumerate(layer)]
            x = np.concatenate(read, axis=2).reshape(len(x), -1)
        return x
