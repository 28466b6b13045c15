"""FlowSeq: a sentence is generated from one latent vector a position, and the latents by a flow.

    p(y | x) = integral over z of p(y | z, x) p(z | x),    p(y | z, x) = product over t of p(y_t | z, x)

The posterior q(z | x, y) proposes latents in training and in importance weighting; a length predictor says how many
there are. Targets are filled with EOS up to a multiple of the length unit, and the filling is predicted like any token.

Reference: Ma et al., 2019, https://arxiv.org/abs/1909.02480
"""

import math
from typing import NamedTuple

import tensorflow as tf

from sequencing import flowseq_decoding, noise
from sequencing.blocks import Rows
from sequencing.flowseq_encoders import last_state
from sequencing.flowseq_posteriors import sample_posterior
from sequencing.glancing import glancing_loss
from sequencing.losses import cross_entropy

RECONSTRUCTION, FULL = 'reconstruction', 'bound'  # the two phases of training


class FlowLoss(NamedTuple):
    """Sums over a batch, in nats; the first four as in `LossParts`."""

    loss: tf.Tensor  # scalar, what is minimised: smoothed reconstruction + weight * KL + smoothed length loss
    nll: tf.Tensor  # scalar, plain reconstruction + KL: a bound on -log p(y | x) given the length
    tokens: tf.Tensor  # scalar float, real target positions, EOS filling included
    sentences: tf.Tensor  # scalar float, real sentences
    reconstruction: tf.Tensor  # scalar, plain
    smoothed_reconstruction: tf.Tensor  # scalar, as trained on
    kl: tf.Tensor  # scalar, log q(z) - log p(z | x), a Monte-Carlo value that can be negative; 0 in the first phase
    length: tf.Tensor  # scalar, plain -log p(T | x)
    glancing: tf.Tensor  # scalar, smoothed loss of glanced targets before its weight; 0 where it is not asked for
    first_look: tf.Tensor  # scalar float, target positions that argmax from the prior's latent had right; 0 likewise
    out_of_reach: tf.Tensor  # scalar float, sentences whose length the predictor cannot express
    kl_by_level: tf.Tensor  # [levels], which add up to kl; log q(z) is shared out by the latent's channels and steps


class OutputLayer(tf.Module):
    """Features to scores of all tokens, by a matrix of its own or by an embedding's table.

    Args:
      size: width of the features.
      vocab_size: N.
      embedding: `LookUpOp` to score with; None for a matrix of its own.
    """

    def __init__(self, size, vocab_size, embedding=None, name='output'):
        super().__init__(name=name)
        self.embedding = embedding
        with self.name_scope:
            self.bias = tf.Variable(tf.zeros([vocab_size]), name='bias')
            if embedding is None:
                self.kernel = tf.Variable(tf.random.uniform([size, vocab_size], -0.1, 0.1), name='kernel')

    def __call__(self, features):
        """Maps flat `[M, size]` to `[M, N]`, at least float32."""
        tied = self.embedding is not None
        kernel = tf.cast(self.embedding.table if tied else self.kernel, features.dtype)
        scores = tf.matmul(features, kernel, transpose_b=tied)
        wide = scores if scores.dtype == tf.float64 else tf.cast(scores, tf.float32)
        return wide + tf.cast(self.bias, wide.dtype)


class EncodedSource:
    """An encoded source, and what each part of the model makes of it once; lives within one call.

    Attributes:
      rows: `Rows` of the source; states: flat `[B * S, D]`, zero at padding.
      context: `[B, D]`, one vector for the sentence.
      lengths: `[B]` int32, EOS included.
    """

    def __init__(self, model, states, rows):
        self.model, self.states, self.rows = model, states, rows
        self.context = last_state(states, rows)
        self.lengths = rows.counts(tf.int32)

    def for_posterior(self):
        return self.rows.kept('posterior', lambda: self.model.posterior.prepare(self.states, self.rows))

    def for_decoder(self):
        return self.rows.kept('decoder', lambda: self.model.decoder.prepare(self.states, self.rows))

    def for_prior(self):
        """The prior's memory of the source."""
        prepare = self.model.prior.prepare
        return self.rows.kept('prior', lambda: prepare(self.rows.padded(self.states), self.rows.mask))


