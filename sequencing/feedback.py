"""Feedback: where a decoder's next input comes from, apart from the decoder itself.

`dynamic_decode` asks a feedback three things: `initialize` (the first ids and the feedback's own state), `next` (which
tokens follow, and from which hypotheses), and `done`; `finalize` turns the state into a result. W is how many
hypotheses of a sentence it walks. Where `sentences_end`, those that are `growing` are walked on without the others, by
the feedback `of` them.
"""

import copy
from typing import NamedTuple

import tensorflow as tf

from sequencing import noise
from sequencing.structures import Hypotheses

BLOCK = 64  # tokens looked at together by `top_tokens`


def length_penalty(length, alpha):
    """((5 + length) / 6) ** alpha, lengths without EOS (Wu et al., 2016, equation 14)."""
    return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** alpha


class History(NamedTuple):
    """What was chosen, step by step; those of a beam are followed backwards at the end."""

    ids: tf.TensorArray  # of [B, W] int32
    parents: tf.TensorArray  # of [B, W] int32, the hypothesis each choice continues; empty if all continue themselves
    weights: tf.TensorArray  # of [B, W, S] float32, what old hypotheses attended to; empty if that was not asked for


class Finished(NamedTuple):
    """Complete hypotheses, best first; places without one have score -inf."""

    scores: tf.Tensor  # [B, W] float32
    rank_scores: tf.Tensor  # [B, W] float32
    lengths: tf.Tensor  # [B, W] int32, EOS not counted: EOS was chosen at this step
    slots: tf.Tensor  # [B, W] int32, the hypothesis that chose it
    truncated: tf.Tensor  # [B, W] bool


class Choice(NamedTuple):
    """The tokens of one step, each `[B, W]`."""

    ids: tf.Tensor  # int32
    parents: tf.Tensor  # int32, the hypotheses that they continue; None if each continues itself
    total: tf.Tensor  # float32, log-probability of the hypothesis with them
    likeliest: tf.Tensor  # int32, the likeliest token after each old hypothesis


class SearchState(NamedTuple):
    """State of every feedback that searches."""

    log_probs: tf.Tensor  # [B, W] float32, of hypotheses still growing; -inf where there is none
    finished: Finished
    history: History


