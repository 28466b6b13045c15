"""Attention over words, and through it over characters; see `sequencing.attention_via_attention`."""

from typing import NamedTuple

import numpy as np

from sequencing_np.layers import linear, softmax
from sequencing_np.rnn import RNNDecoder, RNNEncoder, RNNWalk

_LEAST = np.float32(1e-30)


class Words(NamedTuple):
    """Where the words of a batch are; arrays of NumPy."""

    members: np.ndarray  # [B, C, S] float32, 1 where a character belongs to a word
    first: np.ndarray  # [B, S] int, character that a word begins with
    last: np.ndarray  # [B, S] int, character that it ends with
    mask: np.ndarray  # [B, S] bool


def find_words(ids, mask, space_id):
    """The words of `[B, C]` character ids; arrays of NumPy."""
    spaces = (ids == space_id) & mask
    counts = spaces.sum(axis=1) + mask.any(axis=1)
    word_of = np.cumsum(spaces, axis=1) - spaces
    members = (word_of[:, :, np.newaxis] == np.arange(counts.max())) & mask[:, :, np.newaxis]
    first, last = members.argmax(axis=1), ids.shape[1] - 1 - members[:, ::-1].argmax(axis=1)
    real = np.arange(counts.max()) < counts[:, np.newaxis]
    return Words(members.astype(np.float32), first, np.where(real, last, 0), real)


class AvEncoder:
    """Reads characters both ways, then words both ways."""

    def __init__(self, weights, part, embedding_size):
        self.xp = weights.xp
        self.characters, self.words = [
            RNNEncoder(weights.below(name), part, embedding_size) for name in ('characters', 'words')
        ]

    def __call__(self, embedded, mask, words):
        """Flat `[B * C, E]`, mask `[B, C]` and `Words` to outputs of words, flat, their mask, those of characters,
        their mask, and which belong to which."""
        read = self.characters(embedded, mask)
        units, start = read.shape[1] // 2, np.arange(len(mask))[:, np.newaxis] * mask.shape[1]
        last, first = [self.xp.asarray((start + places).reshape(-1)) for places in (words.last, words.first)]
        ends = np.concatenate([read[last][:, :units], read[first][:, units:]], axis=1)
        real, members = self.xp.asarray(words.mask), self.xp.asarray(words.members)
        return self.words(ends, real), real, read, mask, members


class AvDecoder(RNNDecoder):
    """A recurrent decoder that attends to words and to their characters."""

    def __init__(self, weights, part, embedding_size):
        super().__init__(weights, part, embedding_size)
        self.character_keys = linear(weights.below('attention/character_key_projection'))
        self.character_energy = weights['attention/character_energy']

    def start(self, *encoded_and_width):
        """As `RNNDecoder.start`, from all that `AvEncoder` gives."""
        return AvWalk(self, *encoded_and_width)


class AvWalk(RNNWalk):
    """As `RNNWalk`."""

    def __init__(self, decoder, outputs, mask, characters, character_mask, members, width):
        super().__init__(decoder, outputs, mask, width)
        shape = (*character_mask.shape, -1)
        self.character_values = characters.reshape(shape)
        self.character_keys = decoder.character_keys(characters).reshape(shape)
        self.padding, self.members = ~character_mask[:, np.newaxis], members
        self.context = np.concatenate([self.context, self.context], axis=1)

    def _attend(self, queries):
        decoder = self.decoder
        queries = (queries @ decoder.query).reshape(len(self.keys), self.width, 1, -1)
        size = queries.shape[3] // 2
        words = np.tanh(self.keys[:, np.newaxis] + queries[..., :size]) @ decoder.energy
        if self.hidden is not None:
            words = np.where(self.hidden, -np.inf, words)
        words = softmax(words)
        energies = np.tanh(self.character_keys[:, np.newaxis] + queries[..., size:]) @ decoder.character_energy
        energies = np.where(self.padding, -np.inf, energies)
        shifted = energies - energies.max(axis=2, keepdims=True)
        log_total = np.log(np.maximum(np.exp(shifted) @ self.members, _LEAST))
        of_word = self.members.swapaxes(1, 2)
        weights = np.exp(shifted - log_total @ of_word) * (words @ of_word)
        context = np.concatenate([words @ self.values, weights @ self.character_values], axis=2)
        return context.reshape(-1, context.shape[2])

    def keep(self, sentences, rows):
        super().keep(sentences, rows)
        sentences = self.decoder.xp.asarray(sentences)
        self.character_keys, self.character_values = self.character_keys[sentences], self.character_values[sentences]
        self.padding, self.members = self.padding[sentences], self.members[sentences]
