"""Transformer encoder and decoder, pre- or post-norm.

Between their borders sentences are flat rows `[B * T, D]`; see `multi_head_attention.py`.

Reference: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762
"""

from typing import Any, NamedTuple

import tensorflow as tf

from sequencing.layers import Dropout, LayerNorm, LinearOp
from sequencing.multi_head_attention import (
    SelfAttention,
    SourceAttention,
    SourceProjection,
    causal_penalty,
    packed_linear,
    penalty_where,
    source_penalty,
)
from sequencing.positions import TokenInput, rotation
from sequencing.structures import EncoderOutput

ACTIVATIONS = {'relu': tf.nn.relu, 'gelu': tf.nn.gelu, 'swiglu': None}


class FeedForward(tf.Module):
    """`outer(dropout(activation(inner(x))))` on flat rows.

    'swiglu' multiplies two inner halves, `silu(gate) * value` (Shazeer, 2020, https://arxiv.org/abs/2002.05202): at
    the same `hidden_size` it has half as many weights again as the others.

    Args:
      size, hidden_size: units outside and inside.
      activation: 'relu', 'gelu' (exact) or 'swiglu'.
      dropout: chance of dropping an inner unit.
    """

    def __init__(self, size, hidden_size, activation='relu', dropout=0.0, name='feed_forward'):
        super().__init__(name=name)
        if activation not in ACTIVATIONS:
            raise ValueError(f'{name}: activation is one of {", ".join(ACTIVATIONS)}; got {activation!r}.')
        self.activation = ACTIVATIONS[activation]
        with self.name_scope:
            self.inner = packed_linear(size, hidden_size, 1 if self.activation else 2, name='inner')
            self.outer = LinearOp(hidden_size, size, name='outer')
            self.dropout = Dropout(dropout)

    def __call__(self, x, seed=None):
        hidden = self.inner(x)
        if self.activation is tf.nn.relu:
            return self.outer(self.dropout.of_relu(hidden, seed))
        if self.activation is None:
            gate, value = tf.split(hidden, 2, axis=-1)
            hidden = tf.nn.silu(gate) * value
        else:
            hidden = self.activation(hidden)
        return self.outer(self.dropout(hidden, seed))


class Residual(tf.Module):
    """What surrounds a part `f` of a layer.

    pre-norm:  x + dropout(f(norm(x)))
    post-norm: norm(x + dropout(f(x)))
    """

    def __init__(self, size, pre_norm, dropout, name):
        super().__init__(name=name)
        self.pre_norm = pre_norm
        with self.name_scope:
            self.norm = LayerNorm(size)
            self.dropout = Dropout(dropout)

    def enter(self, x):
        """What `f` reads."""
        return self.norm(x) if self.pre_norm else x

    def leave(self, x, found, seed):
        """The sum of `x` and what `f` made of it."""
        # The gradient of add_n needs no reduction to shapes that TensorFlow does not know to be equal; search fuses +.
        x = x + found if seed is None else tf.add_n([x, self.dropout(found, seed)])
        return x if self.pre_norm else self.norm(x)


class EncoderLayer(tf.Module):
    """Attention over the sentence, then feed-forward. Arguments as in `TransformerEncoder`."""

    def __init__(self, size, heads, hidden_size, activation, pre_norm, dropout, attention_dropout,
                 hidden_dropout, name='layer'):  # fmt: skip
        super().__init__(name=name)
        with self.name_scope:
            self.self_attention = SelfAttention(size, heads, attention_dropout)
            self.self_residual = Residual(size, pre_norm, dropout, name='self_residual')
            self.feed_forward = FeedForward(size, hidden_size, activation, hidden_dropout)
            self.feed_residual = Residual(size, pre_norm, dropout, name='feed_residual')

    def parts(self):
        """Each part's surroundings, the linear map that reads its input and the one that writes its output."""
        return [
            (self.self_residual, self.self_attention.projection, self.self_attention.output),
            (self.feed_residual, self.feed_forward.inner, self.feed_forward.outer),
        ]

    def __call__(self, x, batch, penalty, turn=None, seed=None):
        """Flat rows to flat rows; see `SelfAttention`."""
        found = self.self_attention(self.self_residual.enter(x), batch, penalty, turn, seed)
        x = self.self_residual.leave(x, found, seed)
        return self.feed_residual.leave(x, self.feed_forward(self.feed_residual.enter(x), seed), seed)