class SearchFeedBack:
    """What greedy search, sampling and beam search share.

    Args:
      bos_id, eos_id: of the target vocabulary.
      limits: `[B]` int32, longest output a sentence, EOS not counted. At the limit EOS is forced; the hypothesis counts
        as truncated if EOS was not the likeliest token there.
      width: hypotheses a sentence.
      alpha: exponent of the length penalty in rank scores.
      attention: whether to keep attention weights.
      prefix: `[B, P]` int32, what each output begins with, -1 after its end; None for nothing. Of one that is longer
        than the limit only the beginning is written, and the output counts as truncated.
    """

    sentences_end = True
    of_sentences = ('limits', 'prefix')  # attributes `[B, ...]`, or None

    def __init__(self, bos_id, eos_id, limits, width=1, alpha=0.0, attention=False, prefix=None):
        self.bos_id, self.eos_id = bos_id, eos_id
        self.limits, self.width, self.alpha, self.attention = limits, width, alpha, attention
        self.max_steps = tf.reduce_max(limits) + 1
        # Where each sentence of the batch stands among those that are walked, if it does.
        self.places = tf.range(tf.size(limits))
        # One column more, so that there is one to read at any step.
        self.prefix = None if prefix is None else tf.pad(prefix, [[0, 0], [0, 1]], constant_values=-1)

    def initialize(self):
        """Returns the first ids `[B, W]`, all BOS, and the state."""
        batch = tf.shape(self.limits)[0]
        shape = [batch, self.width]
        none = tf.fill(shape, float('-inf'))
        zeros = tf.zeros(shape, tf.int32)
        shapes = ([None, self.width], [None, self.width], [None, self.width, None])
        history = [
            tf.TensorArray(dtype, self.max_steps, element_shape=s, clear_after_read=False)
            for dtype, s in zip((tf.int32, tf.int32, tf.float32), shapes)
        ]
        finished = Finished(none, none, zeros, zeros, tf.zeros(shape, tf.bool))
        return tf.fill(shape, self.bos_id), SearchState(self.first_log_probs(batch), finished, History(*history))

    def first_log_probs(self, batch):
        return tf.zeros([batch, self.width])

    def of(self, rows):
        """The same for some sentences of the batch: `[R]` int32, ascending."""
        part = copy.copy(self)
        part.places = tf.minimum(tf.searchsorted(rows, tf.range(tf.size(self.limits))), tf.size(rows) - 1)
        for name in self.of_sentences:
            value = getattr(self, name)
            setattr(part, name, value if value is None else tf.gather(value, rows))
        return part

    def growing(self, state):
        """Which sentences still need something, `[B]` bool."""
        return tf.reduce_any(tf.math.is_finite(state.log_probs), axis=1)

    def done(self, time, state, enough):
        """Whether no more than `enough` sentences still need something."""
        growing = tf.math.count_nonzero(self.growing(state), dtype=tf.int32)
        return tf.logical_or(time >= self.max_steps, growing <= enough)

    def next(self, time, logits, weights, state):
        """Chooses the tokens of one step.

        Args:
          time: scalar int32; logits: `[B, W, N]` float32, of any offset; weights: `[B, W, S]`; state: `SearchState`.
        Returns:
          ids `[B, W]`, parents `[B, W]` (None if each continues itself), the new state.
        """
        offset = logsumexp(logits)
        at_limit = (time >= self.limits)[:, tf.newaxis]
        # Whatever needs all N tokens is done in `choose`, once; what follows is about [B, W] numbers.
        chosen = self.choose(time, logits, offset, state)
        forced, forced_ids, forced_logits, beyond = self.force(time, logits, at_limit)
        going_on = self.write(forced_logits - offset, state)
        ids = tf.where(forced, forced_ids, chosen.ids)
        total = tf.where(forced, going_on.total, chosen.total)
        own = tf.range(self.width)[tf.newaxis] + tf.zeros_like(ids)
        parents = None if chosen.parents is None else tf.where(forced, going_on.parents, chosen.parents)
        chosen_from = own if parents is None else parents
        ended = tf.logical_and(ids == self.eos_id, tf.math.is_finite(total))
        unwanted = tf.gather(chosen.likeliest, chosen_from, batch_dims=1) != self.eos_id
        new = Finished(
            scores=tf.where(ended, total, float('-inf')),
            rank_scores=tf.where(ended, total / length_penalty(time, self.alpha), float('-inf')),
            lengths=tf.fill(tf.shape(ids), time),
            slots=own,
            truncated=tf.logical_and(at_limit, tf.logical_or(unwanted, beyond)),
        )
        finished = self.keep(state.finished, new)
        live = tf.where(ids == self.eos_id, float('-inf'), total)
        written = (ids, parents, tf.cast(weights, tf.float32) if self.attention else None)
        # Of all sentences: those that have ended get what nobody reads.
        history = [
            array if x is None else array.write(time, tf.gather(x, self.places))
            for array, x in zip(state.history, written)
        ]
        return ids, parents, SearchState(self.prune(live, finished), finished, History(*history))

    def force(self, time, logits, at_limit):
        """Which tokens are not a matter of choice: EOS at the limit, the prefix before.

        Returns:
          `[B, 1]` bool, whether a sentence is told what to write; the ids; their logits `[B, W]`; and `[B, 1]` bool,
          whether more of the prefix would have followed.
        """
        if self.prefix is None:
            return at_limit, self.eos_id, logits[:, :, self.eos_id], False
        told = self.prefix[:, tf.minimum(time, tf.shape(self.prefix)[1] - 1)][:, tf.newaxis]
        ids = tf.where(tf.logical_or(at_limit, told < 0), self.eos_id, told)
        forced_logits = tf.gather(logits, tf.repeat(ids, self.width, axis=1), batch_dims=2)
        return tf.logical_or(at_limit, told >= 0), ids, forced_logits, told >= 0

    def write(self, log_probs, state):
        """The `Choice` of one token by all hypotheses of a sentence, from its log-probabilities `[B, W]`."""
        return Choice(None, None, state.log_probs + log_probs, None)

    def keep(self, finished, new):
        """Each hypothesis ends once, in its own place."""
        first = tf.math.is_finite(new.scores)
        return Finished(*[tf.where(first, n, old) for n, old in zip(new, finished)])

    def prune(self, live, finished):
        """The growing hypotheses that are worth going on with."""
        return live

    def finalize(self, time, state):
        """Reads the hypotheses off the history: `Hypotheses`, best first."""
        order = tf.argsort(state.finished.rank_scores, direction='DESCENDING', stable=True)
        finished = Finished(*[tf.gather(field, order, batch_dims=1) for field in state.finished])
        exists = tf.math.is_finite(finished.scores)
        longest = tf.reduce_max(tf.where(exists, finished.lengths, 0))
        steps = tf.range(tf.minimum(longest + 1, time))
        slots, parents = self.follow(finished, exists, steps, state.history.parents)
        ids = tf.gather(state.history.ids.gather(steps), slots, batch_dims=2)
        attention = tf.zeros([*tf.unstack(tf.shape(ids)), 0])
        if self.attention:
            attention = tf.gather(state.history.weights.gather(steps), parents, batch_dims=2)
        written = steps[:longest, tf.newaxis, tf.newaxis] < finished.lengths
        ids = tf.where(written, ids[:longest], 0)
        attention = tf.where(written[..., tf.newaxis], attention[:longest], 0.0)
        return Hypotheses(
            ids=tf.transpose(ids, [1, 2, 0]),
            lengths=tf.where(exists, finished.lengths, 0),
            scores=finished.scores,
            rank_scores=finished.rank_scores,
            truncated=tf.logical_and(exists, finished.truncated),
            attention=tf.transpose(attention, [1, 2, 0, 3]),
        )

    def follow(self, finished, exists, steps, parents):
        """Where finished hypotheses stood at each step, and where the ones that they continued: two `[T, B, W]`."""
        slots = tf.repeat(finished.slots[tf.newaxis], tf.size(steps), axis=0)
        return slots, slots


