"""Decoding of FlowSeq by `argmax` and `iw`; see `sequencing.flowseq_decoding`, whose noise it shares."""

import math
from typing import NamedTuple

import numpy as np

from sequencing_np import noise
from sequencing_np.arrays import to_host
from sequencing_np.blocks import Rows

MODES = ('argmax', 'iw')


class FlowHypotheses(NamedTuple):
    """As `search.Hypotheses`, and what only flow models know; W candidates, best first."""

    ids: np.ndarray  # [B, W, T] int, EOS not included
    lengths: np.ndarray  # [B, W] int, EOS not counted
    scores: np.ndarray  # [B, W] float32, nats; -inf where there is no candidate
    rank_scores: np.ndarray  # [B, W] float32
    truncated: np.ndarray  # [B, W] bool
    length_log_probs: np.ndarray  # [B, W] float32, log p(T | x) of the candidate's length
    spans: np.ndarray  # [B, W] int, that length: the output with its EOS filling
    numbers: np.ndarray  # [B, W] int, which sample of that length the latent is, from 0
    candidates: np.ndarray  # [B] int, how many candidates there were to choose from


class Candidates(NamedTuple):
    """Target sentences, C for each of B sources; arrays of NumPy."""

    ids: np.ndarray  # [B, C, T] int, EOS from the first one to the candidate's length, PAD beyond
    spans: np.ndarray  # [B, C] int
    scores: np.ndarray  # [B, C] float32, log p(y | z, x)
    length_log_probs: np.ndarray  # [B, C] float32, -inf where there is no candidate
    truncated: np.ndarray  # [B, C] bool, whether the length limit cut it
    numbers: np.ndarray  # [B, C] int, which sample of its length the latent is, from 0


def translate(model, src_ids, src_mask, limits, options):
    """Decodes a batch.

    Args:
      model: `FlowSeq`.
      src_ids, src_mask: `[B, S]` int and bool, ending in EOS; limits: `[B]` int, EOS not counted.
      options: `DecodeOptions`.
    Returns:
      `FlowHypotheses`.
    """
    source = model.encode(src_ids, src_mask)
    keys = noise.source_hash(src_ids, src_mask)
    if options.decode == 'argmax':
        chosen_from = options.flow_candidates()
        found = argmax(model, source, keys, options.tau, chosen_from, options.seed, limits)
        ranks = found.scores
    else:
        chosen_from, found = 1, candidates(model, source, keys, options, limits)
        scores = weighted_scores(model, source, keys, found, options.iw_k, options.seed)
        ranks, found = scores / found.spans, found._replace(scores=scores)
    possible = found.length_log_probs > -np.inf
    found = found._replace(scores=np.where(possible, found.scores, -np.inf))
    return _best_first(model, found, np.where(possible, ranks, -np.inf), possible.sum(axis=1) * chosen_from)


def _best_first(model, found, ranks, count):
    order = np.argsort(-ranks, axis=1, kind='stable')
    spans, scores, length_log_probs, truncated, numbers, ranks = [
        np.take_along_axis(x, order, axis=1)
        for x in (found.spans, found.scores, found.length_log_probs, found.truncated, found.numbers, ranks)
    ]
    ids = np.take_along_axis(found.ids, order[:, :, np.newaxis], axis=1)
    places = np.arange(ids.shape[2])
    inside = (ids != model.eos_id) & (places < spans[:, :, np.newaxis])
    return FlowHypotheses(
        ids=np.where(inside, ids, model.pad_id),
        lengths=inside.sum(axis=2),  # all that follows the first EOS is EOS
        scores=scores,
        rank_scores=ranks,
        truncated=truncated,
        length_log_probs=length_log_probs,
        spans=spans,
        numbers=numbers,
        candidates=count,
    )


