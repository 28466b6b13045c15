"""How a FlowSeq model is trained: reconstruction first, then the whole bound while the weight of KL grows.

    reconstruction  decode the posterior's mean; the prior is left alone
    bound           reconstruction + weight * KL(q(z | x, y) || p(z | x)), with a latent sampled from the posterior

Before each phase, what is set from data is set from a sample of the training text, and the optimizer starts afresh.
Reference: Ma et al., 2019, section 3.6, and the published implementation
"""

import tensorflow as tf

from sequencing import flowseq_decoding
from sequencing.flowseq import FULL, RECONSTRUCTION, FlowLoss
from sequencing.objectives import Phase
from sequencing.structures import Batch

_VALIDATION_SAMPLES = 3  # latents a sentence for the bound on the dev set, as the published implementation takes


class FlowObjective:
    """As `objectives.Likelihood`, for `FlowSeq`.

    Args:
      model: `FlowSeq`; config: `Config`, of which `train.flow` is the recipe.
    """

    def __init__(self, model, config):
        self.model, self.seed, self.recipe = model, config.seed, config.train.flow
        self.length_unit, self.nll_unit = model.length_unit, 'tokens'
        self.levels = len(model.prior.level_shares)
        self.parts = FlowLoss._fields[:-1] + tuple(f'kl_level_{i}' for i in range(self.levels))
        first, train = self.recipe.reconstruction_steps, config.train
        beyond = {id(v) for part in (model.prior, model.posterior.log_variance) for v in part.trainable_variables}
        known = [v for v in model.trainable_variables if id(v) not in beyond]
        steps, rate = train.max_steps - first, self.recipe.bound_rate
        self.phases = [Phase(FULL, first, steps, train.warmup_steps, model.trainable_variables, rate)]
        if first:
            self.phases.insert(0, Phase(RECONSTRUCTION, 0, first, min(self.recipe.reconstruction_warmup, first), known))

    def begin(self, phase, inputs):
        """Data-dependent initialisation on `train.flow.init_sentences` random pairs."""
        turn = self.phases.index(phase)
        batch = Batch(*map(tf.constant, inputs.sample(self.recipe.init_sentences, turn)))
        seed = tf.constant([self.seed, turn], tf.int32)
        if len(self.phases) == 1:
            self.model.initialise(batch, seed, RECONSTRUCTION, self.recipe.init_over_padding)
        self.model.initialise(batch, seed, phase.name, self.recipe.init_over_padding)

    def loss(self, phase, batch, seed, step):
        """`FlowLoss`, whose last field counts as one part a level."""
        recipe = self.recipe
        # Noise belongs to (seed, update, pair), however the pairs of an update are cut into batches and replicas.
        noise_seed = tf.stack([tf.constant(self.seed, tf.int32), tf.cast(step, tf.int32)])
        return self.model.loss(batch, seed, phase.name, self.kl_weight(phase, step), recipe.samples,
                               free_bits=recipe.free_bits, noise_seed=noise_seed, level_weights=recipe.kl_level_weights,
                               glancing=recipe.glancing, glancing_ratio=self.glancing_ratio(phase, step))  # fmt: skip

    def validation_loss(self, phase, batch):
        return self.model.loss(batch, phase=phase.name, samples=_VALIDATION_SAMPLES, smooth=False)

    def translates(self, phase):
        return phase.name == FULL

    def reconstruct(self, batch):
        """Targets as the model gives them back from their own latents, `[B, T]` int32."""
        return flowseq_decoding.reconstruct(self.model, batch)[0]

    def kl_weight(self, phase, step):
        """Rises linearly over `kl_warmup_steps`, again in each cycle where there are cycles."""
        recipe = self.recipe
        done = tf.cast(step - phase.first, tf.float32)
        if recipe.kl_cycle_steps:
            done %= float(recipe.kl_cycle_steps)
        return recipe.kl_weight * tf.minimum(1.0, (done + 1.0) / max(recipe.kl_warmup_steps, 1))

    def glancing_ratio(self, phase, step):
        """From `glancing_from` to `glancing_to`, linearly over the phase."""
        recipe = self.recipe
        done = tf.cast(step - phase.first, tf.float32) / max(phase.steps - 1, 1)
        return recipe.glancing_from + (recipe.glancing_to - recipe.glancing_from) * tf.minimum(done, 1.0)

    def report(self, phase, totals, step):
        values = {'reconstruction': totals.reconstruction / totals.tokens}
        if phase.name == FULL:
            values['kl'] = totals.kl / totals.tokens
            for i in range(self.levels if self.levels > 1 else 0):
                values[f'kl_level_{i}'] = getattr(totals, f'kl_level_{i}') / totals.tokens
            values['kl_weight'] = float(self.kl_weight(phase, max(step - 1, phase.first)))
            if self.recipe.glancing and totals.glancing:  # the dev set is not glanced at
                values['glancing'] = totals.glancing / totals.tokens
                values['first_look'] = totals.first_look / totals.tokens
        values['length'] = totals.length / totals.sentences
        if totals.out_of_reach:  # the share of sentences of a length that the predictor has no place for
            values['out_of_reach'] = totals.out_of_reach / totals.sentences
        values['smoothed_reconstruction'] = totals.smoothed_reconstruction / totals.tokens
        return values
