"""Decoding of FlowSeq: a length, latents from the prior, all tokens at once; several candidates share a source.

    argmax  one length; the latent is the flow's image of zero noise, or the most probable of `ntr` noisy ones
    sample  `nlen` lengths with `ntr` noisy latents each, all of them returned
    iw      candidates as in `sample`, the first of each length without noise; ranked by an importance-weighted
            estimate of log p(y | x), divided by the length
    npd, mbr  the candidates of iw, which `reranking` ranks by another model's score, or by how well they agree

Noise is keyed by (seed, source, length, number of the sample, position): a sentence gets the same in any batch, and who
knows an output's length and number can make its latent again, as `score` does. PAD, UNK and BOS are never chosen (PAD
and UNK are where the model is told to choose as the published one does). What follows the first EOS, or the length
limit, is EOS, and the `score` is that of this output.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from sequencing import noise
from sequencing.blocks import Rows
from sequencing.flowseq_posteriors import sample_posterior

MODES = ('argmax', 'sample', 'iw', 'npd', 'mbr')
FIRST_WITHOUT_NOISE = ('iw', 'npd', 'mbr')  # of the samples of a length


class FlowHypotheses(NamedTuple):
    """As `structures.Hypotheses`, and what only flow models know; W candidates, best first."""

    ids: tf.Tensor  # [B, W, T] int32, EOS not included, PAD after the end
    lengths: tf.Tensor  # [B, W] int32, EOS not counted
    scores: tf.Tensor  # [B, W] float32, nats; -inf where there is no candidate
    rank_scores: tf.Tensor  # [B, W] float32
    truncated: tf.Tensor  # [B, W] bool, True where the length limit came before EOS
    attention: tf.Tensor  # [B, W, T, 0] float32
    length_log_probs: tf.Tensor  # [B, W] float32, log p(T | x) of the candidate's length
    spans: tf.Tensor  # [B, W] int32, that length: the output with its EOS filling
    numbers: tf.Tensor  # [B, W] int32, which sample of that length the latent is, from 0
    candidates: tf.Tensor  # [B] int32, how many candidates there were to choose from


class Candidates(NamedTuple):
    """Target sentences, C for each of B sources."""

    ids: tf.Tensor  # [B, C, T] int32, EOS from the first one to the candidate's length, PAD beyond
    spans: tf.Tensor  # [B, C] int32, lengths with EOS filling, multiples of the length unit
    scores: tf.Tensor  # [B, C] float32, log p(y | z, x)
    length_log_probs: tf.Tensor  # [B, C] float32, -inf where there is no candidate
    truncated: tf.Tensor  # [B, C] bool
    numbers: tf.Tensor  # [B, C] int32, which sample of its length the latent is, from 0


def translate(model, src_ids, src_mask, limits, options, seed=None, room=None):
    """Translates a batch.

    Args:
      model: `FlowSeq`.
      src_ids, src_mask: `[B, S]` int32 and bool, ending in EOS.
      limits: `[B]` int32, longest outputs in tokens, EOS not counted.
      options: `DecodeOptions`; seed: scalar int32 in place of the seed in them.
      room: int, a multiple of the length unit: outputs have so many positions and longer lengths are cut to it, so that
        with a batch of known size all sizes are known beforehand; None for as many as there have to be.
    Returns:
      `FlowHypotheses`.
    """
    seed = options.seed if seed is None else seed
    source = model.encode(src_ids, src_mask)
    keys = noise.source_hash(src_ids, src_mask)
    if options.decode == 'argmax':
        samples = options.flow_candidates()
        found = argmax(model, source, keys, options.tau, samples, seed, limits, room)
        chosen_from, ranks = samples, found.scores
    else:
        zero_first = options.decode in FIRST_WITHOUT_NOISE
        asked = options.nlen, options.ntr, options.tau, seed, zero_first
        found = candidates(model, source, keys, *asked, limits, room)
        chosen_from, ranks = 1, found.scores
        if options.decode == 'iw':
            scores = weighted_scores(model, source, keys, found, options.iw_k, seed, fixed=room is not None)
            found, ranks = found._replace(scores=scores), scores / tf.cast(found.spans, tf.float32)
    possible = found.length_log_probs > -math.inf
    found = found._replace(scores=tf.where(possible, found.scores, -math.inf))
    count = tf.reduce_sum(tf.cast(possible, tf.int32), axis=1) * chosen_from
    return _best_first(model, found, tf.where(possible, ranks, -math.inf), count)


def _best_first(model, found, ranks, count):
    ranks, order = tf.math.top_k(ranks, ranks.shape[1])
    found = Candidates(*[tf.gather(x, order, batch_dims=1) for x in found])
    inside = (found.ids != model.eos_id) & tf.sequence_mask(found.spans, tf.shape(found.ids)[2])
    lengths = tf.reduce_sum(tf.cast(inside, tf.int32), axis=2)  # all that follows the first EOS is EOS
    ids = tf.where(inside, found.ids, model.pad_id)
    return FlowHypotheses(
        ids=ids,
        lengths=lengths,
        scores=found.scores,
        rank_scores=ranks,
        truncated=found.truncated,
        attention=tf.zeros(tf.concat([tf.shape(ids), [0]], axis=0)),
        length_log_probs=found.length_log_probs,
        spans=found.spans,
        numbers=found.numbers,
        candidates=count,
    )


def argmax(model, source, keys, tau, samples, seed, limits=None, room=None):
    """The candidate of the most probable length: from zero noise, or from the likeliest of `samples` noisy latents."""
    lengths, length_log_probs = _lengths(model, source, 1, room)
    rows, draws = _noise(model, lengths, keys, samples, tau, seed, False, room)
    z, density = generate(model, source, rows, draws)
    best = tf.zeros([tf.shape(lengths)[0]], tf.int32)
    if samples > 1:
        best = tf.argmax(tf.reshape(density, [-1, samples]), axis=1, output_type=tf.int32)
        places = best + samples * tf.range(tf.size(best))
        z, rows = tf.gather(rows.padded(z), places), Rows(tf.gather(rows.mask, places))
        z = rows.flat(z)
    return _as_candidates(decode(model, source, z, rows, limits), rows, length_log_probs, best[:, tf.newaxis])


def candidates(model, source, keys, lengths_count, samples, tau, seed, zero_first, limits=None, room=None):
    """`lengths_count * samples` candidates a source, those of one length next to each other; fewer where the length
    predictor has fewer lengths.

    Args:
      keys: `[B]` uint32, what the noise of a source is keyed by.
      zero_first: make the first sample of each length noise-free.
      limits: `[B]` int32, longest outputs; None for no limit.
    Returns:
      `Candidates`.
    """
    lengths, length_log_probs = _lengths(model, source, lengths_count, room)
    rows, draws = _noise(model, lengths, keys, samples, tau, seed, zero_first, room)
    z, _ = generate(model, source, rows, draws)
    decoded, log_probs = decode(model, source, z, rows, limits), tf.repeat(length_log_probs, samples, axis=1)
    return _as_candidates(decoded, rows, log_probs, tf.tile(tf.range(samples), [lengths.shape[1]]))


def _lengths(model, source, count, room=None):
    return model.length_predictor.predict(source.context, source.lengths, count, room)


def _noise(model, lengths, keys, samples, tau, seed, zero_first, room):
    """`Rows` of `B * L * samples` latents for lengths `[B, L]`, and their noise, flat, zero at padding."""
    longest = tf.reduce_max(lengths) if room is None else room
    rows = Rows(tf.sequence_mask(tf.repeat(tf.reshape(lengths, [-1]), samples), longest))
    shape = tf.stack([rows.batch * rows.time, model.latent_size])
    if tau == 0.0 or (zero_first and samples == 1):
        return rows, tf.zeros(shape)
    place = keys[:, tf.newaxis, tf.newaxis], lengths[:, :, tf.newaxis], tf.range(samples)
    draws = _draws(model, *place, longest, tau, seed, zero_first)
    return rows, rows.only_real(tf.reshape(draws, shape))


def _draws(model, keys, lengths, numbers, time, tau, seed, zero_first):
    """Noise `[..., time, D]` of samples with these keys, lengths and numbers, which are broadcast to `[...]`."""
    keys, lengths, numbers = [x[..., tf.newaxis, tf.newaxis] for x in (keys, lengths, numbers)]
    positions = tf.range(time)[:, tf.newaxis]
    draws = tau * noise.normals(seed, keys, lengths, numbers, positions, tf.range(model.latent_size))
    return tf.where(numbers > 0, draws, 0.0) if zero_first else draws


def generate(model, source, rows, draws):
    """Latents from noise, flat `[N, D]`, and log p(z | x), one each; several for each source."""
    z, log_det = model.prior.inverse_and_log_det(rows.padded(draws), mask=rows.mask, memory=source.for_prior())
    density = -0.5 * rows.sums(tf.square(draws) + math.log(2.0 * math.pi)) - log_det
    return rows.flat(z), density


def decode(model, source, z, rows, limits=None, keep_tail=False):
    """The likeliest tokens for given latents, several sentences for each source.

    Args:
      z: flat latents; rows: their `Rows`.
      limits: `[B]` int32, longest outputs in tokens, EOS not counted; None for no limit.
      keep_tail: leave what follows the first EOS as it is, as in the published implementation.
    Returns:
      ids `[N, T]` int32, PAD at padding; log p(y | z, x) of these, `[N]`; whether a limit cut them, `[N]` bool.
    """
    logits = model.logits(z, rows, source)
    barred = tf.constant(model.barred_ids(), tf.int32)
    barred = tf.reduce_any(tf.one_hot(barred, model.vocab_size, True, False), axis=0)
    ids = tf.argmax(tf.where(barred, -math.inf, logits), axis=1, output_type=tf.int32)
    ids = tf.reshape(ids, [rows.batch, rows.time])
    if not keep_tail:
        before = tf.math.cumsum(tf.cast(ids == model.eos_id, tf.int32), axis=1, exclusive=True)
        ids = tf.where(before > 0, model.eos_id, ids)
    truncated = tf.zeros([rows.batch], tf.bool)
    if limits is not None:
        limits = tf.repeat(limits, rows.batch // tf.size(limits))
        beyond = tf.range(rows.time) >= limits[:, tf.newaxis]
        truncated = tf.reduce_any(beyond & rows.mask & (ids != model.eos_id), axis=1)
        ids = tf.where(beyond, model.eos_id, ids)
    return tf.where(rows.mask, ids, model.pad_id), _log_probs(logits, ids, rows), truncated


def _log_probs(logits, ids, rows):
    """log p of sentences `[B, T]`, from scores of all tokens `[B * T, N]`; `[B]`."""
    chosen = tf.gather(logits, tf.reshape(ids, [-1]), batch_dims=1) - tf.reduce_logsumexp(logits, axis=1)
    return rows.sums(chosen[:, tf.newaxis])


def reconstruct(model, batch):
    """The likeliest tokens for the posterior's mean, as `decode` gives them: what a latent holds of its target."""
    source, rows = model.encode(batch.src_ids, batch.src_mask), Rows(batch.trg_mask)
    mean, _ = model.posterior_ends(batch.trg_ids, rows, source)
    return decode(model, source, mean, rows)