def argmax(model, source, keys, tau, samples, seed, limits):
    """The candidate of the most probable length: from zero noise, or from the likeliest of `samples` noisy latents."""
    lengths, length_log_probs = _lengths(model, source, 1)
    rows, draws = _noise(model, lengths, keys, samples, tau, seed, zero_first=False)
    z, density = generate(model, source, rows, draws)
    best = np.zeros(len(lengths), int)
    if samples > 1:
        best = to_host(density).reshape(-1, samples).argmax(axis=1)
        places = model.xp.asarray(best + samples * np.arange(len(best)))
        z = z.reshape(rows.batch, rows.time, -1)[places].reshape(-1, z.shape[1])
        rows = Rows(model.xp, rows.mask[places])
    return _as_candidates(decode(model, source, z, rows, limits), rows, length_log_probs, best[:, np.newaxis])


def candidates(model, source, keys, options, limits):
    """`nlen * ntr` candidates a source, those of one length next to each other, the first of each without noise."""
    lengths, length_log_probs = _lengths(model, source, options.nlen)
    rows, draws = _noise(model, lengths, keys, options.ntr, options.tau, options.seed, zero_first=True)
    z, _ = generate(model, source, rows, draws)
    decoded = decode(model, source, z, rows, limits)
    numbers = np.tile(np.arange(options.ntr), lengths.shape[1])
    return _as_candidates(decoded, rows, np.repeat(length_log_probs, options.ntr, axis=1), numbers)


def _lengths(model, source, count):
    return model.lengths.predict(source.context, to_host(source.rows.mask.sum(axis=1)), count)


def _noise(model, lengths, keys, samples, tau, seed, zero_first):
    """`Rows` of `B * L * samples` latents for lengths `[B, L]`, and their noise, flat, zero at padding."""
    xp, longest = model.xp, int(lengths.max())
    mask = np.arange(longest) < np.repeat(lengths.reshape(-1), samples)[:, np.newaxis]
    rows = Rows(xp, xp.asarray(mask))
    if tau == 0.0:
        return rows, xp.zeros((mask.size, model.latent_size), np.float32)
    number = np.arange(samples)[:, np.newaxis, np.newaxis]
    draws = noise.normals(
        seed,
        keys[:, np.newaxis, np.newaxis, np.newaxis, np.newaxis],
        lengths[:, :, np.newaxis, np.newaxis, np.newaxis],
        number,
        np.arange(longest)[:, np.newaxis],
        np.arange(model.latent_size),
    )
    if zero_first:
        draws = np.where(number > 0, draws, np.float32(0))
    return rows, rows.only_real(np.float32(tau) * xp.asarray(draws.reshape(mask.size, -1)))


def generate(model, source, rows, draws):
    """Latents from noise, flat, and log p(z | x), one for each sentence of `rows`."""
    z, log_det = model.prior.inverse(draws, rows, source.prepared(model.prior))
    return z, model.normal_log_prob(draws, rows) - log_det


