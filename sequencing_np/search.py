"""Greedy and beam search. A sentence that is done is walked no further.

Both do what `sequencing.feedback` says: a hypothesis that ends keeps its place in the beam; at the length limit EOS is
forced; a sentence is done when no growing hypothesis can overtake its `nbest` best finished ones.
"""

from typing import NamedTuple

import numpy as np

from sequencing_np.arrays import to_host


class Hypotheses(NamedTuple):
    """As `sequencing.structures.Hypotheses`, best first; arrays of NumPy."""

    ids: np.ndarray  # [B, W, T] int32, EOS not included, 0 after the end
    lengths: np.ndarray  # [B, W] int32, EOS not counted
    scores: np.ndarray  # [B, W] float32, nats, EOS included; -inf where there is no hypothesis
    rank_scores: np.ndarray  # [B, W] float32
    truncated: np.ndarray  # [B, W] bool


def length_penalty(length, alpha):
    """((5 + length) / 6) ** alpha (Wu et al., 2016, equation 14)."""
    return ((5.0 + np.asarray(length, np.float32)) / np.float32(6.0)) ** np.float32(alpha)


def greedy(model, src_ids, src_mask, limits, options):
    """The likeliest token, always. Arguments as in `Seq2Seq.translate`."""
    batch, steps = len(src_ids), int(limits.max()) + 1
    found = Hypotheses(
        ids=np.zeros([batch, 1, steps], np.int32),
        lengths=np.zeros([batch, 1], np.int32),
        scores=np.zeros([batch, 1], np.float32),
        rank_scores=np.zeros([batch, 1], np.float32),
        truncated=np.zeros([batch, 1], bool),
    )
    walk, xp = model.start(src_ids, src_mask, 1), model.xp
    waiting = np.arange(batch)  # sentences that are not done
    ids = np.full([batch], model.bos_id)
    for time in range(steps):
        logits = model.logits(walk, ids, time)  # [n, N]
        likeliest = to_host(logits.argmax(axis=1))
        at_limit = time >= limits[waiting]
        ids = np.where(at_limit, model.eos_id, likeliest)
        chosen = to_host(np.take_along_axis(logits, xp.asarray(ids)[:, np.newaxis], axis=1))[:, 0]
        found.scores[waiting, 0] += chosen - to_host(logsumexp(logits))
        ended = ids == model.eos_id
        if not ended.any():
            found.ids[waiting, 0, time] = ids
            continue
        done = waiting[ended]
        found.lengths[done, 0] = time
        found.truncated[done, 0] = (at_limit & (likeliest != model.eos_id))[ended]
        going = np.flatnonzero(~ended)
        waiting, ids = waiting[going], ids[going]
        if not len(waiting):
            break
        found.ids[waiting, 0, time] = ids
        walk.keep(going, going)
    found.rank_scores[:] = found.scores / length_penalty(found.lengths, options.length_penalty)
    return found._replace(ids=found.ids[:, :, : found.lengths.max()])


class _Beam:
    """Hypotheses of the sentences that are not done; n of them, W hypotheses each."""

    def __init__(self, batch, width, steps):
        self.waiting = np.arange(batch)  # [n], numbers of the sentences
        self.log_probs = np.full([batch, width], -np.inf, np.float32)  # of hypotheses that grow
        self.log_probs[:, 0] = 0.0  # one to begin with: all of them would be the same
        self.tokens = np.zeros([batch, width, steps], np.int32)


