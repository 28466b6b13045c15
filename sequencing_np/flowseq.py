"""FlowSeq: a length, latents from the prior, all tokens at once; see `sequencing.flowseq`."""

import math

import numpy as np

from sequencing_np import flow_decoding
from sequencing_np.blocks import (
    Bidirectional,
    DecoderBlock,
    EncoderBlock,
    GlobalAttention,
    Rows,
    SourceAttentionBlock,
    source_beside_target,
)
from sequencing_np.flow import PRIORS
from sequencing_np.layers import elu, linear, weight_norm_linear
from sequencing_np.lengths import LENGTHS
from sequencing_np.search import logsumexp


class TransformerEncoder:
    """Scaled embeddings plus positions, then post-norm Transformer layers."""

    def __init__(self, weights, part, size):
        self.scale = np.float32(size**0.5)
        self.layers = [EncoderBlock(layer, part.heads) for layer in weights.listed('layers')]

    def __call__(self, x, rows):
        """Flat embedded tokens to flat states, zero at padding."""
        x = x * self.scale + rows.positions(x.shape[1])
        for layer in self.layers:
            x = layer(x, rows)
        return rows.only_real(x)


class RecurrentEncoder:
    """Bidirectional recurrent layers and a projection with ELU behind them."""

    def __init__(self, weights, part, size):
        self.recurrent = Bidirectional(weights.below('recurrent'), part.cell)
        self.projection = linear(weights.below('projection'))

    def __call__(self, x, rows):
        return rows.only_real(elu(self.projection(self.recurrent(x, rows))))


class Posterior:
    """Means and log-variances of q(z | x, y)."""

    def __init__(self, weights, part, size):
        self.ends = [weight_norm_linear(weights.below(name)) for name in ('mean', 'log_variance')]

    def __call__(self, x, rows, source):
        """Flat embedded target tokens and what `prepare` gave to two flat arrays, zero at padding."""
        features = self.features(x, rows, source)
        return [rows.only_real(end(features)) for end in self.ends]


class TransformerPosterior(Posterior):
    """Scaled embeddings plus positions, then Transformer layers over target and source."""

    def __init__(self, weights, part, size):
        super().__init__(weights, part, size)
        self.scale = np.float32(size**0.5)
        self.layers = [DecoderBlock(layer, part.heads) for layer in weights.listed('layers')]

    def prepare(self, states, rows):
        """Flat source states and their `Rows` to keys and values of every layer, and their penalty."""
        return [layer.source_attention.keys_and_values(states, rows.batch) for layer in self.layers], rows.penalty

    def features(self, x, rows, source):
        x = x * self.scale + rows.positions(x.shape[1])
        for layer, memory in zip(self.layers, source[0]):
            x = layer(x, rows, memory, source[1])
        return x


class RecurrentPosterior(Posterior):
    """Recurrent layers over the target, attention to the source, and a projection with ELU."""

    def __init__(self, weights, part, size):
        super().__init__(weights, part, size)
        self.recurrent = Bidirectional(weights.below('recurrent'), part.cell)
        self.attention = GlobalAttention(weights.below('attention')) if part.attention else None
        self.projection = linear(weights.below('projection'))
        self.shifted, self.bidirectional = part.shifted, part.bidirectional

    def prepare(self, states, rows):
        return (self.attention.keys_and_values(states, rows.batch), rows.penalty) if self.attention else None

    def features(self, x, rows, source):
        x = self.recurrent(x, rows)
        if self.shifted:
            x = self._shifted(x.reshape(rows.batch, rows.time, -1)).reshape(x.shape)
        if self.attention is not None:
            x = np.concatenate([x, self.attention(x, *source)], axis=1)
        return elu(self.projection(x))

    def _shifted(self, states):
        """Forward states of the step before and backward states of the step after, zeros outside."""
        units = states.shape[2] // (2 if self.bidirectional else 1)
        moved = np.zeros_like(states)
        moved[:, 1:, :units] = states[:, :-1, :units]
        moved[:, :-1, units:] = states[:, 1:, units:]
        return moved


class TransformerDecoder:
    """Positions attend to the latents; Transformer layers follow."""

    def __init__(self, weights, part):
        self.position_attention = SourceAttentionBlock(weights.below('position_attention'), part.heads)
        self.layers = [DecoderBlock(layer, part.heads) for layer in weights.listed('layers')]
        self.copy_source = part.copy_source

    def prepare(self, states, rows):
        """As in `TransformerPosterior`, and what `source_beside_target` reads."""
        pairs = [layer.source_attention.keys_and_values(states, rows.batch) for layer in self.layers]
        return pairs, rows.penalty, (states.reshape(rows.batch, rows.time, -1), rows.counts)

    def __call__(self, z, rows, source):
        """Flat latents, zero at padding, to flat features."""
        memory = self.position_attention.keys_and_values(z, rows.batch)
        pairs, penalty, copied = source
        x = self.position_attention(rows.positions(z.shape[1]), memory, rows.penalty)
        if self.copy_source:
            x = x + source_beside_target(rows, *copied)
        for layer, memory in zip(self.layers, pairs):
            x = layer(x, rows, memory, penalty)
        return x