def _as_candidates(decoded, rows, length_log_probs, numbers):
    (ids, scores, truncated), count = decoded, length_log_probs.shape[1]
    return Candidates(
        ids=tf.reshape(ids, [-1, count, rows.time]),
        spans=tf.reshape(rows.counts(tf.int32), [-1, count]),
        scores=tf.reshape(scores, [-1, count]),
        length_log_probs=length_log_probs,
        truncated=tf.reshape(truncated, [-1, count]),
        numbers=tf.broadcast_to(numbers, tf.shape(length_log_probs)),
    )


def score(model, src_ids, src_mask, trg_ids, trg_mask, options, seed=None, numbers=None):
    """What decoding would report as `scores` for given targets, one for each source.

    Args:
      trg_ids, trg_mask: `[B, T]`, filled with EOS to a multiple of the length unit (to the `spans` of a hypothesis).
      options: `DecodeOptions`: for `iw` the weighted estimate with its `iw_k` and `seed`; else log p(y | z, x) with the
        latent of zero noise, or with `tau` above 0 that of its number.
      seed: as in `translate`.
      numbers: `[B]` int32, as `FlowHypotheses` tells them; read where there is noise.
    Returns:
      scores `[B]` and log p(T | x) of the targets' lengths `[B]`, -inf for one that cannot be told; in nats.
    """
    source = model.encode(src_ids, src_mask)
    rows = Rows(trg_mask)
    spans = rows.counts(tf.int32)
    lengths, log_probs = _lengths(model, source, model.length_predictor.most_lengths)
    length_log_probs = tf.reduce_max(tf.where(lengths == spans[:, tf.newaxis], log_probs, -math.inf), axis=1)
    keys = noise.source_hash(src_ids, src_mask)
    seed = options.seed if seed is None else seed
    if options.decode != 'iw':
        draws = tf.zeros([rows.batch * rows.time, model.latent_size])
        if options.tau:
            zero_first = options.decode in FIRST_WITHOUT_NOISE
            noisy = _draws(model, keys, spans, numbers, rows.time, options.tau, seed, zero_first)
            draws = rows.only_real(rows.flat(noisy))
        z, _ = generate(model, source, rows, draws)
        return -model.cross_entropies(z, trg_ids, rows, source)[1], length_log_probs
    given = Candidates(trg_ids[:, tf.newaxis], spans[:, tf.newaxis], None, length_log_probs[:, tf.newaxis], None, None)
    return weighted_scores(model, source, keys, given, options.iw_k, seed)[:, 0], length_log_probs