class DecoderLayer(EncoderLayer):
    """Attention over what came before and over the source, then feed-forward."""

    def __init__(self, size, heads, hidden_size, activation, pre_norm, dropout, attention_dropout,
                 hidden_dropout, name='layer'):  # fmt: skip
        super().__init__(
            size, heads, hidden_size, activation, pre_norm, dropout, attention_dropout, hidden_dropout, name
        )
        with self.name_scope:
            self.source_attention = SourceAttention(size, heads, attention_dropout)
            self.source_residual = Residual(size, pre_norm, dropout, name='source_residual')

    def parts(self):
        attention = self.source_attention
        return [*super().parts(), (self.source_residual, attention.query, attention.output)]

    def __call__(self, x, keys, values, batch, penalty, source, turn=None, seed=None):
        """Reads whole targets.

        Args:
          x: flat `[B * T, D]`; keys, values: `[B, H, S, d]`; penalty, source: of the target and of the source.
        Returns:
          flat `[B * T, D]` and the weights over the source, `[B, H, T, S]`.
        """
        found = self.self_attention(self.self_residual.enter(x), batch, penalty, turn, seed)
        return self._after(self.self_residual.leave(x, found, seed), keys, values, (batch, -1), source, seed)

    def step(self, x, keys, values, width, cache, penalty, source, turn=None):
        """Reads one step, flat `[B * W, D]`; see `SelfAttention.step`. Returns rows, weights and the new cache."""
        found, cache = self.self_attention.step(self.self_residual.enter(x), width, cache, penalty, turn)
        x, weights = self._after(self.self_residual.leave(x, found, None), keys, values, (-1, width), source, None)
        return x, weights, cache

    def _after(self, x, keys, values, sizes, source, seed):
        queries = self.source_residual.enter(x)
        found, weights = self.source_attention(queries, sizes, keys, values, source, seed)
        x = self.source_residual.leave(x, found, seed)
        return self.feed_residual.leave(x, self.feed_forward(self.feed_residual.enter(x), seed), seed), weights


