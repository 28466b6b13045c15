"""The recurrent decoder with attention, a step at a time for search and over whole targets for training."""

from typing import Any, NamedTuple

import tensorflow as tf

from sequencing.attention import ATTENTIONS
from sequencing.attention_scan import attention_scan
from sequencing.attention_via_attention import AvAttention
from sequencing.layers import Dropout, LinearOp
from sequencing.recurrent import RecurrentLayer, state_dtype

KINDS = {**ATTENTIONS, 'via': AvAttention}


class RNNDecoderState(NamedTuple):
    cells: Any  # a list over layers of states, fields [B, W, H]
    context: tf.Tensor  # [B, W, V] float, what the last step attended to


class Bridge(tf.Module):
    """Starts each decoder layer from the encoder: tanh of a linear map of the mean over real source steps.

    The mean serves every kind of encoder, recurrent or not, and an empty source gives the bias.
    """

    def __init__(self, value_size, cell, state_size, layers, name='bridge'):
        super().__init__(name=name)
        self.fields = len(cell.state._fields)
        with self.name_scope:
            self.projection = LinearOp(value_size, self.fields * state_size * layers, name='projection')
        self.cell, self.layers = cell, layers

    def __call__(self, encoded):
        """Maps an `EncoderOutput` to a list over layers of states, fields `[B, H]`."""
        outputs = tf.cast(encoded.outputs, state_dtype(encoded.outputs.dtype))
        lengths = tf.reduce_sum(tf.cast(encoded.mask, outputs.dtype), axis=1, keepdims=True)
        real = tf.where(encoded.mask[:, :, tf.newaxis], outputs, tf.zeros([], outputs.dtype))
        mean = tf.reduce_sum(real, axis=1) / tf.maximum(lengths, 1)
        start = tf.cast(tf.tanh(self.projection(tf.cast(mean, encoded.outputs.dtype))), outputs.dtype)
        parts = tf.split(start, self.fields * self.layers, axis=-1)
        return [self.cell.state(*parts[i * self.fields : (i + 1) * self.fields]) for i in range(self.layers)]


class AttentionRNNDecoder(tf.Module):
    """A recurrent decoder that attends to the source and feeds what it found back into its next step.

        state[t]    = cell([embedded[t], context[t - 1]], state[t - 1])
        context[t]  = attention(state[t], source)
        deeper layers read [output below, context[t]], each adding to what it read from the second on
        features[t] = tanh(linear([embedded[t], top output[t], context[t]]))

    Only the first layer depends on attention step by step, so deeper layers run over whole targets in training (as in
    Wu et al., 2016, section 3.1, https://arxiv.org/abs/1609.08144).

    Args:
      cell, state_size, layers, dropout: of the recurrent layers.
      input_size, value_size: sizes of an embedded token and of an encoder output.
      attention, attention_size: kind of attention ('additive', 'general', 'dot', 'via') and its size.
      readout_size: size of the features that go to the vocabulary.
      recompute: in training, compare states and source again in the backward pass: slower, and less memory.
    """

    recurrent = True  # reads whole targets step by step too

    def __init__(self, cell, input_size, value_size, state_size, attention='additive', attention_size=512,
                 readout_size=512, layers=1, dropout=0.0, recompute=False, name='rnn_decoder'):  # fmt: skip
        super().__init__(name=name)
        self.recompute = recompute
        self.state_size, self.output_size = state_size, readout_size
        with self.name_scope:
            self.attention = KINDS[attention](state_size, value_size, attention_size, name='attention')
            context_size = self.attention.context_size
            first = RecurrentLayer(cell, input_size + context_size, state_size, name='layer_0')
            deeper = [RecurrentLayer(cell, state_size + context_size, state_size, name=f'layer_{i}')
                      for i in range(1, layers)]  # fmt: skip
            self.layers = [first, *deeper]
            self.bridge = Bridge(value_size, first.cell, state_size, layers, name='bridge')
            self.readout = LinearOp(input_size + state_size + context_size, readout_size, name='readout')
            self.input_dropout = Dropout(dropout, name='input_dropout')
            self.layer_dropout = [Dropout(dropout, name=f'layer_dropout_{i}') for i in range(1, layers)]
            self.readout_dropout = Dropout(dropout, name='readout_dropout')

    def memory(self, encoded):
        """What steps need of the source, made once a batch: `AttentionMemory`."""
        return self.attention.memory(encoded)

    def initial_state(self, encoded, width, max_steps=None):
        """The state before the first step of `width` hypotheses a sentence; `max_steps` is for decoders with caches."""
        cells = [
            type(state)(*[tf.repeat(field[:, tf.newaxis], width, axis=1) for field in state])
            for state in self.bridge(encoded)
        ]
        shape = [tf.shape(encoded.mask)[0], width, self.attention.context_size]
        return RNNDecoderState(cells, tf.zeros(shape, encoded.outputs.dtype))

    def step(self, embedded, state, memory, time, seed=None):
        """Reads one token of each hypothesis.

        Args:
          embedded: `[B, W, E]` float, the tokens just chosen (BOS first).
          state: `RNNDecoderState`; memory: from `self.memory`.
          time: scalar int32, how many tokens came before (unused here).
          seed: `[2]` int32 for dropout, or None.
        Returns:
          features `[B, W, readout_size]`, the new state, attention weights `[B, W, S]`.
        """
        embedded = self.input_dropout(embedded, seed)
        new = self.layers[0].step(tf.concat([embedded, state.context], axis=-1), state.cells[0])
        cells, top = [new], tf.cast(new.output, embedded.dtype)
        context, weights = self.attention(top, memory)
        for i, (layer, old, dropout) in enumerate(zip(self.layers[1:], state.cells[1:], self.layer_dropout)):
            new = layer.step(tf.concat([dropout(top, seed), context], axis=-1), old)
            cells.append(new)
            output = tf.cast(new.output, embedded.dtype)
            top = output + top if i > 0 else output
        return self._features(embedded, top, context, seed), RNNDecoderState(cells, context), weights

    def reorder(self, state, parents):
        """The state with hypothesis `parents[b, w]` in place `w`; parents `[B, W]` int32."""
        return tf.nest.map_structure(lambda leaf: tf.gather(leaf, parents, batch_dims=1), state)

    def __call__(self, embedded, encoded, mask, seed=None):
        """Reads whole targets (teacher forcing).

        Args:
          embedded: `[B, T, E]` float, BOS and all target tokens but the last.
          encoded: `EncoderOutput`; mask: `[B, T]` bool.
          seed: `[2]` int32 for dropout, or None.
        Returns:
          features `[B, T, readout_size]`, attention weights `[B, T, S]`.
        """
        memory = self.memory(encoded)
        initial = self.bridge(encoded)
        embedded = self.input_dropout(embedded, seed)
        outputs, contexts, weights = attention_scan(
            self.layers[0], self.attention, embedded, memory, initial[0], self.recompute
        )
        top = outputs
        for i, (layer, state, dropout) in enumerate(zip(self.layers[1:], initial[1:], self.layer_dropout)):
            new, _ = layer(tf.concat([dropout(top, seed), contexts], axis=-1), mask, initial_state=state)
            top = new + top if i > 0 else new
        return self._features(embedded, top, contexts, seed), self.attention.shown(weights, memory)

    def _features(self, embedded, top, context, seed):
        features = tf.tanh(self.readout(tf.concat([embedded, top, context], axis=-1)))
        return self.readout_dropout(features, seed)
