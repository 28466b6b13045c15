"""Gated convolutional encoder and decoder.

A convolution is a matrix product over a window: the `width` frames around a step side by side. The same product reads
whole sentences and single steps; a step keeps the frames before it as its cache.

Reference: Gehring et al., 2017, Convolutional sequence to sequence learning, https://arxiv.org/abs/1705.03122
"""

from typing import Any, NamedTuple

import tensorflow as tf

from sequencing.blocks import WeightNormLinear
from sequencing.layers import Dropout, LinearOp
from sequencing.multi_head_attention import SourceProjection, penalty_where
from sequencing.positions import TokenInput
from sequencing.structures import EncoderOutput

HALF = 0.5**0.5  # keeps the variance of a sum of two


class GatedConvolution(tf.Module):
    """`value * sigmoid(gate)`, both a convolution of the input over `width` steps.

    Args:
      size: units before and after.
      width: steps that a window spans.
      causal: whether windows end at their step instead of being centred on it.
      weight_norm: learn length and direction of each output's weights apart (Salimans and Kingma, 2016).
      dropout: chance of dropping a unit of the input.
    """

    def __init__(self, size, width, causal, weight_norm, dropout, name='convolution'):
        super().__init__(name=name)
        if not causal and width % 2 == 0:
            raise ValueError(f'{name}: a window centred on its step spans an odd number of steps; got {width}.')
        self.size, self.width = size, width
        self.before = width - 1 if causal else width // 2
        with self.name_scope:
            self.linear = (WeightNormLinear if weight_norm else LinearOp)(width * size, 2 * size)
            self.dropout = Dropout(dropout)
        # Gating leaves a quarter of the variance, which this start makes up for (section 3.5 of the paper).
        length = 2 * (1 - dropout) ** 0.5
        if weight_norm:
            self.linear.gain.assign(tf.fill([2 * size], length))
        else:
            deviation = length * (width * size) ** -0.5
            self.linear.kernel.assign(tf.random.normal([width * size, 2 * size], stddev=deviation))

    def __call__(self, x, seed=None):
        """Maps `[B, T, size]`, zero on padding, to the same shape; what lies beyond the ends counts as zero."""
        count = tf.shape(x)[1]
        padded = tf.pad(self.dropout(x, seed), [[0, 0], [self.before, self.width - 1 - self.before], [0, 0]])
        windows = tf.concat([padded[:, i : i + count] for i in range(self.width)], axis=-1)
        return self.gated(windows)

    def step(self, x, cache):
        """Reads one step.

        Args:
          x: `[B, W, size]`; cache: `[B, W, (width - 1) * size]`, the frames before it, oldest first.
        Returns:
          `[B, W, size]` and the new cache.
        """
        window = tf.concat([cache, x], axis=-1)
        return self.gated(window), window[:, :, self.size :]

    def gated(self, windows):
        flat = self.linear(tf.reshape(windows, [-1, self.width * self.size]))
        value, gate = tf.split(flat, 2, axis=-1)
        shape = tf.concat([tf.shape(windows)[:2], [self.size]], axis=0)
        return tf.ensure_shape(tf.reshape(value * tf.sigmoid(gate), shape), windows.shape[:2] + [self.size])


class ConvEncoder(tf.Module):
    """Gated convolutions, each added to what it read; the output is the sum of the top and the embedded source.

        x[0] = linear(embedded); x[i + 1] = (x[i] + gated_convolution(dropout(x[i]))) * sqrt(0.5)
        outputs = (linear(x[last]) + embedded) * sqrt(0.5)

    Unlike the paper, which compares with the top alone and reads the sum, decoders here project both from the sum, so
    that any encoder goes with any decoder.

    Args:
      embedding_size: units of an embedded token.
      size, width, layers: units of a layer, steps of a window (odd), layers.
      positions, max_positions, scale_embedding: see `positions.TokenInput`.
      weight_norm: in convolutions.
      dropout: chance of dropping a unit of the embedding and of a convolution's input.
    """

    def __init__(self, embedding_size, size, width=3, layers=4, positions='learned', max_positions=1024,
                 scale_embedding=True, weight_norm=False, dropout=0.0, name='encoder'):  # fmt: skip
        super().__init__(name=name)
        self.output_size = size
        with self.name_scope:
            self.input = TokenInput(embedding_size, size, positions, max_positions, scale_embedding, dropout)
            self.enter = LinearOp(size, size, name='enter')
            self.layers = [
                GatedConvolution(size, width, False, weight_norm, dropout, name=f'layer_{i}') for i in range(layers)
            ]
            self.leave = LinearOp(size, size, name='leave')

    def __call__(self, embedded, mask, seed=None):
        """Encodes.

        Args:
          embedded: `[B, S, embedding_size]` float; mask: `[B, S]` bool.
          seed: `[2]` int32 for dropout, or None for none.
        Returns:
          `EncoderOutput` with outputs `[B, S, size]` and no state.
        """
        real, zero = mask[:, :, tf.newaxis], tf.zeros([], embedded.dtype)
        placed = self.input(embedded, seed=seed)
        x = tf.where(real, self.enter(placed), zero)
        for layer in self.layers:
            x = tf.where(real, (x + layer(x, seed)) * HALF, zero)
        return EncoderOutput(tf.where(real, (self.leave(x) + placed) * HALF, zero), mask, ())


class ConvMemory(NamedTuple):
    """What decoder steps need of a source."""

    layers: Any  # a tuple over layers of (keys, values), each [B, 1, S, D]
    penalty: tf.Tensor  # [B, 1, S]
    mask: tf.Tensor  # [B, S] bool
    length_scale: tf.Tensor  # [B, 1, 1], sqrt of the source length