class FlowSeq(tf.Module):
    """See the top of the file.

    Args:
      src_embedding, trg_embedding: `LookUpOp`s, which may be one and the same.
      encoder, posterior, decoder, length_predictor: parts from the files of these names.
      prior: a flow (forward: latent to noise); has `prepare`, `forward_and_log_det`, `inverse_and_log_det`,
        `log_prob_by_level`, `initialise`, all given `mask=` and `memory=`.
      output: `OutputLayer`.
      latent_size: channels of a latent.
      trg_vocab_size: N; pad_id, unk_id, eos_id, bos_id: of the target, the last one None where it has none.
      dtype: of the arithmetic; latents and what the flow does to them stay float32.
      label_smoothing: of the reconstruction loss.
      any_token: let PAD and UNK be chosen in decoding, as the published implementation does.
    """

    def __init__(self, src_embedding, trg_embedding, encoder, posterior, decoder, length_predictor, prior, output,
                 latent_size, trg_vocab_size, pad_id, unk_id, eos_id, bos_id=None, dtype=tf.float32,
                 label_smoothing=0.0, any_token=False, name='flowseq'):  # fmt: skip
        super().__init__(name=name)
        self.src_embedding, self.trg_embedding = src_embedding, trg_embedding
        self.encoder, self.posterior, self.decoder = encoder, posterior, decoder
        self.length_predictor, self.prior, self.output = length_predictor, prior, output
        self.latent_size, self.vocab_size = latent_size, trg_vocab_size
        self.pad_id, self.unk_id, self.eos_id, self.bos_id = pad_id, unk_id, eos_id, bos_id
        self.dtype, self.label_smoothing = dtype, label_smoothing
        self.any_token = any_token

    decoding_modes = flowseq_decoding.MODES
    validation_mode = 'argmax'

    @property
    def length_unit(self):
        """Target lengths are multiples of it."""
        return self.length_predictor.unit

    def barred_ids(self):
        """Ids that decoding never chooses: BOS, which is no word, and PAD and UNK, unless `any_token`."""
        barred = [] if self.any_token else [self.pad_id, self.unk_id]
        return barred if self.bos_id is None else [*barred, self.bos_id]

    def encode(self, src_ids, src_mask, seed=None):
        """`[B, S]` ids and mask to an `EncodedSource`."""
        rows = Rows(src_mask)
        return EncodedSource(self, self.encoder(rows.flat(self.src_embedding(src_ids, self.dtype)), rows, seed), rows)

    def posterior_ends(self, trg_ids, rows, source, seed=None):
        """Means and log-variances of q(z | x, y), flat `[B * T, D]` float32, for `trg_ids` `[B, T]`."""
        embedded = rows.flat(self.trg_embedding(trg_ids, self.dtype))
        return self.posterior(embedded, rows, source.for_posterior(), seed)

    def logits(self, z, rows, source, seed=None, chosen=None):
        """Scores of all tokens, float32.

        Args:
          z: flat latents `[B * T, D]`, zero at padding.
          rows: their `Rows`.
          source: `EncodedSource`.
          seed: for dropout.
          chosen: `[M]` int, the rows to score; None for all.
        """
        features = self.decoder(tf.cast(z, self.dtype), rows, source.for_decoder(), seed)
        if chosen is not None:
            features = tf.gather(features, chosen)
        return self.output(features)

    def prior_log_prob(self, z, rows, source, seed=None):
        """log p(z | x) of flat latents, `[B]` in nats."""
        noise, log_det = self.prior.forward_and_log_det(
            rows.padded(z), mask=rows.mask, memory=source.for_prior(), seed=seed
        )
        return log_det - 0.5 * rows.sums(tf.square(rows.flat(noise)) + math.log(2.0 * math.pi))

    def cross_entropies(self, z, trg_ids, rows, source, seed=None, counted=None):
        """-log p(y | z, x), smoothed and plain, each `[B]` in nats; z is flat, `trg_ids` `[B, T]`; `counted` `[B, T]`
        bool says which real positions count, None for all."""
        counted = rows.real[:, 0] if counted is None else tf.reshape(counted, [-1])
        real = tf.reshape(tf.cast(tf.where(counted), tf.int32), [-1])
        targets = tf.gather(tf.reshape(trg_ids, [-1]), real)
        smoothed, nll = cross_entropy(self.logits(z, rows, source, seed, real), targets, self.label_smoothing)
        return [tf.math.unsorted_segment_sum(x, real // rows.time, rows.batch) for x in (smoothed, nll)]

    def length_loss(self, source, rows, seed=None):
        """-log p(T | x), smoothed and plain, each `[B]`, and which lengths the predictor cannot express, `[B]` bool."""
        lengths = rows.counts(tf.int32)
        losses = self.length_predictor.loss(source.context, source.lengths, lengths, seed)
        return *losses, self.length_predictor.expressible(source.lengths, lengths) != lengths

    def loss(self, batch, seed=None, phase=FULL, kl_weight=1.0, samples=1, draws=None, smooth=True, free_bits=0.0,
             noise_seed=None, level_weights=(), glancing=0.0, glancing_ratio=0.0):  # fmt: skip
        """The training loss.

        Args:
          batch: `Batch` whose targets are filled with EOS to a multiple of the length unit.
          seed: `[2]` int32 that changes every step, for dropout and for the latents' noise, which is keyed by it and
            by `batch.index`; None reads without dropout, with the noise of seed 0.
          noise_seed: for the noise alone, in place of `seed`.
          phase: RECONSTRUCTION takes the posterior's mean for the latent and leaves the prior out; FULL samples.
          kl_weight: scalar.
          samples: latents a sentence, k.
          draws: `[B, samples, T, D]` standard normal, in place of the keyed noise.
          smooth: whether the loss is the smoothed one.
          free_bits: nats of KL a position that cost nothing (Kingma et al., 2016, section 2.5), sentence by sentence.
          level_weights: of the prior's levels in the KL that is paid, one each; empty for 1.
          glancing: weight of the loss of glanced targets (see `glancing`), FULL only; 0 leaves them out.
          glancing_ratio: scalar, how many positions are given for one that was wrong.
        Returns:
          `FlowLoss`; reconstruction and KL are means over the samples.
        """
        source = self.encode(batch.src_ids, batch.src_mask, seed)
        rows = Rows(batch.trg_mask)
        mean, log_variance = self.posterior_ends(batch.trg_ids, rows, source, seed)
        glanced = right = tf.zeros([rows.batch])
        if phase == RECONSTRUCTION:
            smoothed, plain = self.cross_entropies(mean, batch.trg_ids, rows, source, seed)
            kl_by_level = tf.zeros([rows.batch, len(self.prior.level_shares)])
        else:
            if draws is None:
                draws = self.latent_noise(seed if noise_seed is None else noise_seed, batch.index, samples, rows.time)
            many, z, log_q = sample_posterior(mean, log_variance, rows, draws)
            log_p = self.prior.log_prob_by_level(many.padded(z), many.mask, source.for_prior(), seed)
            kl_by_level = _mean_of_samples(log_q[:, tf.newaxis] * self.prior.level_shares - log_p, samples)
            trg_ids = tf.repeat(batch.trg_ids, samples, axis=0)
            losses = self.cross_entropies(z, trg_ids, many, source, seed)
            smoothed, plain = [_mean_of_samples(x, samples) for x in losses]
            if glancing:
                glanced, right = glancing_loss(self, source, batch, rows, mean, glancing_ratio, seed, noise_seed)
        kl = tf.reduce_sum(kl_by_level, axis=1)
        smoothed_length, length, out_of_reach = self.length_loss(source, rows, seed)
        trained = smoothed + smoothed_length if smooth else plain + length
        paid = tf.linalg.matvec(kl_by_level, tf.constant(level_weights, kl.dtype)) if level_weights else kl
        if free_bits:
            paid = tf.maximum(paid, free_bits * rows.counts(kl.dtype))
        real = tf.reduce_any(batch.trg_mask, axis=1)  # a sentence that fills up a batch adds nothing

        def total(x):
            return tf.reduce_sum(tf.where(real, tf.cast(x, tf.float32), 0.0))

        return FlowLoss(
            loss=total(trained + kl_weight * paid + glancing * glanced),
            nll=total(plain + kl),
            tokens=tf.reduce_sum(rows.counts(tf.float32)),
            sentences=total(tf.ones_like(plain)),
            reconstruction=total(plain),
            smoothed_reconstruction=total(smoothed),
            kl=total(kl),
            length=total(length),
            glancing=total(glanced),
            first_look=total(right),
            out_of_reach=total(out_of_reach),
            kl_by_level=tf.stack([total(level) for level in tf.unstack(kl_by_level, axis=1)]),
        )

    def latent_noise(self, seed, keys, count, time):
        """Standard normal `[B, count, time, D]`: a function of seed, key `[B]` (an example's number or hash), place in
        `count`, position and channel, so the same in any batch."""
        first, second = (0, 0) if seed is None else tf.unstack(seed)
        parts = keys[:, tf.newaxis, tf.newaxis, tf.newaxis], tf.range(count)[:, tf.newaxis, tf.newaxis]
        return noise.normals(first, second, *parts, tf.range(time)[:, tf.newaxis], tf.range(self.latent_size))

    def for_decoding(self):
        """The same model with its prior folded into fewer operations: for weights that do not change any more."""
        return FlowSeq(
            self.src_embedding, self.trg_embedding, self.encoder, self.posterior, self.decoder, self.length_predictor,
            self.prior.folded(self.dtype), self.output, self.latent_size, self.vocab_size, self.pad_id, self.unk_id,
            self.eos_id, self.bos_id, self.dtype, self.label_smoothing, self.any_token,
        )  # fmt: skip

    def rows_per_source(self, options):
        """How many sentences a source is to the batch size."""
        return options.flow_rows(self.length_predictor.most_lengths)

    def translate(self, src_ids, src_mask, limits, options, seed=None, room=None):
        """Translates a batch: see `flowseq_decoding.translate`."""
        return flowseq_decoding.translate(self, src_ids, src_mask, limits, options, seed, room)

    def score(self, batch, options, seed=None, numbers=None):
        """Scores of given targets as decoding reports them, and log p(T | x): see `flowseq_decoding.score`."""
        return flowseq_decoding.score(self, *batch[:4], options, seed, numbers)

    def initialise(self, batch, seed, phase, over_padding=False):
        """Data-dependent initialisation, before a phase begins; without dropout.

        RECONSTRUCTION: the posterior's means. FULL: its log-variances (and its means, where there was no first phase:
        call it for both phases in turn), then the flow, on latents sampled from it.

        Args:
          over_padding: let padding count in the statistics, as the published implementation does.
        """
        source = self.encode(batch.src_ids, batch.src_mask)
        rows = Rows(batch.trg_mask)
        embedded = rows.flat(self.trg_embedding(batch.trg_ids, self.dtype))
        ends = ['mean'] if phase == RECONSTRUCTION else ['log_variance']
        mean, log_variance = self.posterior.initialise(embedded, rows, source.for_posterior(), ends, over_padding)
        if phase == FULL:
            draws = self.latent_noise(seed, batch.index, 1, rows.time)
            rows, z, _ = sample_posterior(mean, log_variance, rows, draws)
            self.prior.initialise(rows.padded(z), mask=rows.mask, memory=source.for_prior(), over_padding=over_padding)


def _mean_of_samples(x, samples):
    """`[B * k, ...]` to `[B, ...]`."""
    return x if samples == 1 else tf.reduce_mean(tf.reshape(x, [-1, samples, *x.shape[1:]]), axis=1)