class RecurrentDecoder:
    """Recurrent layers over the latents (or none), attention to the source, and a projection with ELU."""

    def __init__(self, weights, part):
        self.recurrent = Bidirectional(weights.below('recurrent'), part.cell) if part.layers else None
        self.attention = GlobalAttention(weights.below('attention'))
        self.projection = linear(weights.below('projection'))

    prepare = RecurrentPosterior.prepare

    def __call__(self, z, rows, source):
        states = z if self.recurrent is None else self.recurrent(z, rows)
        return elu(self.projection(np.concatenate([self.attention(states, *source), states], axis=1)))


ENCODERS = {'transformer': TransformerEncoder, 'rnn': RecurrentEncoder}
POSTERIORS = {'transformer': TransformerPosterior, 'rnn': RecurrentPosterior}
DECODERS = {'transformer': TransformerDecoder, 'rnn': RecurrentDecoder}


class EncodedSource:
    """An encoded source, and what each part of the model makes of it, once and when it is asked for.

    Attributes:
      rows: `Rows` of the source; context: `[B, D]`, the state at the last real step, that of EOS.
    """

    def __init__(self, states, rows):
        self.states, self.rows = states, rows
        last = rows.mask.sum(axis=1) - 1 + rows.time * rows.xp.arange(rows.batch)
        self.context = states[last]

    def prepared(self, part):
        """What a part's `prepare` makes of it."""
        return self.rows.kept(id(part), lambda: part.prepare(self.states, self.rows))


class FlowSeq:
    """See `sequencing.flowseq`.

    Args:
      config: `Config`; weights: `Weights`; src_vocab, trg_vocab: `Vocab`s.
    """

    decoding_modes = flow_decoding.MODES

    def rows_per_source(self, options):
        """How many sentences a source is to the batch size."""
        return options.flow_rows(self.lengths.most_lengths)

    def __init__(self, config, weights, src_vocab, trg_vocab):
        model, self.xp = config.model, weights.xp
        self.latent_size = model.latent_size
        self.pad_id, self.eos_id = trg_vocab.pad_id, trg_vocab.eos_id
        never = [trg_vocab.bos_id] + ([] if model.any_token else [trg_vocab.pad_id, trg_vocab.unk_id])
        self.barred_ids = [i for i in never if i is not None]  # what decoding does not choose
        self.trg_table = weights['trg_embedding/table']
        self.src_table = self.trg_table if model.share_embeddings else weights['src_embedding/table']
        size = model.latent_size
        self.encoder = ENCODERS[model.encoder.kind](weights.below('encoder'), model.encoder, size)
        self.posterior = POSTERIORS[model.posterior.kind](weights.below('posterior'), model.posterior, size)
        self.decoder = DECODERS[model.decoder.kind](weights.below('decoder'), model.decoder)
        self.lengths = LENGTHS[model.length.kind](weights.below('length_predictor'), model.length, model.length_unit)
        self.prior = PRIORS[model.prior.kind](weights.below('prior'), model.prior, size)
        self.output = self.trg_table.T if model.tie_output else weights['output/kernel']
        self.output_bias = weights['output/bias']

    def encode(self, src_ids, src_mask):
        """`[B, S]` ids and mask of NumPy to an `EncodedSource`."""
        rows = Rows(self.xp, self.xp.asarray(src_mask))
        return EncodedSource(self.encoder(self.src_table[self.xp.asarray(src_ids).reshape(-1)], rows), rows)

    def logits(self, z, rows, source):
        """Scores `[M, N]` of all tokens for the M real rows of flat latents."""
        features = self.decoder(z, rows, source.prepared(self.decoder))
        if not rows.full:
            features = features[rows.real[:, 0]]
        scores = features @ self.output
        scores += self.output_bias
        return scores

    def prior_log_prob(self, z, rows, source):
        """log p(z | x) of flat latents, `[B]` in nats."""
        noise, log_det = self.prior.forward(z, rows, source.prepared(self.prior))
        return log_det + self.normal_log_prob(noise, rows)

    @staticmethod
    def normal_log_prob(noise, rows):
        """log N(noise; 0, I) of each sentence, `[B]`."""
        return -0.5 * rows.sums(np.square(noise) + np.float32(math.log(2.0 * math.pi)))

    def log_probs(self, z, ids, rows, source):
        """log p(y | z, x) `[B]` of ids `[B, T]`."""
        logits = self.logits(z, rows, source)
        return self.chosen(logits, ids.reshape(-1) if rows.full else ids[rows.mask], rows)

    def chosen(self, logits, ids, rows):
        """Log-probabilities of the tokens `ids` of real rows, added up by sentence, `[B]`; `logits` are overwritten."""
        values = np.take_along_axis(logits, ids[:, np.newaxis], axis=1)[:, 0]
        values -= logsumexp(logits)
        padded = np.zeros_like(values, shape=(rows.batch, rows.time))
        padded[rows.mask] = values
        return padded.sum(axis=1)

    def translate(self, src_ids, src_mask, limits, options):
        """Decodes a batch, arrays of NumPy: see `flow_decoding.translate`."""
        return flow_decoding.translate(self, src_ids, src_mask, limits, options)