class GreedyFeedBack(SearchFeedBack):
    """The likeliest token, always."""

    def __init__(self, bos_id, eos_id, limits, alpha=0.0, attention=False, prefix=None):
        super().__init__(bos_id, eos_id, limits, 1, alpha, attention, prefix)

    def choose(self, time, logits, offset, state):
        ids = tf.argmax(logits, axis=-1, output_type=tf.int32)
        return Choice(ids, None, state.log_probs + tf.gather(logits, ids, batch_dims=2) - offset, ids)


class SampleFeedBack(SearchFeedBack):
    """Tokens drawn at random, for `width` samples a sentence.

    The noise is that of (seed, source, sample, step): the same whatever else is in the batch. Scores are those of the
    model itself, at temperature 1 and over all tokens.

    Args:
      seed: scalar int32.
      source: `[B]` uint32, `noise.source_hash` of the source.
      temperature: above 0; below 1 sharpens.
      top_k: draw among this many likeliest tokens; 0 for all.
      top_p: draw among the fewest likeliest tokens that hold this much probability (Holtzman et al., 2020).
    """

    def __init__(self, bos_id, eos_id, limits, seed, source, width=1, temperature=1.0, top_k=0, top_p=1.0, alpha=0.0,
                 attention=False, prefix=None):  # fmt: skip
        super().__init__(bos_id, eos_id, limits, width, alpha, attention, prefix)
        self.of_sentences = (*self.of_sentences, 'source')
        self.seed, self.source = seed, source
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def choose(self, time, logits, offset, state):
        probs = sampling_distribution(logits, self.temperature, self.top_k, self.top_p)
        draw = noise.uniforms(self.seed, self.source[:, tf.newaxis], tf.range(self.width)[tf.newaxis], time)
        ids = draw_tokens(probs, draw)
        total = state.log_probs + tf.gather(logits, ids, batch_dims=2) - offset
        return Choice(ids, None, total, tf.argmax(logits, axis=-1, output_type=tf.int32))


class RLTrainingFeedBack(SampleFeedBack):
    """The reference up to the last steps of each target, then samples (MIXER: Ranzato et al., 2016).

    Args:
      trg_ids, trg_mask: `[B, T]` reference, EOS included.
      drawn_steps: scalar int32, how many tokens at the end of each reference are drawn anew.
      limits, seed, index: as in `SampleFeedBack`, the noise keyed by the examples' numbers `[B]`.
    Attributes:
      start: `[B]` int32, the first step that is drawn.
    """

    def __init__(self, trg_ids, trg_mask, bos_id, eos_id, drawn_steps, limits, seed, index):
        lengths = tf.math.count_nonzero(trg_mask, axis=1, dtype=tf.int32)
        self.start = tf.maximum(lengths - drawn_steps, 0)
        given = tf.sequence_mask(self.start, tf.shape(trg_ids)[1])
        super().__init__(bos_id, eos_id, limits, seed, index, prefix=tf.where(given, trg_ids, -1))


def sampling_distribution(logits, temperature=1.0, top_k=0, top_p=1.0):
    """`[..., N]` logits to the probabilities that sampling draws from."""
    logits = logits / temperature
    if top_k:
        least = tf.math.top_k(logits, tf.minimum(top_k, tf.shape(logits)[-1])).values[..., -1:]
        logits = tf.where(logits >= least, logits, float('-inf'))
    probs = tf.nn.softmax(logits)
    if top_p < 1.0:
        ordered = tf.sort(probs, direction='DESCENDING')
        before = tf.cumsum(ordered, axis=-1, exclusive=True)
        least = tf.reduce_min(tf.where(before < top_p, ordered, 2.0), axis=-1, keepdims=True)
        probs = tf.where(probs >= least, probs, 0.0)
    return probs / tf.reduce_sum(probs, axis=-1, keepdims=True)


