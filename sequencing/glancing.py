"""Glancing targets: the decoder of a flow model learns on latents of the prior, and is shown a part of the truth.

In the bound alone the decoder only ever reads latents of the posterior, and in decoding only those of the prior. Here a
first look decodes the prior's latent of zero noise, as argmax decoding will, though from the source as training reads
it, with dropout. The more of it is wrong, the more places are then given the posterior's mean instead; a second look at
this mixture learns the positions that were not given.
Latents are taken as they are: the loss trains the decoder, the encoder behind its attention and the output layer.

    given positions of a sentence = round(ratio * wrong positions of the first look), drawn among all of its positions

Reference: Qian et al., 2021, Glancing Transformer, https://arxiv.org/abs/2008.07905, section 3; with latents of a
posterior in place of embedded targets, after Bao et al., 2022, latent-GLAT, https://arxiv.org/abs/2204.02030
"""

import tensorflow as tf

from sequencing import flowseq_decoding, noise

_PURPOSE = 3  # tells the draw of positions apart from other noise of the same update and pair


def glancing_loss(model, source, batch, rows, mean, ratio, seed=None, noise_seed=None):
    """What learning from glanced targets costs.

    Args:
      model: `FlowSeq`.
      source: `EncodedSource` of the batch.
      batch: `Batch`; rows: the `Rows` of its targets.
      mean: flat `[B * T, D]`, the posterior's means.
      ratio: scalar from 0 to 1.
      seed: of the second look's dropout; None for none.
      noise_seed: `[2]` int32, which with `batch.index` says which positions are given; None for seed 0.
    Returns:
      the smoothed loss of the positions that were not given, `[B]` in nats, and how many positions the first look had
      right, `[B]` float32.
    """
    zeros = tf.zeros([rows.batch * rows.time, model.latent_size])
    prior = tf.stop_gradient(flowseq_decoding.generate(model, source, rows, zeros)[0])
    first_look, *_ = flowseq_decoding.decode(model, source, prior, rows)
    wrong = (first_look != batch.trg_ids) & batch.trg_mask
    mistakes = tf.reduce_sum(tf.cast(wrong, tf.float32), axis=1)
    given = given_positions(batch, tf.round(ratio * mistakes), noise_seed)
    mixed = tf.where(tf.reshape(given, [-1, 1]), tf.stop_gradient(mean), prior)
    smoothed, _ = model.cross_entropies(mixed, batch.trg_ids, rows, source, seed, batch.trg_mask & ~given)
    return smoothed, rows.counts(tf.float32) - mistakes


def given_positions(batch, counts, noise_seed=None):
    """`counts` `[B]` real target positions of each sentence, drawn without replacement; `[B, T]` bool."""
    first, second = (0, 0) if noise_seed is None else tf.unstack(noise_seed)
    time = tf.range(tf.shape(batch.trg_mask)[1])
    lots = noise.uniforms(first, second, _PURPOSE, batch.index[:, tf.newaxis], time)
    places = tf.argsort(tf.argsort(tf.where(batch.trg_mask, lots, 2.0), axis=1), axis=1)
    return tf.cast(places, tf.float32) < counts[:, tf.newaxis]
