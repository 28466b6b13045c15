"""Gated convolutional encoder and decoder: a convolution is a product with the frames of a window side by side."""

import numpy as np

from sequencing_np.layers import TokenInput, key_penalty, linear, only_real, sigmoid, softmax, split_heads
from sequencing_np.layers import weight_norm_linear as weight_norm

HALF = np.float32(0.5**0.5)  # keeps the variance of a sum of two


class GatedConvolution:
    """`value * sigmoid(gate)`, both a product with a window."""

    def __init__(self, weights, part):
        self.linear = (weight_norm if part.weight_norm else linear)(weights.below('linear'))

    def __call__(self, windows):
        """`[N, width * D]` to `[N, D]`."""
        both = self.linear(windows)
        half = both.shape[1] // 2
        return both[:, :half] * sigmoid(both[:, half:])


def windows_around(x, batch, width):
    """Flat `[B * T, D]` to `[B * T, width * D]`: the frames around each, zero beyond the ends."""
    x = x.reshape(batch, -1, x.shape[1])
    padded = np.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    return np.concatenate([padded[:, i : i + x.shape[1]] for i in range(width)], axis=2).reshape(-1, width * x.shape[2])


class ConvEncoder:
    """Gated convolutions, each added to what it read; the output is the sum of the top and the embedded source."""

    def __init__(self, weights, part, embedding_size):
        self.width = part.width
        self.input = TokenInput(weights.below('input'), embedding_size, part.size, part)
        self.enter, self.leave = linear(weights.below('enter')), linear(weights.below('leave'))
        self.layers = [GatedConvolution(layer, part) for layer in weights.listed('layers')]

    def __call__(self, embedded, mask):
        """Flat `[B * S, E]` and mask `[B, S]` to flat outputs, zero on padding."""
        batch, time = mask.shape
        mask = None if mask.all() else mask
        placed = self.input(embedded, 0, time)
        x = only_real(self.enter(placed), mask)
        for layer in self.layers:
            x = only_real((x + layer(windows_around(x, batch, self.width))) * HALF, mask)
        return only_real((self.leave(x) + placed) * HALF, mask)


class ConvDecoder:
    """Causal gated convolutions that each attend to the source."""

    def __init__(self, weights, part, embedding_size):
        self.xp, self.size, self.width = weights.xp, part.size, part.width
        self.input = TokenInput(weights.below('input'), embedding_size, part.size, part)
        self.enter, self.leave = linear(weights.below('enter')), linear(weights.below('leave'))
        self.source = linear(weights.below('source/projection'))
        self.layers = [ConvDecoderLayer(layer, part) for layer in weights.listed('layers')]

    def start(self, outputs, mask, width):
        """The walk of `width` hypotheses a sentence, from encoder outputs, flat `[B * S, D]`, and their mask."""
        return ConvWalk(self, outputs, mask, width)


class ConvDecoderLayer:
    """See `sequencing.convolutional`."""

    def __init__(self, weights, part):
        self.convolution = GatedConvolution(weights.below('convolution'), part)
        self.query, self.output = linear(weights.below('query')), linear(weights.below('output'))
        self.scale = np.float32(part.size**-0.5)

    def __call__(self, x, windows, placed, keys, values, penalty, length_scale):
        """One step of rows `[n * W, D]` and their windows; keys and values `[n, S, D]`."""
        gated = self.convolution(windows)
        query = (self.query(gated) + placed) * (HALF * self.scale)
        scores = query.reshape(len(keys), -1, keys.shape[2]) @ keys.swapaxes(1, 2)
        if penalty is not None:
            scores -= penalty
        found = (softmax(scores) @ values * length_scale).reshape(x.shape)
        return ((gated + self.output(found)) * HALF + x) * HALF


class ConvWalk:
    """Hypotheses on their way; see `rnn.RNNWalk`."""

    def __init__(self, decoder, outputs, mask, width):
        self.decoder, batch = decoder, len(mask)
        self.penalty = None if mask.all() else key_penalty(mask)[:, 0]  # [n, 1, S]
        self.length_scale = np.sqrt(mask.sum(axis=1).astype(np.float32))[:, np.newaxis, np.newaxis]
        parts = split_heads(decoder.source(outputs), batch, 1, 2 * len(decoder.layers))
        self.memory = parts[:, :, 0].copy()  # [2 * layers, n, S, D]: keys and values of each layer
        shape = (len(decoder.layers), batch * width, decoder.width, decoder.size)
        self.frames = np.zeros_like(outputs, shape=shape)  # the last of each layer's inputs

    def step(self, embedded, time):
        """Reads one token of each row, `[R, E]`: features `[R, D]`."""
        decoder, frames = self.decoder, self.frames
        frames[:, :, :-1] = frames[:, :, 1:]
        placed = decoder.input(embedded, time, 1, same_place=True)
        x = decoder.enter(placed)
        for i, layer in enumerate(decoder.layers):
            frames[i, :, -1] = x
            windows = frames[i].reshape(len(x), -1)
            keys, values = self.memory[2 * i], self.memory[2 * i + 1]
            x = layer(x, windows, placed, keys, values, self.penalty, self.length_scale)
        return decoder.leave(x)

    def reorder(self, parents):
        """Puts hypothesis `parents[r]` in row r."""
        self.frames = self.frames[:, self.decoder.xp.asarray(parents)]

    def keep(self, sentences, rows):
        """Goes on with some sentences, by their places, and with their rows."""
        sentences = self.decoder.xp.asarray(sentences)
        self.memory, self.length_scale = self.memory[:, sentences], self.length_scale[sentences]
        self.penalty = None if self.penalty is None else self.penalty[sentences]
        self.reorder(rows)
