"""Joins parts into models: the only place that knows which parts go together, and where sizes meet.

Reads no file and no data. `build_model` takes a `Config` and two vocabularies; what it returns has every variable it
will ever have.
"""

import tensorflow as tf

from sequencing.attention_via_attention import AvEncoder
from sequencing.baseline import Baseline
from sequencing.convolutional import ConvDecoder, ConvEncoder
from sequencing.layers import LookUpOp
from sequencing.losses import cross_entropy
from sequencing.objectives import Likelihood
from sequencing.options import ConfigError
from sequencing.rnn_decoder import AttentionRNNDecoder
from sequencing.rnn_encoders import StackBidirectionalRNNEncoder, StackRNNEncoder
from sequencing.seq2seq import AvSeq2Seq, Seq2Seq
from sequencing.sequence_objective import SequenceLevel
from sequencing.transformer import TransformerDecoder, TransformerEncoder

PRECISIONS = {'float32': tf.float32, 'mixed_bfloat16': tf.bfloat16, 'mixed_float16': tf.float16}


def build_model(config, src_vocab, trg_vocab, precision=None):
    """Makes a model.

    Args:
      config: `sequencing.config.Config`.
      src_vocab, trg_vocab: `Vocab`s, of which only sizes and special ids are used.
      precision: overrides `config.precision`.
    Returns:
      `Seq2Seq`, or the model that `config.model.kind` names.
    """
    tf.random.set_seed(config.seed)
    dtype = PRECISIONS[precision or config.precision]
    return BUILDERS[config.model.kind](config, src_vocab, trg_vocab, dtype)


def build_attention_model(config, src_vocab, trg_vocab, dtype=tf.float32):
    """An autoregressive model: embeddings, an encoder, a decoder that attends to it, an output layer."""
    model = config.model
    if trg_vocab.bos_id is None:
        raise ConfigError('data.trg_vocab has no BOS token, which an autoregressive model starts from; '
                          'import it for a flow model, or make a new vocabulary.')  # fmt: skip
    if model.share_embeddings and src_vocab.tokens != trg_vocab.tokens:
        raise ConfigError('model.share_embeddings needs the same tokens on both sides: set data.joint_vocab to true.')
    src_embedding = LookUpOp(src_vocab.size, model.embedding_size, name='src_embedding')
    if model.share_embeddings:
        trg_embedding = src_embedding
    else:
        trg_embedding = LookUpOp(trg_vocab.size, model.embedding_size, name='trg_embedding')
    encoder = ENCODERS[model.encoder.kind](model.encoder, model.embedding_size)
    decoder = DECODERS[model.decoder.kind](model.decoder, model.embedding_size, encoder.output_size)
    mixer = config.train.mode == 'rl' and config.train.rl.kind == 'mixer'
    baseline = Baseline(decoder.output_size) if mixer else None
    kind, options = Seq2Seq, {}
    if model.encoder.kind == 'ava':
        kind, options = AvSeq2Seq, {'space_id': space_of(src_vocab)}
    return kind(
        src_embedding, trg_embedding, encoder, decoder, trg_vocab.size, trg_vocab.bos_id, trg_vocab.eos_id,
        tie_output=model.tie_output, dtype=dtype, label_smoothing=config.train.label_smoothing, baseline=baseline,
        **options,
    )  # fmt: skip


def space_of(vocab):
    """The id of the space, which parts words."""
    if ' ' not in vocab.tokens:
        raise ConfigError("model.encoder.kind 'ava' finds words by spaces, and data.src_vocab has no token for them: "
                          'set data.src_vocab.kind to characters.')  # fmt: skip
    return vocab.tokens.index(' ')


def build_flowseq(config, src_vocab, trg_vocab, dtype=tf.float32):
    """A flow model; see `build_flow_model.py`, imported here because only flow models need TensorFlow Probability."""
    from build_flow_model import build_flow_model

    return build_flow_model(config, src_vocab, trg_vocab, dtype)


