"""Every shape that crosses a border between parts, on one page.

Dimension key: B batch, S source steps, T target steps, D depth, K key size, V value size, W width (hypotheses walked
side by side: 1 for greedy search, the beam size for beam search, T when a whole target is read at once), N vocabulary.
Ids are int32, masks are bool and True on real tokens, padding is on the right.
"""

from typing import Any, NamedTuple

import tensorflow as tf


class Batch(NamedTuple):
    """Sentence pairs as they reach a model. Targets end in EOS; the BOS that a decoder starts from is not in them."""

    src_ids: tf.Tensor  # [B, S] int32, PAD after the end
    src_mask: tf.Tensor  # [B, S] bool
    trg_ids: tf.Tensor  # [B, T] int32, PAD after the end
    trg_mask: tf.Tensor  # [B, T] bool
    index: tf.Tensor  # [B] int64, the pair's number in the corpus: what dropout-free noise is keyed by; -1 for a pair
    # that stands in where a replica has none, and counts for nothing


class Replicas(NamedTuple):
    """The replicas of one worker among all that train together."""

    first: int = 0  # number of the first one here
    local: int = 1  # how many are here
    total: int = 1  # in all workers


class AttentionMemory(NamedTuple):
    """What a decoder may look at; made once a batch by the encoder."""

    keys: tf.Tensor  # [B, S, K] float, already projected where the attention compares projected keys
    values: tf.Tensor  # [B, S, V] float
    mask: Any  # [B, S] bool, or a `Spelling` where words and characters stand in one memory


class EncoderOutput(NamedTuple):
    """An encoded source."""

    outputs: tf.Tensor  # [B, S, D] float, zero on padding
    mask: tf.Tensor  # [B, S] bool
    final_state: Any  # a nest of [B, ...] tensors, `Characters` of an `AvEncoder`, or () for encoders that keep none


class LossParts(NamedTuple):
    """Sums over a batch, so that batches, accumulation steps and replicas add up before anything is divided."""

    loss: tf.Tensor  # scalar, what is minimised (smoothed, regularised), in nats
    nll: tf.Tensor  # scalar, plain negative log-likelihood, in nats
    tokens: tf.Tensor  # scalar float, real target tokens, EOS included
    sentences: tf.Tensor  # scalar float, real sentences


class Hypotheses(NamedTuple):
    """What decoding found for a batch, best first."""

    ids: tf.Tensor  # [B, W, T] int32, EOS not included, PAD after the end
    lengths: tf.Tensor  # [B, W] int32, EOS not counted
    scores: tf.Tensor  # [B, W] float32, log-probability in nats, EOS included; -inf where there is no hypothesis
    rank_scores: tf.Tensor  # [B, W] float32, what the hypotheses are ordered by
    truncated: tf.Tensor  # [B, W] bool, True where the length limit came before EOS
    attention: tf.Tensor  # [B, W, T, S] float32, or [B, W, T, 0] where it was not asked for


class AllowedTokens(NamedTuple):
    """What the outputs of a batch may be made of, for search with a shortlist."""

    tokens: tf.Tensor  # [U] int32, ascending ids, of all its sentences together
    allowed: tf.Tensor  # [B, U] bool, which of them each sentence may use: no sentence sees another's