class ConvDecoderLayer(tf.Module):
    """A causal gated convolution, then attention of what it gave and the embedded target over the source.

    h        = gated_convolution(dropout(x))
    query    = (linear(h) + embedded) * sqrt(0.5)
    weights  = softmax(query . keys / sqrt(D))
    x'       = ((h + linear(weights @ values * sqrt(source length))) * sqrt(0.5) + x) * sqrt(0.5)
    """

    def __init__(self, size, width, weight_norm, dropout, name='layer'):
        super().__init__(name=name)
        with self.name_scope:
            self.convolution = GatedConvolution(size, width, True, weight_norm, dropout)
            self.query = LinearOp(size, size, name='query')
            self.output = LinearOp(size, size, name='output')

    def __call__(self, x, placed, keys, values, memory, seed=None):
        """Maps `[B, T, D]` to the same and the weights `[B, T, S]`; `placed` `[B, T, D]` is the embedded target."""
        return self.attend(x, self.convolution(x, seed), placed, keys, values, memory)

    def step(self, x, placed, keys, values, memory, cache):
        """One step of `[B, W, D]`: rows, weights and the new cache; see `GatedConvolution.step`."""
        gated, cache = self.convolution.step(x, cache)
        return *self.attend(x, gated, placed, keys, values, memory), cache

    def attend(self, x, gated, placed, keys, values, memory):
        query = (self.query(gated) + placed) * HALF
        scores = tf.matmul(query * tf.cast(query.shape[-1] ** -0.5, query.dtype), keys[:, 0], transpose_b=True)
        wide = scores if scores.dtype == tf.float64 else tf.cast(scores, tf.float32)
        weights = tf.cast(tf.nn.softmax(wide - memory.penalty), query.dtype)
        found = tf.matmul(weights, values[:, 0]) * memory.length_scale
        return ((gated + self.output(found)) * HALF + x) * HALF, weights


class ConvDecoder(tf.Module):
    """Causal gated convolutions that each attend to the source.

    Args:
      value_size: units of an encoder output, of whichever kind the encoder is.
      the others: as in `ConvEncoder`; `width` may be even here.
    """

    recurrent = False

    def __init__(self, embedding_size, value_size, size, width=3, layers=4, positions='learned', max_positions=1024,
                 scale_embedding=True, weight_norm=False, dropout=0.0, name='decoder'):  # fmt: skip
        super().__init__(name=name)
        self.output_size = self.size = size
        self.width = width
        with self.name_scope:
            self.input = TokenInput(embedding_size, size, positions, max_positions, scale_embedding, dropout)
            self.enter = LinearOp(size, size, name='enter')
            self.layers = [
                ConvDecoderLayer(size, width, weight_norm, dropout, name=f'layer_{i}') for i in range(layers)
            ]
            self.leave = LinearOp(size, size, name='leave')
            self.leave_dropout = Dropout(dropout, name='leave_dropout')
            self.source = SourceProjection(value_size, size, 1, layers)

    def memory(self, encoded):
        """What steps need of the source, made once a batch: `ConvMemory`."""
        dtype = encoded.outputs.dtype
        lengths = tf.math.count_nonzero(encoded.mask, axis=1, dtype=tf.float32)
        return ConvMemory(
            layers=self.source(encoded.outputs),
            penalty=penalty_where(encoded.mask, dtype)[:, tf.newaxis],
            mask=encoded.mask,
            length_scale=tf.cast(tf.sqrt(lengths), dtype)[:, tf.newaxis, tf.newaxis],
        )

    def initial_state(self, encoded, width, max_steps=None):
        """The state before the first step of `width` hypotheses: for each layer the frames before it, all zero."""
        frames = tf.zeros([tf.shape(encoded.mask)[0], width, (self.width - 1) * self.size], encoded.outputs.dtype)
        return [frames for _ in self.layers]

    def step(self, embedded, state, memory, time, seed=None):
        """Reads one token of each hypothesis.

        Args:
          embedded: `[B, W, embedding_size]` float, the tokens just chosen (BOS first).
          state: from `initial_state` or the last step; memory: from `self.memory`.
          time: scalar int32, how many tokens came before.
          seed: unused, for search has no dropout.
        Returns:
          features `[B, W, size]`, the new state, attention weights `[B, W, S]`.
        """
        placed = self.input(embedded, time, same_place=True)
        x, weights, new = self.enter(placed), None, []
        for layer, (keys, values), cache in zip(self.layers, memory.layers, state):
            x, weights, cache = layer.step(x, placed, keys, values, memory, cache)
            new.append(cache)
        return self.leave(x), new, self.shown(weights, memory)

    def reorder(self, state, parents):
        """The state with hypothesis `parents[b, w]` in place `w`; parents `[B, W]` int32."""
        return [tf.gather(cache, parents, batch_dims=1) for cache in state]

    def __call__(self, embedded, encoded, mask, seed=None):
        """Reads whole targets (teacher forcing).

        Args:
          embedded: `[B, T, embedding_size]` float, BOS and all target tokens but the last.
          encoded: `EncoderOutput`; mask: `[B, T]` bool, unused: padding comes after what is real.
          seed: `[2]` int32 for dropout, or None.
        Returns:
          features `[B, T, size]`, attention weights `[B, T, S]`.
        """
        memory = self.memory(encoded)
        placed = self.input(embedded, seed=seed)
        x, weights = self.enter(placed), None
        for layer, (keys, values) in zip(self.layers, memory.layers):
            x, weights = layer(x, placed, keys, values, memory, seed)
        return self.leave_dropout(self.leave(x), seed), self.shown(weights, memory)

    @staticmethod
    def shown(weights, memory):
        """The last layer's weights, 0 on padding."""
        return tf.where(memory.mask[:, tf.newaxis], weights, tf.zeros([], weights.dtype))