def decode(model, source, z, rows, limits):
    """The likeliest tokens for flat latents, several sentences for each of the B `limits`: ids `[N, T]` of NumPy, PAD
    at padding, EOS beyond the limit; log p(y | z, x) of these, `[N]`; whether the limit cut them, `[N]`."""
    logits = model.logits(z, rows, source)
    barred = model.barred_ids
    kept = logits[:, barred]
    logits[:, barred] = -np.inf
    chosen = to_host(logits.argmax(axis=1))
    logits[:, barred] = kept
    mask = to_host(rows.mask)
    ids = np.full(mask.shape, model.pad_id)
    ids[mask] = chosen
    ends = (ids == model.eos_id) & mask
    ids = np.where(mask & (ends.cumsum(axis=1) > ends), model.eos_id, ids)  # what follows the first EOS is EOS
    limits = np.repeat(limits, len(ids) // len(limits))[:, np.newaxis]
    beyond = mask & (np.arange(rows.time) >= limits)
    truncated = (beyond & (ids != model.eos_id)).any(axis=1)
    ids = np.where(beyond, model.eos_id, ids)
    return ids, to_host(model.chosen(logits, model.xp.asarray(ids[mask]), rows)), truncated


def _as_candidates(decoded, rows, length_log_probs, numbers):
    (ids, scores, truncated), count = decoded, length_log_probs.shape[1]
    spans = to_host(rows.mask.sum(axis=1))
    return Candidates(
        ids.reshape(-1, count, rows.time), spans.reshape(-1, count), scores.reshape(-1, count), length_log_probs,
        truncated.reshape(-1, count), np.broadcast_to(numbers, length_log_probs.shape),
    )  # fmt: skip


def weighted_scores(model, source, keys, found, samples, seed):
    """The importance-weighted estimate of log p(y | x) of every candidate, `[B, C]`; the noise is keyed by both, and
    candidates that several latents led to are scored once."""
    found, places = distinct(found)
    return np.take_along_axis(_weighted_scores(model, source, keys, found, samples, seed), places, axis=1)


def distinct(found):
    """The candidates of each source without repetitions, and places among them; as in `sequencing`."""
    same = (found.ids[:, :, np.newaxis] == found.ids[:, np.newaxis]).all(axis=3)
    twin = np.argmax(same & (found.spans[:, :, np.newaxis] == found.spans[:, np.newaxis]), axis=2)
    first = twin == np.arange(twin.shape[1])
    places = np.take_along_axis(np.cumsum(first, axis=1) - 1, twin, axis=1)
    order = np.argsort(~first, axis=1, kind='stable')[:, : places.max() + 1]
    spans, log_probs = [np.take_along_axis(x, order, axis=1) for x in (found.spans, found.length_log_probs)]
    ids = np.take_along_axis(found.ids, order[:, :, np.newaxis], axis=1)
    return Candidates(ids, spans, None, log_probs, None, None), places


def _weighted_scores(model, source, keys, found, samples, seed):
    count, longest = found.ids.shape[1:]
    ids, mask = found.ids.reshape(-1, longest), np.arange(longest) < found.spans.reshape(-1, 1)
    hashes = noise.source_hash(ids, mask).reshape(-1, count)
    keys = noise.mix(keys[:, np.newaxis], hashes).reshape(-1)
    number = np.arange(samples)[:, np.newaxis, np.newaxis]
    draws = noise.normals(
        seed, 0, keys[:, np.newaxis, np.newaxis, np.newaxis], number, np.arange(longest)[:, np.newaxis],
        np.arange(model.latent_size),
    )  # fmt: skip
    weights = to_host(importance_weights(model, source, ids, mask, draws))
    highest = weights.max(axis=1)
    estimate = np.log(np.exp(weights - highest[:, np.newaxis]).sum(axis=1)) + highest - math.log(samples)
    return estimate.reshape(-1, count) + found.length_log_probs


def importance_weights(model, source, ids, mask, draws):
    """log p(z | x) + log p(y | z, x) - log q(z | x, y) for posterior samples z.

    Args:
      source: `EncodedSource` of B sentences.
      ids, mask: `[N, T]`, N / B targets for each source; draws: `[N, k, T, D]` standard normal; all of NumPy.
    Returns:
      `[N, k]` in nats.
    """
    xp, count = model.xp, draws.shape[1]
    ids, rows = xp.asarray(ids), Rows(xp, xp.asarray(mask))
    ends = model.posterior(model.trg_table[ids.reshape(-1)], rows, source.prepared(model.posterior))
    many = rows.repeated(count)
    mean, log_variance = [
        np.repeat(end.reshape(rows.batch, rows.time, -1), count, axis=0).reshape(-1, end.shape[1]) for end in ends
    ]
    draws = many.only_real(xp.asarray(draws.reshape(-1, draws.shape[3])))
    z = mean + np.exp(0.5 * log_variance) * draws
    log_q = -0.5 * many.sums(log_variance + np.square(draws) + np.float32(math.log(2.0 * math.pi)))
    log_p = model.prior_log_prob(z, many, source)
    log_likelihood = model.log_probs(z, np.repeat(ids, count, axis=0), many, source)
    return (log_p + log_likelihood - log_q).reshape(-1, count)