class TransformerStack(tf.Module):
    """What encoder and decoder share: input, layers, last normalisation.

    Args:
      layer_kind: `EncoderLayer` or `DecoderLayer`.
      embedding_size: units of an embedded token.
      size, heads, hidden_size, layers: units of a layer, heads that share them, units inside feed-forward, layers.
      activation: of feed-forward: 'relu', 'gelu' or 'swiglu'.
      pre_norm: normalise what a part reads (and the last output) rather than what it gives.
      positions, max_positions, scale_embedding: see `positions.TokenInput`; rotary ones turn queries and keys.
      dropout: chance of dropping an embedded unit or one that a part adds; attention_dropout: an attention weight;
        hidden_dropout: a unit inside feed-forward.
      recompute: keep only the layers' inputs for the backward pass and compute the rest again: less memory, a third
        more arithmetic.
    """

    def __init__(self, layer_kind, embedding_size, size, heads, hidden_size, layers, activation='relu', pre_norm=True,
                 positions='sinusoidal', max_positions=1024, scale_embedding=True, dropout=0.0, attention_dropout=0.0,
                 hidden_dropout=0.0, recompute=False, name='stack'):  # fmt: skip
        super().__init__(name=name)
        self.output_size = self.size = size
        self.heads, self.rotary, self.recompute = heads, positions == 'rotary', recompute
        if self.rotary and (size // heads) % 2:
            raise ValueError(f'{name}: rotary positions turn units in pairs; a head has {size // heads}.')
        with self.name_scope:
            self.input = TokenInput(embedding_size, size, positions, max_positions, scale_embedding, dropout)
            self.layers = [
                layer_kind(
                    size, heads, hidden_size, activation, pre_norm, dropout, attention_dropout, hidden_dropout,
                    name=f'layer_{i}',
                )
                for i in range(layers)
            ]  # fmt: skip
            self.final_norm = LayerNorm(size, name='final_norm') if pre_norm else None

    def store_for_decoding(self, dtype):
        """See `layers.store_for_decoding`.

        Pre-norm layers see each unit only relative to the mean of all: where nothing that is added up has a mean,
        normalisation need not look for one. Its scale and shift go to what reads it.
        """
        if self.final_norm is None:
            return
        for residual, reader, writer in [part for layer in self.layers for part in layer.parts()]:
            residual.norm.fold_into(reader)
            residual.norm.centred = True
            writer.centre()
        self.input.centred = self.final_norm.centred = True

    def turn(self, start, count, like):
        """Rotary angles, or None where positions are not rotary."""
        return rotation(start, count, self.size // self.heads, like.dtype) if self.rotary else None

    def run(self, layer, *inputs):
        """`layer(*inputs)`, computed again in the backward pass if so wished."""
        return tf.recompute_grad(layer)(*inputs) if self.recompute else layer(*inputs)

    def finish(self, x, like):
        """The last layer's rows as the outside sees them: normalised where layers do not, folded as `like` is."""
        x = x if self.final_norm is None else self.final_norm(x)
        return tf.ensure_shape(tf.reshape(x, tf.shape(like)), like.shape)


class TransformerEncoder(TransformerStack):
    """Layers of self-attention and feed-forward over an embedded source. Arguments as in `TransformerStack`."""

    def __init__(self, *sizes, name='encoder', **options):
        super().__init__(EncoderLayer, *sizes, name=name, **options)

    def __call__(self, embedded, mask, seed=None):
        """Encodes.

        Args:
          embedded: `[B, S, embedding_size]` float.
          mask: `[B, S]` bool.
          seed: `[2]` int32 for dropout, or None for none.
        Returns:
          `EncoderOutput` with outputs `[B, S, size]` and no state.
        """
        placed = self.input(embedded, seed=seed)
        batch, count = tf.shape(placed)[0], tf.shape(placed)[1]
        penalty, turn = source_penalty(mask, placed.dtype), self.turn(0, count, placed)
        x = tf.reshape(placed, [-1, self.size])
        for layer in self.layers:
            x = self.run(lambda x, layer=layer: layer(x, batch, penalty, turn, seed), x)
        outputs = tf.where(mask[:, :, tf.newaxis], self.finish(x, placed), tf.zeros([], x.dtype))
        return EncoderOutput(outputs, mask, ())


class TransformerMemory(NamedTuple):
    """What decoder steps need of a source."""

    layers: Any  # a tuple over layers of (keys, values), each [B, H, S, d]
    penalty: tf.Tensor  # [B, 1, 1, S]
    mask: tf.Tensor  # [B, S] bool


class TransformerDecoderState(NamedTuple):
    """Steps taken so far. What hypotheses said stays where it was written; `ancestors` tells whose it is now.

    So a beam that changes its order moves a few integers, and keys and values are never copied between hypotheses.
    """

    caches: Any  # a tuple over layers of (keys, values), each [B, H, P, d]: P = steps x W, hypotheses within steps
    ancestors: tf.Tensor  # [B, W, steps] int32, which hypothesis of each step this one continues; [B, 1, 0] if W is 1


class TransformerDecoder(TransformerStack):
    """Layers of causal self-attention, attention over the source and feed-forward.

    Args:
      value_size: units of an encoder output, of whichever kind the encoder is.
      the others: as in `TransformerStack`.
    """

    recurrent = False

    def __init__(self, embedding_size, value_size, size, heads, hidden_size, layers, name='decoder', **options):
        super().__init__(DecoderLayer, embedding_size, size, heads, hidden_size, layers, name=name, **options)
        with self.name_scope:
            self.source = SourceProjection(value_size, size, heads, layers)

    def memory(self, encoded):
        """What steps need of the source, made once a batch: `TransformerMemory`."""
        penalty = source_penalty(encoded.mask, encoded.outputs.dtype)
        return TransformerMemory(self.source(encoded.outputs), penalty, encoded.mask)

    def initial_state(self, encoded, width, max_steps=None):
        """The state before the first step of `width` hypotheses a sentence."""
        batch, head = tf.shape(encoded.mask)[0], self.size // self.heads
        shape = [batch, self.heads, 0, head]
        # Passed through an operation that hides the 0 from shape inference, so that a loop lets the axis grow.
        empty = tf.raw_ops.PlaceholderWithDefault(
            input=tf.zeros(shape, encoded.outputs.dtype), shape=[encoded.mask.shape[0], self.heads, None, head]
        )
        ancestors = tf.zeros([batch, width, 0], tf.int32)
        if width > 1:
            ancestors = tf.raw_ops.PlaceholderWithDefault(input=ancestors, shape=[encoded.mask.shape[0], width, None])
        return TransformerDecoderState(tuple((empty, empty) for _ in self.layers), ancestors)

    def step(self, embedded, state, memory, time, seed=None):
        """Reads one token of each hypothesis.

        Args:
          embedded: `[B, W, embedding_size]` float, the tokens just chosen (BOS first); W is known.
          state: `TransformerDecoderState`; memory: from `self.memory`.
          time: scalar int32, how many tokens came before.
          seed: unused, for search has no dropout.
        Returns:
          features `[B, W, size]`, the new state, attention weights `[B, W, S]`.
        """
        placed = self.input(embedded, time, same_place=True)
        batch, width = tf.shape(embedded)[0], embedded.shape[1]
        penalty, ancestors, turn = None, state.ancestors, self.turn(time, 1, placed)
        if width > 1:
            own = tf.broadcast_to(tf.range(width)[:, tf.newaxis], [batch, width, 1])
            ancestors = tf.concat([ancestors, own], axis=2)
            seen = ancestors[:, :, :, tf.newaxis] == tf.range(width)
            penalty = penalty_where(tf.reshape(seen, [batch, 1, width, -1]), placed.dtype)
        x, weights, caches = tf.reshape(placed, [-1, self.size]), None, []
        for layer, (keys, values), cache in zip(self.layers, memory.layers, state.caches):
            x, weights, cache = layer.step(x, keys, values, width, cache, penalty, memory.penalty, turn)
            caches.append(cache)
        new = TransformerDecoderState(tuple(caches), ancestors)
        return self.finish(x, placed), new, self.shown(weights, memory.mask, embedded.dtype)

    def reorder(self, state, parents):
        """The state with hypothesis `parents[b, w]` in place `w`; parents `[B, W]` int32."""
        return state._replace(ancestors=tf.gather(state.ancestors, parents, batch_dims=1))

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
        batch, count = tf.shape(placed)[0], tf.shape(placed)[1]
        penalty, turn = causal_penalty(count, placed.dtype), self.turn(0, count, placed)
        x, weights = tf.reshape(placed, [-1, self.size]), None
        for layer, (keys, values) in zip(self.layers, memory.layers):
            x, weights = self.run(
                lambda x, keys, values, layer=layer: layer(x, keys, values, batch, penalty, memory.penalty, turn, seed),
                x, keys, values,
            )  # fmt: skip
        return self.finish(x, placed), self.shown(weights, memory.mask, embedded.dtype)

    @staticmethod
    def shown(weights, mask, dtype):
        """The last layer's weights `[B, H, T, S]` as one map `[B, T, S]`: their mean over heads, 0 on padding."""
        mean = tf.cast(tf.reduce_mean(weights, axis=1), dtype)
        return tf.where(mask[:, tf.newaxis], mean, tf.zeros([], dtype))
