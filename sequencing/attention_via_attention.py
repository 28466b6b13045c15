"""Attention via attention: attention over words tells how much each word counts, attention over characters where in it.

A source of characters is cut into words at its spaces, in the graph. Characters are read first; a word is what was read
at its ends, and words are read in turn. A decoder that writes characters sees both: the meaning of words, and how those
are spelled that it attends to, so that names and cognates can be carried over.
Reference: Zhao and Zhang, 2018, "Attention-via-Attention Neural Machine Translation", AAAI
"""

from typing import NamedTuple

import tensorflow as tf

from sequencing.attention import Attention
from sequencing.layers import LinearOp, glorot_uniform
from sequencing.rnn_encoders import StackBidirectionalRNNEncoder
from sequencing.structures import AttentionMemory, EncoderOutput

_LEAST = 1e-30  # what the powers of a word add up to at least: one over it is still a float32


class Words(NamedTuple):
    """Where the words of a batch are; C characters, S words."""

    word_of: tf.Tensor  # [B, C] int32, S on padding
    first: tf.Tensor  # [B, S] int32, character that a word begins with
    last: tf.Tensor  # [B, S] int32, character that it ends with
    mask: tf.Tensor  # [B, S] bool


class Characters(NamedTuple):
    """What was read of characters."""

    outputs: tf.Tensor  # [B, C, D] float
    mask: tf.Tensor  # [B, C] bool
    members: tf.Tensor  # [B, C, S] float32, 1 where a character belongs to a word


class Spelling(NamedTuple):
    """The mask of words and characters in one memory."""

    words: tf.Tensor  # [B, S] bool
    characters: tf.Tensor  # [B, C] bool
    members: tf.Tensor  # [B, C, S] float32


def find_words(ids, mask, space_id):
    """The words of `[B, C]` character ids: each ends with the space behind it, the last one with EOS. `Words`."""
    spaces = tf.cast(tf.logical_and(ids == space_id, mask), tf.int32)
    counts = tf.reduce_sum(spaces, axis=1) + tf.cast(tf.reduce_any(mask, axis=1), tf.int32)
    most = tf.reduce_max(counts)
    word_of = tf.where(mask, tf.cumsum(spaces, axis=1, exclusive=True), most)
    numbers = tf.range(most)[tf.newaxis] + tf.zeros_like(counts)[:, tf.newaxis]
    real = tf.sequence_mask(counts, most)
    first, last = [tf.searchsorted(word_of, numbers, side) for side in ('left', 'right')]
    return Words(word_of, tf.where(real, first, 0), tf.where(real, last - 1, 0), real)


class AvEncoder(tf.Module):
    """Reads characters both ways, then words both ways.

    A word is what was read forwards up to its end, and backwards down to its beginning.

    Args:
      cell, dropout: of the recurrent layers.
      input_size: units of an embedded character.
      state_size: units of a layer, of characters and words alike.
      layers: recurrent layers over words; there is one over characters.
    """

    def __init__(self, cell, input_size, state_size, layers=1, dropout=0.0, name='encoder'):
        super().__init__(name=name)
        self.output_size = state_size
        with self.name_scope:
            self.characters = StackBidirectionalRNNEncoder(cell, input_size, state_size, 1, dropout, name='characters')
            self.words = StackBidirectionalRNNEncoder(cell, state_size, state_size, layers, dropout, name='words')

    def __call__(self, embedded, mask, words, seed=None):
        """Encodes.

        Args:
          embedded: `[B, C, input_size]` float; mask: `[B, C]` bool.
          words: `Words`.
          seed: `[2]` int32 for dropout, or None.
        Returns:
          `EncoderOutput` of words, `[B, S, state_size]`, with `Characters` as final state.
        """
        read = self.characters(embedded, mask, seed).outputs
        forwards, backwards = tf.split(read, 2, axis=-1)
        ends = [tf.gather(forwards, words.last, batch_dims=1), tf.gather(backwards, words.first, batch_dims=1)]
        members = tf.one_hot(words.word_of, tf.shape(words.mask)[1], dtype=tf.float32)
        outputs = self.words(tf.concat(ends, axis=-1), words.mask, seed).outputs
        return EncoderOutput(outputs, words.mask, Characters(read, mask, members))


