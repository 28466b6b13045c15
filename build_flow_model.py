"""Joins the parts of FlowSeq, and a flow from `flow_layers`, into a model; `build_model.py` hands over to here."""

import tensorflow as tf

from flow_layers.build import build_flow, build_gaussian_prior
from sequencing.flowseq import FlowSeq, OutputLayer
from sequencing.flowseq_decoders import RecurrentDecoder, TransformerDecoder
from sequencing.flowseq_encoders import RecurrentEncoder, TransformerEncoder
from sequencing.flowseq_posteriors import RecurrentPosterior, TransformerPosterior
from sequencing.layers import LookUpOp
from sequencing.length_predictors import LogisticLength, SoftmaxLength
from sequencing.options import ConfigError


def build_flow_model(config, src_vocab, trg_vocab, dtype=tf.float32):
    """Makes a `FlowSeq` with every variable it will ever have; reads no file and no data.

    Args:
      config: `sequencing.config.Config` whose model is a `FlowSeqConfig`.
      src_vocab, trg_vocab: `Vocab`s, of which only sizes, tokens and special ids are used.
      dtype: of the arithmetic.
    """
    model = config.model
    if model.share_embeddings and src_vocab.tokens != trg_vocab.tokens:
        raise ConfigError('model.share_embeddings needs the same tokens on both sides: set data.joint_vocab to true.')
    src_embedding = _embedding(src_vocab, model.embedding_size, 'src_embedding')
    trg_embedding = src_embedding
    if not model.share_embeddings:
        trg_embedding = _embedding(trg_vocab, model.embedding_size, 'trg_embedding')
    return FlowSeq(
        src_embedding,
        trg_embedding,
        build_encoder(model),
        build_posterior(model),
        build_decoder(model),
        build_length_predictor(model),
        build_prior(model),
        OutputLayer(model.latent_size, trg_vocab.size, trg_embedding if model.tie_output else None),
        model.latent_size,
        trg_vocab.size,
        trg_vocab.pad_id,
        trg_vocab.unk_id,
        trg_vocab.eos_id,
        trg_vocab.bos_id,
        dtype=dtype,
        label_smoothing=config.train.label_smoothing,
        any_token=model.any_token,
    )


def _embedding(vocab, size, name):
    """A table that starts uniform in +-0.1, PAD's row zero."""
    embedding = LookUpOp(vocab.size, size, scale=0.1, name=name)
    embedding.table.assign(tf.tensor_scatter_nd_update(embedding.table, [[vocab.pad_id]], tf.zeros([1, size])))
    return embedding


def build_encoder(model):
    """The encoder that `model.encoder` describes."""
    part = model.encoder
    if part.kind == 'transformer':
        return TransformerEncoder(
            model.latent_size, model.hidden_size, part.layers, part.heads, part.dropout, part.embedding_dropout
        )
    return RecurrentEncoder(
        model.embedding_size, model.hidden_size, model.latent_size, part.layers, part.cell, part.embedding_dropout
    )


def build_posterior(model):
    """The posterior that `model.posterior` describes."""
    part = model.posterior
    if part.kind == 'transformer':
        return TransformerPosterior(
            model.latent_size, model.hidden_size, part.layers, part.heads, part.dropout, part.embedding_dropout,
            part.word_dropout,
        )  # fmt: skip
    return RecurrentPosterior(
        model.embedding_size,
        model.hidden_size,
        model.latent_size,
        source_size=model.latent_size,
        layers=part.layers,
        cell=part.cell,
        attention=part.attention,
        bidirectional=part.bidirectional,
        shifted=part.shifted,
        dropout=part.dropout,
        word_dropout=part.word_dropout,
    )


def build_decoder(model):
    """The decoder that `model.decoder` describes."""
    part = model.decoder
    if part.kind == 'transformer':
        return TransformerDecoder(
            model.latent_size,
            model.hidden_size,
            part.layers,
            part.heads,
            part.dropout,
            part.word_dropout,
            part.copy_source,
        )
    return RecurrentDecoder(
        model.latent_size,
        model.hidden_size,
        part.layers,
        part.cell,
        part.bidirectional,
        part.dropout,
        part.word_dropout if part.layers else 0.0,
    )


def build_length_predictor(model):
    """The length predictor that `model.length` describes."""
    part, unit = model.length, model.length_unit
    if part.kind == 'softmax':
        return SoftmaxLength(model.latent_size, part.reach, unit, part.dropout, part.label_smoothing)
    return LogisticLength(model.latent_size, part.reach, unit, part.mixtures, part.dropout)


def build_prior(model):
    """The prior that `model.prior` describes."""
    part, size = model.prior, model.latent_size
    if part.kind == 'gaussian':
        return build_gaussian_prior(size, size, part.hidden_size, part.heads, part.dropout)
    return build_flow(
        size,
        size,
        part.steps,
        part.factors,
        hidden_size=part.hidden_size or None,
        coupling=part.coupling,
        transform=part.transform,
        heads=part.heads,
        positions=part.positions,
        cell=part.cell,
        kernel_size=part.kernel_size,
        dropout=part.dropout,
        linear=part.linear,
        unmasked_first=part.unmasked_first,
    )
