"""Transformer encoder and decoder; a decoder writes its keys and values into arrays that are there already.

Pre-norm layers see each unit only relative to the mean of all. So whatever is added up is made to have no mean, which
normalisation then need not look for, and its scale and shift are multiplied into what reads it, once when the model is
loaded; likewise the scale of queries.
"""

import numpy as np

from sequencing_np.layers import (
    LayerNorm,
    TokenInput,
    attend,
    erf,
    key_penalty,
    linear,
    normalised,
    only_real,
    rotary_positions,
    rotate,
    sigmoid,
    softmax,
    split_heads,
)


class Residual:
    """What surrounds a part `f` of a layer: `x + f(norm(x))` (pre-norm), or `norm(x + f(x))`."""

    def __init__(self, weights, pre_norm):
        self.pre_norm, self.norm = pre_norm, LayerNorm(weights.below('norm'))

    def fold(self, reader, writer):
        """The linear maps that read and write a part, as they go with `enter` and `leave`."""
        return (reader.behind_norm(self.norm), writer.centred()) if self.pre_norm else (reader, writer)

    def enter(self, x):
        return normalised(x) if self.pre_norm else x

    def leave(self, x, found):
        found += x
        return found if self.pre_norm else self.norm(found)


class FeedForward:
    """`outer(activation(inner(x)))` and what surrounds it."""

    def __init__(self, weights, residual, activation):
        self.residual, self.activate = residual, ACTIVATIONS[activation]
        self.inner, self.outer = residual.fold(linear(weights.below('inner')), linear(weights.below('outer')))

    def __call__(self, x):
        return self.residual.leave(x, self.outer(self.activate(self.inner(self.residual.enter(x)))))


def _relu(x):
    return np.maximum(x, 0.0, out=x)


def _gelu(x):
    return 0.5 * x * (1.0 + erf(x * np.float32(0.5**0.5)))


def _swiglu(x):
    half = x.shape[1] // 2
    return x[:, :half] * sigmoid(x[:, :half]) * x[:, half:]


ACTIVATIONS = {'relu': _relu, 'gelu': _gelu, 'swiglu': _swiglu}


