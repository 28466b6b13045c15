"""Training on what a model writes by itself, as scored whole: mixed reinforcement (MIXER) and minimum risk (MRT).

Both write in one loop with the decoder's sampling feedback, then read what was written as any target, for gradients.
There is no dropout and no label smoothing in either: what is rewarded is the model that writes.
"""

from typing import NamedTuple

import tensorflow as tf

from sequencing import noise
from sequencing.dynamic_decode import dynamic_decode
from sequencing.feedback import RLTrainingFeedBack, SampleFeedBack
from sequencing.losses import cross_entropy
from sequencing.objectives import Likelihood, Phase
from sequencing.rewards import characters_of, chrf, prefix_bleu

_MORE_STEPS = 5  # tokens that a sample may be longer than `max_length_ratio` allows: short references leave no room


class SequenceLoss(NamedTuple):
    """Sums over a batch; the first four as in `LossParts`, but `nll`, which is of the sequences that were read."""

    loss: tf.Tensor
    nll: tf.Tensor
    tokens: tf.Tensor
    sentences: tf.Tensor
    reward: tf.Tensor  # of all samples, 0 to 1 each
    samples: tf.Tensor
    squared_error: tf.Tensor  # of the baseline
    policy_tokens: tf.Tensor  # that were drawn, and so rewarded one by one
    written: tf.Tensor  # tokens of the sequences that were read


class Written(NamedTuple):
    """Sequences as they are read and scored."""

    ids: tf.Tensor  # [M, T] int32, EOS included, PAD after it
    mask: tf.Tensor  # [M, T] bool
    lengths: tf.Tensor  # [M] int32, EOS not counted


def write(model, encoded, feedback):
    """Samples under `feedback`, a `SampleFeedBack`: `Written` with a row for each of its `width` samples a source."""
    state = model.decoder.initial_state(encoded, feedback.width, feedback.max_steps)
    found = dynamic_decode(model, feedback, state, model.decoder.memory(encoded))
    ids = tf.pad(found.ids, [[0, 0], [0, 0], [0, 1]])  # room for EOS
    steps, lengths = tf.range(tf.shape(ids)[2]), tf.reshape(found.lengths, [-1])
    ids = tf.reshape(ids, [-1, tf.shape(ids)[2]])
    ends = steps == lengths[:, tf.newaxis]
    return Written(tf.where(ends, model.eos_id, ids), steps <= lengths[:, tf.newaxis], lengths)


def of_references(batch):
    """The references of a `Batch` as `Written`."""
    return Written(batch.trg_ids, batch.trg_mask, tf.math.count_nonzero(batch.trg_mask, axis=1, dtype=tf.int32) - 1)


def read(model, encoded, written):
    """Features `[M, T, R]` and -log p of each token, `[M, T]`, 0 on padding."""
    features, _ = model.read(encoded, model.inputs(written.ids), written.mask)
    places = tf.where(written.mask)
    logits, bias = model.output_parts(tf.gather_nd(features, places))
    nll, _ = cross_entropy(logits, tf.gather_nd(written.ids, places), bias=bias)
    return features, tf.scatter_nd(places, nll, tf.shape(written.ids, tf.int64))


def mixer_loss(model, encoded, written, references, start, limits):
    """-log p of the tokens before `start`, which are the reference's; REINFORCE on those that were drawn after it.

    A drawn token is rewarded with the BLEU that is added from there to the end: what all later changes of BLEU, step by
    step, add up to. The baseline expects it. EOS at the length limit was not drawn.

    Args:
      encoded: `EncoderOutput`; written, references: `Written`, a row a source.
      start, limits: `[M]` int32, first step that was drawn, and longest output.
    Returns:
      `[M]` loss, `[M, T]` nll, `[M]` rewards of the whole, `[M, T]` squared errors of the baseline, and `[M, T]` bool,
      which tokens were drawn.
    Reference: Ranzato et al., 2016, https://arxiv.org/abs/1511.06732
    """
    features, nll = read(model, encoded, written)
    steps = tf.range(tf.shape(nll)[1])[tf.newaxis]
    drawn = tf.logical_and(steps >= start[:, tf.newaxis], steps < limits[:, tf.newaxis])
    drawn = tf.logical_and(drawn, written.mask)
    bleu = prefix_bleu(written.ids, written.lengths, references.ids, references.lengths)
    to_come = bleu[:, -1:] - bleu[:, :-1]
    expected = model.baseline(features)
    errors = tf.where(drawn, (expected - to_come) ** 2, 0.0)
    given = tf.cast(steps < start[:, tf.newaxis], tf.float32)
    weights = tf.where(drawn, to_come - tf.stop_gradient(expected), given)
    return tf.reduce_sum(weights * nll + errors, axis=1), nll, bleu[:, -1], errors, drawn


def risk(model, encoded, candidates, rewards, width, alpha):
    """The expected loss, 1 - reward, among the candidates of each source.

        Q(y) = p(y)^alpha / sum over the different candidates of p(y')^alpha

    Args:
      encoded: `EncoderOutput` of B sources; candidates: `Written` with B * width rows; rewards: `[B * width]`.
    Returns:
      `[B]` risks and `[B * width, T]` nll.
    Reference: Shen et al., 2016, https://aclanthology.org/P16-1159
    """
    repeated = tf.nest.map_structure(lambda x: tf.repeat(x, width, axis=0), encoded)
    _, nll = read(model, repeated, candidates)
    log_probs = tf.reshape(-tf.reduce_sum(nll, axis=1), [-1, width])
    ids = tf.reshape(tf.where(candidates.mask, candidates.ids, -1), [-1, width, tf.shape(candidates.ids)[1]])
    same = tf.reduce_all(ids[:, :, tf.newaxis] == ids[:, tf.newaxis], axis=3)  # [B, width, width]
    earlier = tf.range(width)[tf.newaxis, :] < tf.range(width)[:, tf.newaxis]
    first = tf.logical_not(tf.reduce_any(tf.logical_and(same, earlier), axis=2))
    shares = tf.nn.softmax(tf.where(first, alpha * log_probs, float('-inf')))
    return tf.reduce_sum(shares * (1.0 - tf.reshape(rewards, [-1, width])), axis=1), nll


