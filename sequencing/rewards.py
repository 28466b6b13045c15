"""Rewards of sequence-level training, computed in the graph: BLEU of every prefix of a sentence, and chrF.

N-grams are compared pair by pair, so nothing is hashed and nothing leaves the graph; a batch of M sequences of T tokens
costs M * T * (T + R) comparisons an order, R being the tokens of the references.
"""

import math

import numpy as np
import tensorflow as tf

BLEU_ORDER = 4
CHRF_ORDER, CHRF_BETA = 6, 2  # as in chrF2


def ngram_matches(ids, lengths, references, reference_lengths, order):
    """Which n-grams count as found in the reference, each occurrence there serving once.

    Args:
      ids: `[M, T]` int32; lengths: `[M]` int32.
      references: `[M, R]` int32; reference_lengths: `[M]` int32.
      order: the longest n.
    Returns:
      `[M, T, order]` float32, 1 where the n-gram that ends at a step is found; 0 beyond the length.
    """
    steps, real = tf.range(tf.shape(ids)[1]), tf.sequence_mask(lengths, tf.shape(ids)[1])
    in_reference = tf.sequence_mask(reference_lengths, tf.shape(references)[1])[:, tf.newaxis]
    up_to_here = steps[tf.newaxis, :] <= steps[:, tf.newaxis]
    same = own = tf.logical_and(ids[:, :, tf.newaxis] == ids[:, tf.newaxis], up_to_here)  # [M, T, T]
    there = found = tf.logical_and(ids[:, :, tf.newaxis] == references[:, tf.newaxis], in_reference)  # [M, T, R]
    matches = []
    for n in range(1, order + 1):
        if n > 1:  # the n-gram is the same if its last token is, and the shorter one before
            own, found = tf.logical_and(same, _shifted(own)), tf.logical_and(there, _shifted(found))
        so_far, in_all = [tf.math.count_nonzero(x, axis=2, dtype=tf.int32) for x in (own, found)]
        matches.append(tf.logical_and(so_far <= in_all, tf.logical_and(real, steps >= n - 1)))
    return tf.cast(tf.stack(matches, axis=2), tf.float32)


def _shifted(pairs):
    """`[M, T, S]` moved on by one step in both sequences."""
    shape = tf.shape(pairs)
    return tf.pad(pairs, [[0, 0], [1, 0], [1, 0]])[:, : shape[1], : shape[2]]


def prefix_bleu(ids, lengths, references, reference_lengths):
    """Sentence BLEU of every prefix, from 0 to 1: sacreBLEU's over pieces joined by spaces, without tokenisation, with
    exponential smoothing and effective order.

    Args: as in `ngram_matches`, EOS not counted.
    Returns:
      `[M, T + 1]` float32; at t the BLEU of the first t tokens, or of all where there are fewer.
    Reference: Chen and Cherry, 2014, smoothing 3, https://aclanthology.org/W14-3346
    """
    matches = ngram_matches(ids, lengths, references, reference_lengths, BLEU_ORDER)
    correct = tf.pad(tf.cumsum(matches, axis=1), [[0, 0], [1, 0], [0, 0]])  # [M, T + 1, order]
    count = tf.minimum(tf.range(tf.shape(ids)[1] + 1)[tf.newaxis], lengths[:, tf.newaxis])  # tokens of the prefix
    total = tf.cast(tf.maximum(count[:, :, tf.newaxis] - tf.range(BLEU_ORDER), 0), tf.float32)
    counts = tf.cast(total > 0, tf.float32)  # an order without n-grams is left out
    missed = tf.where(correct > 0, 0.0, counts)
    halvings = tf.cumsum(missed, axis=2)  # each order without a match is given half of what the one before it was
    log_precision = tf.where(
        correct > 0, tf.math.log(tf.maximum(correct, 1.0)), -math.log(2.0) * halvings
    ) - tf.math.log(tf.maximum(total, 1.0))
    mean = tf.reduce_sum(counts * log_precision, axis=2) / tf.maximum(tf.reduce_sum(counts, axis=2), 1.0)
    ratio = tf.cast(reference_lengths[:, tf.newaxis], tf.float32) / tf.maximum(tf.cast(count, tf.float32), 1.0)
    brevity = tf.minimum(0.0, 1.0 - ratio)
    return tf.where(correct[:, :, 0] > 0, tf.exp(mean + brevity), 0.0)


def chrf(ids, lengths, references, reference_lengths, table):
    """Sentence chrF2 of the decoded text, from 0 to 1, as sacreBLEU has it.

    Args:
      the first four: as in `ngram_matches`, tokens without EOS.
      table: `[N, L]` int32 from `characters_of`.
    Returns:
      `[M]` float32.
    Reference: Popovic, 2015, https://aclanthology.org/W15-3049
    """
    written, length = _spelled(ids, lengths, table)
    wanted, reference_length = _spelled(references, reference_lengths, table)
    correct = tf.reduce_sum(ngram_matches(written, length, wanted, reference_length, CHRF_ORDER), axis=1)  # [M, order]
    totals, reference_totals = [
        tf.cast(tf.maximum(count[:, tf.newaxis] - tf.range(CHRF_ORDER), 0), tf.float32)
        for count in (length, reference_length)
    ]
    both = tf.cast(tf.logical_and(totals > 0, reference_totals > 0), tf.float32)
    orders = tf.maximum(tf.reduce_sum(both, axis=1), 1.0)
    precision = tf.reduce_sum(both * correct / tf.maximum(totals, 1.0), axis=1) / orders
    recall = tf.reduce_sum(both * correct / tf.maximum(reference_totals, 1.0), axis=1) / orders
    below = CHRF_BETA**2 * precision + recall
    return tf.math.divide_no_nan((1 + CHRF_BETA**2) * precision * recall, below)


def _spelled(ids, lengths, table):
    """Token ids `[M, T]` to character codes `[M, C]` and how many there are, `[M]`."""
    codes = tf.gather(table, ids)
    real = tf.logical_and(codes > 0, tf.sequence_mask(lengths, tf.shape(ids)[1])[:, :, tf.newaxis])
    counts = tf.math.count_nonzero(real, axis=[1, 2])
    rows = tf.RaggedTensor.from_row_lengths(tf.boolean_mask(codes, real), counts, validate=False)
    return rows.to_tensor(), tf.cast(counts, tf.int32)


def characters_of(vocab):
    """The characters of each token but white space, `[N, L]` int32 codes, 0 after the end."""
    texts = []
    for i, token in enumerate(vocab.tokens):
        if i in (vocab.pad_id, vocab.bos_id, vocab.eos_id):
            token = ''
        elif i == vocab.unk_id:
            token = vocab.decode([i])
        elif vocab.subword == 'spm':
            token = token.replace('\u2581', ' ')
        elif vocab.subword == 'bpe':
            token = token.removesuffix('@@')
        texts.append([ord(character) for character in ''.join(token.split())])
    table = np.zeros([len(texts), max(1, *map(len, texts))], np.int32)
    for row, text in zip(table, texts):
        row[: len(text)] = text
    return table