def draw_tokens(probs, draw):
    """Inverts the distribution function: `[..., N]` probabilities and `[...]` uniforms to int32 ids `[...]`."""
    below = tf.cumsum(probs, axis=-1) <= draw[..., tf.newaxis]
    ids = tf.reduce_sum(tf.cast(below, tf.int32), axis=-1)
    # Rounding may leave the sum just below 1: the draw then falls to the last token that can be drawn at all.
    last = tf.reduce_max(tf.where(probs > 0, tf.range(tf.shape(probs)[-1]), 0), axis=-1)
    return tf.minimum(ids, last)


class BeamFeedBack(SearchFeedBack):
    """Beam search.

    A hypothesis that ends keeps its place in the beam (Bahdanau et al., 2015): `beam_size` hypotheses are walked in
    all, so a beam of one is greedy search at any length penalty. A sentence is done when no growing hypothesis can
    overtake the `nbest` best finished ones, however it went on: log-probabilities only fall, and the most that the
    length penalty can make of one is at the length limit.
    """

    def __init__(self, bos_id, eos_id, limits, beam_size, alpha=0.0, nbest=1, attention=False, prefix=None):
        super().__init__(bos_id, eos_id, limits, beam_size, alpha, attention, prefix)
        self.nbest = nbest

    def first_log_probs(self, batch):
        # One hypothesis to begin with: all of them would be the same.
        first = tf.range(self.width)[tf.newaxis] + tf.zeros([batch, 1], tf.int32)
        return tf.where(first == 0, 0.0, float('-inf'))

    def choose(self, time, logits, offset, state):
        # The best of each hypothesis first, then the best of those.
        values, tokens = top_tokens(logits, self.width)
        few = values.shape[-1]
        totals = state.log_probs[:, :, tf.newaxis] + values - offset[:, :, tf.newaxis]
        total, places = tf.math.top_k(tf.reshape(totals, [-1, self.width * few]), self.width)
        ids = tf.gather(tf.reshape(tokens, [-1, self.width * few]), places, batch_dims=1)
        return Choice(ids, places // few, self.in_places_left(total, state), tokens[:, :, 0])

    def write(self, log_probs, state):
        total, parents = tf.math.top_k(state.log_probs + log_probs, self.width)
        return Choice(None, parents, self.in_places_left(total, state), None)

    def in_places_left(self, total, state):
        """Totals `[B, W]`, best first, as far as finished hypotheses have left places; -inf behind."""
        ended = tf.math.count_nonzero(tf.math.is_finite(state.finished.scores), axis=1, dtype=tf.int32)
        places_left = self.width - ended[:, tf.newaxis]
        return tf.where(tf.range(self.width)[tf.newaxis] < places_left, total, float('-inf'))

    def keep(self, finished, new):
        both = Finished(*[tf.concat([old, n], axis=1) for old, n in zip(finished, new)])
        _, best = tf.math.top_k(both.rank_scores, self.width)
        return Finished(*[tf.gather(field, best, batch_dims=1) for field in both])

    def follow(self, finished, exists, steps, parents):
        def backwards(step, slots, stood, continued):
            continued_now = tf.gather(parents.read(step), slots, batch_dims=1)
            # A hypothesis is followed from the step where it chose EOS to its first token.
            inside = tf.logical_and(exists, step <= finished.lengths)
            stood, continued = stood.write(step, slots), continued.write(step, continued_now)
            return step - 1, tf.where(inside, continued_now, slots), stood, continued

        arrays = [tf.TensorArray(tf.int32, tf.size(steps), element_shape=[None, self.width]) for _ in range(2)]
        start = (tf.size(steps) - 1, finished.slots, *arrays)
        *_, stood, continued = tf.while_loop(lambda step, *_: step >= 0, backwards, start)
        return stood.stack(), continued.stack()

    def prune(self, live, finished):
        reach = tf.reduce_max(live, axis=1) / length_penalty(self.limits, self.alpha)
        overtaken = finished.rank_scores[:, self.nbest - 1]  # -inf while there are not enough
        return tf.where((reach > overtaken)[:, tf.newaxis], live, float('-inf'))


def top_tokens(logits, count):
    """The `count` largest of each row, as `tf.math.top_k` gives them, several times as fast for a vocabulary.

    They lie in the blocks of tokens with the largest maxima; so blocks are chosen first, and tokens within those.

    Args:
      logits: `[B, W, N]` float32. N may be unknown before running (a shortlist): it is small then, and all is sorted.
      count: how many; no more than a known N are given.
    Returns:
      values and int32 token ids, `[B, W, min(count, N)]`, largest first, equal ones by id; -inf where N was unknown and
      there are not enough.
    """
    size, width = logits.shape[-1], logits.shape[1]
    if size is None:
        more = tf.pad(logits, [[0, 0], [0, 0], [0, count]], constant_values=float('-inf'))
        values, tokens = tf.math.top_k(more, count)
        return values, tf.minimum(tokens, tf.shape(logits)[-1] - 1)
    count = min(count, size)
    blocks = -(-size // BLOCK)
    if count >= blocks // 2:
        values, tokens = tf.math.top_k(logits, count)
        return values, tokens
    if size % BLOCK:
        logits = tf.pad(logits, [[0, 0], [0, 0], [0, blocks * BLOCK - size]], constant_values=float('-inf'))
    parts = tf.reshape(logits, [-1, width, blocks, BLOCK])
    # Sorted, so that among equal values the token of the lowest id comes first, as it does without blocks.
    chosen = tf.sort(tf.math.top_k(tf.reduce_max(parts, axis=-1), count).indices)
    inside = tf.reshape(tf.gather(parts, chosen, batch_dims=2), [-1, width, count * BLOCK])
    values, places = tf.math.top_k(inside, count)
    return values, tf.gather(chosen, places // BLOCK, batch_dims=2) * BLOCK + places % BLOCK


def logsumexp(logits):
    """log(sum(exp(logits))) over the last axis, where the largest of a row is finite."""
    highest = tf.reduce_max(logits, axis=-1, keepdims=True)
    return tf.math.log(tf.reduce_sum(tf.exp(logits - highest), axis=-1)) + tf.squeeze(highest, axis=-1)


class TrainingFeedBack:
    """Teacher forcing at a rate: each next input is the reference token with that chance, else the model's own choice.

    Args:
      trg_ids: `[B, T]` reference, EOS included.
      bos_id: of the target vocabulary.
      teacher_rate: scalar, chance of the reference token (scheduled sampling: Bengio et al., 2015).
      seed: `[2]` int32 that changes every update.
      index: `[B]` int64, numbers of the examples, which the draws are keyed by.
      choice: 'argmax' or 'sample', how the model chooses.
    """

    width = 1
    sentences_end = False

    def __init__(self, trg_ids, bos_id, teacher_rate, seed, index, choice='argmax'):
        self.trg_ids, self.bos_id = trg_ids, bos_id
        self.teacher_rate, self.seed, self.index, self.choice = teacher_rate, seed, index, choice

    def initialize(self):
        """Returns the first ids `[B, 1]`, all BOS, and the state: what follows BOS, a `TensorArray` of `[B]` int32."""
        batch, steps = tf.unstack(tf.shape(self.trg_ids))
        return tf.fill([batch, 1], self.bos_id), tf.TensorArray(tf.int32, steps, element_shape=[None])

    def done(self, time, state, enough):
        return time >= tf.shape(self.trg_ids)[1]

    def next(self, time, logits, weights, state):
        own = choose_tokens(logits[:, 0], self.choice, self.seed[0], self.seed[1], self.index, time)
        follows = taught(self.teacher_rate, self.seed[0], self.seed[1], self.index, time)
        ids = tf.where(follows, self.trg_ids[:, time], own)
        return ids[:, tf.newaxis], None, state.write(time, ids)

    def finalize(self, time, state):
        """What the decoder was fed, `[B, T]` int32, BOS first."""
        bos = tf.fill([tf.shape(self.trg_ids)[0], 1], self.bos_id)
        return tf.concat([bos, tf.transpose(state.stack())[:, :-1]], axis=1)


def taught(rate, *keys):
    """Whether the reference token comes next, with the chance `rate`: bool, one for each hash of `keys`."""
    return noise.uniforms(*keys) < rate


def choose_tokens(logits, choice, *keys):
    """The model's own choice for each row of logits `[M, N]`, `[M]` int32.

    Args:
      choice: 'argmax' for the likeliest token; 'sample' draws one.
      keys: ints, broadcast to `[M]`, what a draw is keyed by.
    """
    if choice == 'argmax':
        return tf.argmax(logits, axis=-1, output_type=tf.int32)
    return draw_tokens(tf.nn.softmax(logits), noise.uniforms(*keys, 1))