class SequenceLevel(Likelihood):
    """`--mode rl`: as `Likelihood`, with a loss of what the model writes.

    Args:
      model: `Seq2Seq`, with a `baseline` for MIXER; config: `Config`, of which `train.rl` is the recipe.
      trg_vocab: `Vocab`, whose spelling chrF reads.
    """

    parts = SequenceLoss._fields
    nll_unit = 'written'

    def __init__(self, model, config, trg_vocab):
        super().__init__(model, config)
        self.recipe = config.train.rl
        self.table = characters_of(trg_vocab) if self.recipe.reward == 'chrf' else None
        train = config.train
        self.phases = [Phase(self.recipe.kind, 0, train.max_steps, train.warmup_steps, model.trainable_variables)]

    def loss(self, phase, batch, seed, step):
        """As `Likelihood.loss`; gives `SequenceLoss`. Samples belong to (seed, update, pair), as choices do there."""
        encoded = self.model.encode(batch.src_ids, batch.src_mask)
        references = of_references(batch)
        longest = tf.cast(references.lengths, tf.float32) * self.recipe.max_length_ratio
        limits = tf.cast(longest, tf.int32) + _MORE_STEPS
        kind = self._mixer if self.recipe.kind == 'mixer' else self._minimum_risk
        return kind(batch, encoded, references, limits, noise.mix(self.seed, step), step)

    def _mixer(self, batch, encoded, references, limits, seed, step):
        model, drawn_steps = self.model, tf.cast(self.drawn_steps(step), tf.int32)
        feedback = RLTrainingFeedBack(
            batch.trg_ids, batch.trg_mask, model.bos_id, model.eos_id, drawn_steps, limits, seed, batch.index
        )
        written = tf.cond(drawn_steps > 0, lambda: write(model, encoded, feedback), lambda: references)
        loss, nll, rewards, errors, drawn = mixer_loss(model, encoded, written, references, feedback.start, limits)
        return self._sums(loss, nll, written, batch, rewards, errors, drawn)

    def _minimum_risk(self, batch, encoded, references, limits, seed, step):
        model, width = self.model, self.recipe.samples
        feedback = SampleFeedBack(model.bos_id, model.eos_id, limits, seed, batch.index, width, self.recipe.temperature)
        written = write(model, encoded, feedback)
        if self.recipe.reference:
            written, width = _with_references(written, references, width), width + 1
        rewards = self.rewards(written, references, width)
        sampled = tf.reshape(rewards, [-1, width])[:, : self.recipe.samples]
        risks, nll = risk(model, encoded, written, rewards, width, self.recipe.alpha)
        return self._sums(risks, nll, written, batch, sampled, tf.zeros([1]), tf.zeros([1], tf.bool))

    def rewards(self, written, references, width):
        """`[B * width]` float32, 0 to 1, of `width` rows a reference."""
        ids, lengths = [tf.repeat(x, width, axis=0) for x in (references.ids, references.lengths)]
        if self.table is None:
            return prefix_bleu(written.ids, written.lengths, ids, lengths)[:, -1]
        return chrf(written.ids, written.lengths, ids, lengths, tf.constant(self.table))

    def drawn_steps(self, step):
        """How many tokens at the end of each sentence are drawn after `step` updates: none in the burn-in, then one."""
        recipe = self.recipe
        return tf.maximum(step - recipe.burn_in_step + recipe.increment_step, 0) // recipe.increment_step

    def _sums(self, loss, nll, written, batch, rewards, errors, drawn):
        count = lambda mask: tf.math.count_nonzero(mask, dtype=tf.float32)
        real = tf.reduce_any(batch.trg_mask, axis=1)
        return SequenceLoss(
            loss=tf.reduce_sum(tf.where(real, loss, 0.0)),
            nll=tf.stop_gradient(tf.reduce_sum(nll)),
            tokens=count(batch.trg_mask),
            sentences=count(real),
            reward=tf.reduce_sum(rewards),
            samples=tf.cast(tf.size(rewards), tf.float32),
            squared_error=tf.stop_gradient(tf.reduce_sum(errors)),
            policy_tokens=count(drawn),
            written=count(written.mask),
        )

    def report(self, phase, totals, step):
        if not totals.samples:  # a validation
            return {}
        values = {'reward': totals.reward / totals.samples}
        if self.recipe.kind == 'mixer':
            values['drawn_steps'] = int(self.drawn_steps(max(step - 1, 0)))
            if totals.policy_tokens:
                values['baseline_error'] = (totals.squared_error / totals.policy_tokens) ** 0.5
        return values


def _with_references(written, references, width):
    """Rows of candidates with the reference behind those of its source."""
    steps = tf.maximum(tf.shape(written.ids)[1], tf.shape(references.ids)[1])

    def both(rows, more):
        if rows.shape.rank == 1:
            return tf.reshape(tf.concat([tf.reshape(rows, [-1, width]), more[:, tf.newaxis]], axis=1), [-1])
        rows, more = [tf.pad(x, [[0, 0], [0, steps - tf.shape(x)[1]]]) for x in (rows, more)]
        rows = tf.reshape(rows, [-1, width, steps])
        return tf.reshape(tf.concat([rows, more[:, tf.newaxis]], axis=1), [-1, steps])

    return Written(*map(both, written, references))