def weighted_scores(model, source, keys, found, samples, seed, fixed=False):
    """The importance-weighted estimate of log p(y | x) of every candidate, the length's probability included, `[B, C]`.

    The noise is keyed by source and candidate, so whoever scores the same pair gets the same number; candidates that
    several latents led to are scored once. Where sizes are `fixed`, all are, and no work is saved on padding either.
    """
    if fixed:
        return _weighted_scores(model, source, keys, found, samples, seed, fixed)
    found, places = distinct(found)
    return tf.gather(_weighted_scores(model, source, keys, found, samples, seed, fixed), places, batch_dims=1)


def distinct(found):
    """The candidates of each source without repetitions, C as many as the source with most of them has.

    Args:
      found: `Candidates`; ids, spans and length_log_probs are read.
    Returns:
      `Candidates` of these three, and for each one that was given its place among them, `[B, C]` int32.
    """
    one, other = [(x[:, :, tf.newaxis], x[:, tf.newaxis]) for x in (found.ids, found.spans)]
    same = tf.reduce_all(one[0] == one[1], axis=3) & (other[0] == other[1])
    numbers = tf.range(tf.shape(same)[1])
    twin = tf.reduce_min(tf.where(same, numbers, tf.size(numbers)), axis=2)  # of equals, argmax need not take the first
    first = twin == numbers
    places = tf.gather(tf.cumsum(tf.cast(first, tf.int32), axis=1) - 1, twin, batch_dims=1)
    order = tf.argsort(tf.cast(first, tf.int32), axis=1, direction='DESCENDING', stable=True)
    order = order[:, : tf.reduce_max(places) + 1]
    kept = [tf.gather(x, order, batch_dims=1) for x in (found.ids, found.spans, found.length_log_probs)]
    return Candidates(*kept[:2], None, kept[2], None, None), places