def beam(model, src_ids, src_mask, limits, options):
    """Beam search. Arguments as in `Seq2Seq.translate`."""
    batch, steps, width, alpha = len(src_ids), int(limits.max()) + 1, options.beam_size, options.length_penalty
    found = Hypotheses(
        ids=np.zeros([batch, width, steps], np.int32),
        lengths=np.zeros([batch, width], np.int32),
        scores=np.full([batch, width], -np.inf, np.float32),
        rank_scores=np.full([batch, width], -np.inf, np.float32),
        truncated=np.zeros([batch, width], bool),
    )
    walk = model.start(src_ids, src_mask, width)
    now = _Beam(batch, width, steps)
    nbest = min(options.nbest, width)
    ids = np.full([batch, width], model.bos_id)
    for time in range(steps):
        logits = model.logits(walk, ids.reshape(-1), time)
        total, ids, parents, forced = _choose(model, logits, now, time >= limits[now.waiting])
        places_left = width - np.isfinite(found.scores[now.waiting]).sum(axis=1, keepdims=True)
        total = np.where(np.arange(width) < places_left, total, np.float32(-np.inf))
        tokens = np.take_along_axis(now.tokens, parents[:, :, np.newaxis], axis=1)
        ended = (ids == model.eos_id) & np.isfinite(total)
        if ended.any():
            scores = np.where(ended, total, np.float32(-np.inf))
            _keep_best(found, now.waiting, Hypotheses(
                tokens, np.full_like(ids, time), scores, scores / length_penalty(time, alpha), forced
            ))  # fmt: skip
        tokens[:, :, time] = ids
        live = np.where(ids == model.eos_id, np.float32(-np.inf), total)
        reach = live.max(axis=1) / length_penalty(limits[now.waiting], alpha)
        going = np.flatnonzero(reach > found.rank_scores[now.waiting, nbest - 1])
        now.log_probs, now.tokens = live, tokens
        if len(going) < len(live):
            now.waiting, now.log_probs, now.tokens = now.waiting[going], live[going], tokens[going]
            ids, parents = ids[going], parents[going]
            if not len(going):
                break
            walk.keep(going, (going[:, np.newaxis] * width + parents).reshape(-1))
        else:
            walk.reorder((np.arange(len(live))[:, np.newaxis] * width + parents).reshape(-1))
    inside = np.arange(steps) < found.lengths[:, :, np.newaxis]
    return found._replace(ids=np.where(inside, found.ids, 0)[:, :, : found.lengths.max()])


def _choose(model, logits, now, at_limit):
    """The best continuations of each sentence, best first.

    Returns:
      total log-probabilities, tokens, the hypotheses that they continue, and whether EOS was forced on one that had a
      likelier token, each `[n, W]`.
    """
    count, width = now.log_probs.shape
    likeliest = to_host(logits.argmax(axis=1)).reshape(count, width)
    ending = to_host(logits[:, model.eos_id].copy()).reshape(count, width)
    tokens = to_host(_largest(logits, width))  # [R, w]
    values = to_host(np.take_along_axis(logits, model.xp.asarray(tokens), axis=1))
    base = now.log_probs - to_host(logsumexp(logits)).reshape(count, width)  # [n, W]
    few = tokens.shape[1]
    totals = (base[:, :, np.newaxis] + values.reshape(count, width, few)).reshape(count, -1)
    order = np.argsort(-totals, axis=1, kind='stable')[:, :width]
    total = np.take_along_axis(totals, order, axis=1)
    ids = np.take_along_axis(tokens.reshape(count, -1), order, axis=1)
    parents = order // few
    if at_limit.any():
        totals, cut = base + ending, at_limit[:, np.newaxis]
        order = np.argsort(-totals, axis=1, kind='stable')
        total = np.where(cut, np.take_along_axis(totals, order, axis=1), total)
        parents, ids = np.where(cut, order, parents), np.where(cut, model.eos_id, ids)
    forced = at_limit[:, np.newaxis] & (np.take_along_axis(likeliest, parents, axis=1) != model.eos_id)
    return total, ids, parents, forced


def _largest(logits, count):
    """Places of the `count` largest of each row, in any order, or of all if there are fewer."""
    if count >= logits.shape[1]:
        return np.broadcast_to(np.arange(logits.shape[1]), logits.shape)
    return np.argpartition(logits, -count, axis=1)[:, -count:]


def logsumexp(logits):
    """log(sum(exp(logits))) of rows, which are overwritten."""
    highest = logits.max(axis=1, keepdims=True)
    logits -= highest
    np.exp(logits, out=logits)
    return np.log(logits.sum(axis=1)) + highest[:, 0]


def _keep_best(found, waiting, new):
    """Puts the best of old and new finished hypotheses in place, best first."""
    width = new.scores.shape[1]
    ranks = np.concatenate([found.rank_scores[waiting], new.rank_scores], axis=1)
    order = np.argsort(-ranks, axis=1, kind='stable')[:, :width]
    for all_of_them, added in zip(found, new):
        both = np.concatenate([all_of_them[waiting], added], axis=1)
        places = order if both.ndim == 2 else order[:, :, np.newaxis]
        all_of_them[waiting] = np.take_along_axis(both, places, axis=1)