def build_objective(model, config, trg_vocab):
    """What the training of a model minimises; see `sequencing/objectives.py`."""
    if config.model.kind == 'flowseq':
        from sequencing.flow_objective import FlowObjective  # needs TensorFlow Probability

        return FlowObjective(model, config)
    return SequenceLevel(model, config, trg_vocab) if config.train.mode == 'rl' else Likelihood(model, config)


def build_rnn_encoder(encoder, input_size):
    """A recurrent encoder from `RNNEncoderConfig`."""
    kind = StackBidirectionalRNNEncoder if encoder.bidirectional else StackRNNEncoder
    return kind(encoder.cell, input_size, encoder.state_size, encoder.layers, encoder.dropout, name='encoder')


def build_av_encoder(encoder, input_size):
    """An encoder of characters and words from `AvEncoderConfig`."""
    return AvEncoder(encoder.cell, input_size, encoder.state_size, encoder.layers, encoder.dropout, name='encoder')


def build_rnn_decoder(decoder, input_size, value_size):
    """A recurrent decoder with attention from `RNNDecoderConfig`."""
    return AttentionRNNDecoder(
        decoder.cell, input_size, value_size, decoder.state_size, decoder.attention, decoder.attention_size,
        decoder.readout_size, decoder.layers, decoder.dropout, decoder.recompute, name='decoder',
    )  # fmt: skip


def build_transformer_encoder(encoder, input_size):
    """A Transformer encoder from `TransformerEncoderConfig`."""
    return TransformerEncoder(input_size, **transformer_options(encoder), name='encoder')


def build_transformer_decoder(decoder, input_size, value_size):
    """A Transformer decoder from `TransformerDecoderConfig`."""
    return TransformerDecoder(input_size, value_size, **transformer_options(decoder), name='decoder')


def transformer_options(part):
    """What a configuration of either side says, as arguments of `TransformerStack`."""
    return dict(
        size=part.size, heads=part.heads, hidden_size=part.hidden_size, layers=part.layers,
        activation=part.activation, pre_norm=part.norm == 'pre', positions=part.positions,
        max_positions=part.max_positions, scale_embedding=part.scale_embedding, dropout=part.dropout,
        attention_dropout=part.attention_dropout, hidden_dropout=part.hidden_dropout, recompute=part.recompute,
    )  # fmt: skip


def build_conv_encoder(encoder, input_size):
    """A convolutional encoder from `ConvEncoderConfig`."""
    return ConvEncoder(input_size, **conv_options(encoder), name='encoder')


def build_conv_decoder(decoder, input_size, value_size):
    """A convolutional decoder from `ConvDecoderConfig`."""
    return ConvDecoder(input_size, value_size, **conv_options(decoder), name='decoder')


def conv_options(part):
    """What a configuration of either side says, as arguments of `ConvEncoder` and `ConvDecoder`."""
    return dict(
        size=part.size, width=part.width, layers=part.layers, positions=part.positions,
        max_positions=part.max_positions, scale_embedding=part.scale_embedding, weight_norm=part.weight_norm,
        dropout=part.dropout,
    )  # fmt: skip


ENCODERS = {
    'rnn': build_rnn_encoder,
    'transformer': build_transformer_encoder,
    'conv': build_conv_encoder,
    'ava': build_av_encoder,
}
DECODERS = {'rnn': build_rnn_decoder, 'transformer': build_transformer_decoder, 'conv': build_conv_decoder}
BUILDERS = {'seq2seq': build_attention_model, 'flowseq': build_flowseq}


def cross_entropy_sequence_loss(logits, targets, mask):
    """Mean negative log-likelihood in nats per real target token, from logits `[B, T, N]`, ids and mask `[B, T]`."""
    losses, _ = cross_entropy(tf.boolean_mask(logits, mask), tf.boolean_mask(targets, mask))
    return tf.reduce_mean(losses)