class AvAttention(Attention):
    """Additive attention over words, and through it over characters.

        word[w]      = softmax over words of energy(query, word keys)
        character[c] = word[word of c] * softmax over the characters of that word of energy(query, character keys)
        context      = [sum(word[w] * word values[w]), sum(character[c] * character values[c])]

    Words and characters stand in one memory, `[B, S + C, ...]`, words first, each with the other's part of the values
    left zero; a query is projected for both, `[.., 2K]`.
    """

    def __init__(self, query_size, value_size, attention_size, name='attention'):
        super().__init__(query_size, value_size, attention_size, name=name)
        self.context_size = 2 * value_size
        with self.name_scope:
            kernels = [glorot_uniform([query_size, attention_size]) for _ in range(2)]
            self.query_kernel = tf.Variable(tf.concat(kernels, axis=1), name='query_kernel')
            self.character_key_projection = LinearOp(value_size, attention_size, name='character_key_projection')
            self.character_energy = tf.Variable(glorot_uniform([attention_size]), name='character_energy')

    def memory(self, encoded):
        """`AttentionMemory` of words and characters, whose mask is a `Spelling`."""
        characters, size = encoded.final_state, encoded.outputs.shape[-1]
        keys = [self.key_projection(encoded.outputs), self.character_key_projection(characters.outputs)]
        values = [
            tf.pad(encoded.outputs, [[0, 0], [0, 0], [0, size]]),
            tf.pad(characters.outputs, [[0, 0], [0, 0], [size, 0]]),
        ]
        mask = Spelling(encoded.mask, characters.mask, characters.members)
        return AttentionMemory(tf.concat(keys, axis=1), tf.concat(values, axis=1), mask)

    def weights(self, dtype):
        return *super().weights(dtype), tf.cast(self.character_energy, dtype)

    @staticmethod
    def match(queries, keys, mask, *energies):
        """As `Attention.match`, of queries `[B, W, 2K]`; `mask` is a `Spelling`, `energies` those of either side."""
        sides = zip(tf.split(queries, 2, axis=-1), _sides(keys, mask, axis=1), energies)
        return tuple(tf.concat(parts, axis=2) for parts in zip(*[Attention.match(q, k, None, e) for q, k, e in sides]))

    @staticmethod
    def query_gradient(upstream, compared, keys, mask, *energies):
        sides = zip(_sides(upstream, mask, axis=1), _sides(compared, mask, axis=1), energies)
        return tf.concat([Attention.query_gradient(d, c, None, None, e) for d, c, e in sides], axis=1)

    @staticmethod
    def source_gradients(upstream, compared, queries, mask, *energies):
        sides = zip(_sides(upstream, mask, axis=2), _sides(compared, mask, axis=2), energies)
        d_keys, own = zip(*[Attention.source_gradients(d, c, None, None, e) for d, c, e in sides])
        return tf.concat(d_keys, axis=1), [*own[0], *own[1]]

    @staticmethod
    def normalise(energies, mask):
        """As `Attention.normalise`: `[B, W, S + C]`, words first; words sum to 1, and so do characters."""
        of_words, energies = _sides(energies, mask, axis=2)
        words = Attention.normalise(of_words, mask.words)
        real = tf.expand_dims(mask.characters, 1)
        energies = tf.where(real, tf.cast(energies, tf.float32), tf.float32.min)
        shifted = energies - tf.stop_gradient(tf.reduce_max(energies, axis=-1, keepdims=True))
        shifted = tf.where(real, shifted, 0.0)
        powers = tf.where(real, tf.exp(shifted), 0.0)
        # Divided in logarithms: the gradient of a quotient has the square of the divisor, which float32 may not hold.
        log_total = tf.math.log(tf.maximum(tf.matmul(powers, mask.members), _LEAST))  # [B, W, S]
        of_word = lambda x: tf.matmul(x, mask.members, transpose_b=True)
        characters = tf.exp(shifted - of_word(log_total)) * of_word(tf.cast(words, tf.float32))
        characters = tf.where(real, characters, 0.0)
        return tf.concat([words, tf.cast(characters, words.dtype)], axis=-1)

    @staticmethod
    def shown(weights, memory):
        """The weights of characters alone: those are the tokens of the source."""
        return weights[:, :, tf.shape(memory.mask.words)[1] :]


def _sides(x, mask, axis):
    """What stands in one memory, along `axis`: the part of words and that of characters."""
    return tf.split(x, [tf.shape(mask.words)[1], tf.shape(mask.characters)[1]], axis=axis)