def _weighted_scores(model, source, keys, found, samples, seed, fixed):
    shape = found.ids.shape if fixed else tf.shape(found.ids)
    mask = tf.sequence_mask(found.spans, shape[2])
    hashes = noise.source_hash(tf.reshape(found.ids, [-1, shape[2]]), tf.reshape(mask, [-1, shape[2]]))
    keys = noise.mix(keys[:, tf.newaxis], tf.reshape(hashes, shape[:2]))
    draws = model.latent_noise(tf.stack([seed, 0]), tf.reshape(keys, [-1]), samples, shape[2])
    rows = Rows(tf.reshape(mask, [-1, shape[2]]))
    weights = importance_weights(model, source, tf.reshape(found.ids, [-1, shape[2]]), rows, draws, fixed)
    estimate = tf.reduce_logsumexp(weights, axis=1) - math.log(samples)
    return tf.reshape(estimate, shape[:2]) + found.length_log_probs


def importance_weights(model, source, ids, rows, draws, fixed=False):
    """log p(z | x) + log p(y | z, x) - log q(z | x, y) for posterior samples z.

    Args:
      source: `EncodedSource` of B sentences.
      ids: `[N, T]` int32, N / B targets for each source; rows: their `Rows`.
      draws: `[N, k, T, D]` standard normal.
      fixed: score tokens of padding, too, so that sizes do not depend on the targets.
    Returns:
      `[N, k]` in nats.
    """
    mean, log_variance = model.posterior_ends(ids, rows, source)
    many, z, log_q = sample_posterior(mean, log_variance, rows, draws)
    count = draws.shape[1]
    log_p = model.prior_log_prob(z, many, source)
    ids = tf.repeat(ids, count, axis=0)
    if fixed:
        nll = -_log_probs(model.logits(z, many, source), ids, many)
    else:
        nll = model.cross_entropies(z, ids, many, source)[1]
    return tf.reshape(log_p - nll - log_q, [-1, count])
