"""What ails a flow model: measures of its latents, its flow and its use of both, and a verdict in words.

A latent that is alive carries its target: decoding from the posterior's mean gives the sentence back, decoding from
zeros does not. A prior that has caught up generates latents that decode as well. A flow that is sound inverts itself.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from flow_layers.actnorm import ActNorm
from flow_layers.invertible_linear import InvertibleLinear
from sequencing import flowseq_decoding
from sequencing.blocks import Rows
from sequencing.diagnosis import first_nonfinite, module_path, nonfinite_weight
from sequencing.structures import Batch
from sequencing.training import BATCH_SIGNATURE

SOURCES = ('posterior', 'prior', 'other', 'zeros')  # where a latent comes from; 'other': the posterior of a neighbour

# Thresholds of the verdict
ACTIVE_VARIANCE = 0.01  # of a channel's posterior mean over positions, above which it is active (Burda et al., 2016)
ROUND_TRIP = 1e-2  # largest |inverse(forward(z)) - z| of a sound flow, float32
CONDITION = 1e4  # largest condition number of a sound linear layer
LEARNT = 0.75  # share of ln(vocabulary) that the reconstruction of a model that learnt something is below
ALIVE = 0.05  # accuracy from the posterior above that from zeros, of a latent that is alive
CAUGHT_UP = 0.5  # share of what the posterior adds to the accuracy from zeros that a prior which has caught up adds


class Findings(NamedTuple):
    """Measures over a text; nats and shares are per target position, EOS filling included."""

    reconstruction: float  # -log p(y | z, x) in nats
    kl: float  # in nats
    kl_by_level: list  # of float; log q is shared out by size, so only their changes mean something
    length: float  # -log p(T | x), nats a sentence
    length_error: float  # mean |predicted - true| in tokens
    active: int  # channels of the latent whose posterior mean varies
    channels: int
    deviation: float  # mean posterior standard deviation
    mean: float  # root mean square of the posterior mean
    accuracy: dict  # of SOURCES, share of positions decoded right at the true length
    round_trip: float  # max |inverse(forward(z)) - z|
    log_det: tuple  # lowest and highest forward log-det of a position
    condition: tuple  # largest condition number of a linear layer, and its path
    scales: tuple  # smallest and largest scale of an ActNorm
    nonfinite: str  # the first part with a non-finite number, or ''
    vocabulary: int  # tokens


class Probe:
    """Measures a `FlowSeq` on batches.

    Args:
      model: `FlowSeq`, not folded.
    """

    def __init__(self, model):
        self.model = model
        self._look = tf.function(self._look_at, input_signature=[BATCH_SIGNATURE], autograph=False)

    def measure(self, batches):
        """Looks at every batch.

        Args:
          batches: of `Batch`es as `EvalInputs.batches` gives them.
        Returns:
          `Findings`, of which only `nonfinite` is known where the model cannot be run; decoded ids `[T]` of every
          sentence, in order, by source; latents of the first batch, a dict of posterior means and prior latents
          `[n, D]`; and predicted and true lengths, two lists.
        """
        batches = [Batch(*map(tf.constant, batch)) for batch in batches]
        ids = {source: [] for source in SOURCES}
        try:
            nonfinite = self._first_nonfinite(batches[0])
        except tf.errors.InvalidArgumentError:  # what TensorFlow says of a matrix without an inverse
            nonfinite = 'a linear layer of the flow cannot be inverted'
        if nonfinite:
            return Findings(**{**dict.fromkeys(Findings._fields), 'nonfinite': nonfinite}), ids, {}, ([], [])
        sums, lengths, latents, extremes = None, ([], []), None, []
        for batch in batches:
            seen = {name: _to_numpy(value) for name, value in self._look(batch).items()}
            real = batch.trg_mask.numpy()
            for source in SOURCES:
                ids[source] += [row[mask] for row, mask in zip(seen['ids'][source], real)]
            lengths[0].extend(seen['predicted'].tolist())
            lengths[1].extend(real.sum(axis=1).tolist())
            latents = latents or {'posterior': seen['mean'], 'prior': seen['prior']}
            extremes.append((seen['round_trip'], seen['log_det'].min(), seen['log_det'].max()))
            sums = seen['sums'] if sums is None else [a + b for a, b in zip(sums, seen['sums'])]
        return self._findings(sums, extremes, lengths), ids, latents, lengths

    def _look_at(self, batch):
        model = self.model
        source, rows = model.encode(batch.src_ids, batch.src_mask), Rows(batch.trg_mask)
        memory = source.for_prior()
        mean, log_variance = model.posterior_ends(batch.trg_ids, rows, source)
        parts = model.loss(batch, samples=1, smooth=False)
        noise = tf.zeros([rows.batch * rows.time, model.latent_size])
        prior, _ = flowseq_decoding.generate(model, source, rows, noise)
        neighbour = rows.only_real(rows.flat(tf.roll(rows.padded(mean), 1, axis=0)))
        latents = dict(zip(SOURCES, (mean, prior, neighbour, noise)))
        ids = {name: flowseq_decoding.decode(model, source, z, rows)[0] for name, z in latents.items()}
        right = [tf.reduce_sum(tf.cast((ids[name] == batch.trg_ids) & batch.trg_mask, tf.float32)) for name in SOURCES]
        forward, log_det = model.prior.forward_and_log_det(rows.padded(mean), mask=rows.mask, memory=memory)
        back, _ = model.prior.inverse_and_log_det(forward, mask=rows.mask, memory=memory)
        predicted, _ = model.length_predictor.predict(source.context, source.lengths, 1)
        real = tf.boolean_mask(mean, rows.real[:, 0])
        deviation = tf.boolean_mask(tf.exp(0.5 * log_variance), rows.real[:, 0])
        return {
            'ids': ids,
            'mean': real,
            'prior': tf.boolean_mask(prior, rows.real[:, 0]),
            'predicted': predicted[:, 0],
            'round_trip': tf.reduce_max(tf.abs(back - rows.padded(mean))),
            'log_det': log_det / tf.maximum(rows.counts(tf.float32), 1.0),
            'sums': [
                parts.reconstruction, parts.kl, parts.kl_by_level, parts.length, parts.tokens, parts.sentences,
                tf.stack(right), tf.reduce_sum(real, axis=0), tf.reduce_sum(tf.square(real), axis=0),
                tf.reduce_sum(deviation),
            ],
        }  # fmt: skip

    def _findings(self, sums, extremes, lengths):
        reconstruction, kl, kl_by_level, length, tokens, sentences, right, first, second, deviation = sums
        variance = second / tokens - np.square(first / tokens)
        channels = self.model.latent_size
        return Findings(
            reconstruction=float(reconstruction / tokens),
            kl=float(kl / tokens),
            kl_by_level=(kl_by_level / tokens).tolist(),
            length=float(length / sentences),
            length_error=float(np.mean(np.abs(np.subtract(*lengths)))),
            active=int(np.sum(variance > ACTIVE_VARIANCE)),
            channels=channels,
            deviation=float(deviation / tokens / channels),
            mean=float(np.sqrt(np.mean(second / tokens))),
            accuracy=dict(zip(SOURCES, (right / tokens).tolist())),
            round_trip=float(max(extreme[0] for extreme in extremes)),
            log_det=(float(min(e[1] for e in extremes)), float(max(e[2] for e in extremes))),
            condition=self._worst_condition(),
            scales=self._scales(),
            nonfinite='',
            vocabulary=self.model.vocab_size,
        )

    def _worst_condition(self):
        layers = [module for module in self.model.submodules if isinstance(module, InvertibleLinear)]
        found = [(float(np.linalg.cond(layer.weight(tf.float64))), module_path(self.model, layer)) for layer in layers]
        return max(found, default=(1.0, ''))

    def _scales(self):
        layers = [module for module in self.model.submodules if isinstance(module, ActNorm)]
        logs = [layer.log_scale.numpy() for layer in layers] or [np.zeros(1)]
        return float(np.exp(min(map(np.min, logs)))), float(np.exp(max(map(np.max, logs))))

    def _first_nonfinite(self, batch):
        weight = nonfinite_weight(self.model)
        if weight or np.isfinite(float(self.model.loss(batch).loss)):
            return weight
        return first_nonfinite(self.model, lambda: self.model.loss(batch))


def _to_numpy(value):
    if isinstance(value, dict):
        return {name: _to_numpy(part) for name, part in value.items()}
    return [part.numpy() for part in value] if isinstance(value, list) else value.numpy()


def verdict(findings):
    """What the measures say: one of 'exploding', 'undertrained', 'collapsed', 'healthy', why, and what to try."""
    right = findings.accuracy
    numbers = [findings.reconstruction, findings.kl, findings.round_trip, *(findings.log_det or ())]
    if findings.nonfinite or not np.isfinite(numbers).all():
        return 'exploding', findings.nonfinite or 'a measure is not finite', (
            'a lower train.learning_rate or train.clip_norm; float32 in place of a 16-bit precision; '
            'model.prior.linear=lu'
        )  # fmt: skip
    if findings.round_trip > ROUND_TRIP or findings.condition[0] > CONDITION:
        return 'exploding', (
            f'the flow does not invert itself: it is off by up to {findings.round_trip:.1e} (sound: below '
            f'{ROUND_TRIP:g}), and {findings.condition[1] or "its worst linear layer"} has condition number '
            f'{findings.condition[0]:.1e} (sound: below {CONDITION:g})'
        ), 'model.prior.linear=lu, a lower train.learning_rate, train.weight_decay'  # fmt: skip
    limit = LEARNT * np.log(findings.vocabulary)
    if findings.reconstruction > limit:
        return 'undertrained', (
            f'targets are hardly reconstructed yet: {findings.reconstruction:.2f} nats a position, and '
            f'{limit:.2f} is {LEARNT:.0%} of ln(vocabulary)'
        ), 'train longer, first train.flow.reconstruction_steps; a higher learning rate'  # fmt: skip
    if right['posterior'] - right['zeros'] < ALIVE:
        return 'collapsed', (
            f'the decoder does without the latent: {right["posterior"]:.1%} of positions are right from the posterior, '
            f'{right["zeros"]:.1%} from zeros; {findings.active} of {findings.channels} channels are active'
        ), (
            'a longer train.flow.reconstruction_steps, a slower kl_warmup_steps, free_bits or kl_weight below 1, '
            'less model.decoder.word_dropout'
        )  # fmt: skip
    if right['prior'] - right['zeros'] < CAUGHT_UP * (right['posterior'] - right['zeros']):
        return 'undertrained', (
            f'the prior has not caught up: {right["prior"]:.1%} of positions are right from its latents, '
            f'{right["posterior"]:.1%} from the posterior, {right["zeros"]:.1%} from zeros (KL '
            f'{findings.kl:.2f} nats a position)'
        ), 'train longer; more of train.flow.kl_weight; targets that are easier to foresee: distillation'  # fmt: skip
    return 'healthy', (
        f'{right["posterior"]:.1%} of positions are right from the posterior, {right["prior"]:.1%} from the prior, '
        f'{right["zeros"]:.1%} from zeros'
    ), 'nothing'  # fmt: skip