class SelfAttention:
    """Attention of a text over itself, and what surrounds it."""

    def __init__(self, weights, residual, heads):
        self.heads, self.residual = heads, residual
        projection, output = linear(weights.below('projection')), linear(weights.below('output'))
        self.size = output.kernel.shape[1]
        projection, self.output = residual.fold(projection, output)
        self.projection = projection.scaled(self.size, (self.size // heads) ** -0.5)

    def __call__(self, x, batch, penalty, turn):
        """Reads whole texts, flat `[B * T, D]`, none of it causal; `turn` `[T, 2, d]` or None."""
        queries, keys, values = split_heads(self.projection(self.residual.enter(x)), batch, self.heads, 3)
        if turn is not None:
            queries, keys = rotate(queries, turn), rotate(keys, turn)
        return self.residual.leave(x, self.output(attend(queries, keys, values, penalty)))

    def step(self, x, cache, time, turn):
        """Reads one step of rows `[R, D]` after what `cache` `[2, R, H, P, d]` holds, and writes it there."""
        rows, head = len(x), self.size // self.heads
        packed = self.projection(self.residual.enter(x)).reshape(rows, 3, self.heads, head)
        queries = packed[:, 0, :, np.newaxis]  # [R, H, 1, d]
        if turn is not None:
            queries = rotate(queries, turn)
            packed[:, 1] = rotate(packed[:, 1], turn)
        cache[:, :, :, time] = packed[:, 1:].swapaxes(0, 1)
        keys, values = cache[:, :, :, : time + 1]
        found = softmax(queries @ keys.swapaxes(2, 3)) @ values
        return self.residual.leave(x, self.output(found.reshape(rows, self.size)))


class SourceAttention:
    """Attention of rows over a source whose keys and values are there already, and what surrounds it."""

    def __init__(self, weights, residual, heads):
        self.heads, self.residual = heads, residual
        query, self.output = residual.fold(linear(weights.below('query')), linear(weights.below('output')))
        size = query.kernel.shape[1]
        self.query = query.scaled(size, (size // heads) ** -0.5)

    def __call__(self, x, keys, values, penalty):
        """Rows `[n * W, D]` and keys and values `[n, H, S, d]` of n sources."""
        queries = split_heads(self.query(self.residual.enter(x)), len(keys), self.heads)[0]
        return self.residual.leave(x, self.output(attend(queries, keys, values, penalty)))


class Stack:
    """What encoder and decoder share."""

    def __init__(self, weights, part, embedding_size):
        self.xp, self.size, self.heads, self.pre_norm = weights.xp, part.size, part.heads, part.norm == 'pre'
        self.input = TokenInput(weights.below('input'), embedding_size, part.size, part, centred=self.pre_norm)
        self.turns = rotary_positions(weights.xp, part.size // part.heads) if part.positions == 'rotary' else None
        self.layers = [self.layer(layer, part) for layer in weights.listed('layers')]
        self.final_norm = LayerNorm(weights.below('final_norm')) if self.pre_norm else None

    def layer(self, weights, part):
        """The parts of a layer, in the order in which they are run."""
        around = [Residual(weights.below(f'{name}_residual'), self.pre_norm) for name in ('self', 'feed')]
        own = SelfAttention(weights.below('self_attention'), around[0], part.heads)
        return own, FeedForward(weights.below('feed_forward'), around[1], part.activation)

    def finish(self, x):
        return x if self.final_norm is None else self.final_norm(x)


class TransformerEncoder(Stack):
    def __call__(self, embedded, mask):
        """Flat `[B * S, E]` and mask `[B, S]` to flat outputs, zero on padding."""
        batch, time = mask.shape
        mask = None if mask.all() else mask
        penalty, turn = key_penalty(mask), None if self.turns is None else self.turns(0, time)
        x = self.input(embedded, 0, time)
        for own, feed in self.layers:
            x = feed(own(x, batch, penalty, turn))
        return only_real(self.finish(x), mask)


class TransformerDecoder(Stack):
    def __init__(self, weights, part, embedding_size):
        super().__init__(weights, part, embedding_size)
        self.source = linear(weights.below('source/projection'))

    def layer(self, weights, part):
        own, feed = super().layer(weights, part)
        around = Residual(weights.below('source_residual'), self.pre_norm)
        return own, SourceAttention(weights.below('source_attention'), around, part.heads), feed

    def start(self, outputs, mask, width):
        """The walk of `width` hypotheses a sentence, from encoder outputs, flat `[B * S, D]`, and their mask."""
        return TransformerWalk(self, outputs, mask, width)


class TransformerWalk:
    """Hypotheses on their way; see `rnn.RNNWalk`."""

    def __init__(self, decoder, outputs, mask, width):
        self.decoder, batch = decoder, len(mask)
        self.penalty = key_penalty(None if mask.all() else mask)
        parts = split_heads(decoder.source(outputs), batch, decoder.heads, 2 * len(decoder.layers))
        self.memory = parts.copy()  # [2 * layers, n, H, S, d]: keys and values of each layer
        shape = (2, batch * width, decoder.heads, 16, decoder.size // decoder.heads)
        self.caches = [np.empty_like(outputs, shape=shape) for _ in decoder.layers]
        self.time = 0  # steps that the caches hold

    def step(self, embedded, time):
        """Reads one token of each row, `[R, E]`: features `[R, D]`."""
        decoder = self.decoder
        if time == self.caches[0].shape[3]:
            self.caches = [np.concatenate([cache, np.empty_like(cache)], axis=3) for cache in self.caches]
        self.time = time + 1
        turn = None if decoder.turns is None else decoder.turns(time, 1)
        x = decoder.input(embedded, time, 1, same_place=True)
        for i, (own, source, feed) in enumerate(decoder.layers):
            x = own.step(x, self.caches[i], time, turn)
            x = feed(source(x, self.memory[2 * i], self.memory[2 * i + 1], self.penalty))
        return decoder.finish(x)

    def reorder(self, parents):
        """Puts hypothesis `parents[r]` in row r; rows that stay where they are are not touched."""
        moved = np.flatnonzero(parents != np.arange(len(parents)))
        if len(moved):
            moved, parents = self.decoder.xp.asarray(moved), self.decoder.xp.asarray(parents[moved])
            for cache in self.caches:
                cache[:, moved, :, : self.time] = cache[:, parents, :, : self.time]

    def keep(self, sentences, rows):
        """Goes on with some sentences, by their places, and with their rows."""
        sentences, rows = self.decoder.xp.asarray(sentences), self.decoder.xp.asarray(rows)
        self.memory = self.memory[:, sentences]
        self.penalty = None if self.penalty is None else self.penalty[sentences]
        self.caches = [cache[:, rows] for cache in self.caches]
