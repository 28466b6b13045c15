"""The smallest model of every autoregressive family, for tests of what all of them promise."""

import dataclasses
import os

import tensorflow as tf

from build_model import build_model
from sequencing.config import (
    AvEncoderConfig,
    Config,
    ConvDecoderConfig,
    ConvEncoderConfig,
    RNNDecoderConfig,
    RNNEncoderConfig,
    Seq2SeqConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
)
from sequencing.model_folder import write_config, write_manifest
from sequencing.translator import Translator
from sequencing.vocab import Vocab

NO_DROPOUT = {'dropout': 0.0, 'attention_dropout': 0.0, 'hidden_dropout': 0.0}
RNN = (RNNEncoderConfig(state_size=48, dropout=0.0),
       RNNDecoderConfig(state_size=48, attention_size=24, readout_size=32, dropout=0.0))  # fmt: skip
TRANSFORMER = (TransformerEncoderConfig(layers=2, size=32, heads=4, hidden_size=64, **NO_DROPOUT),
               TransformerDecoderConfig(layers=2, size=32, heads=4, hidden_size=64, **NO_DROPOUT))  # fmt: skip
AVA = (AvEncoderConfig(state_size=48, dropout=0.0), dataclasses.replace(RNN[1], attention='via'))
CONV = (ConvEncoderConfig(layers=3, size=32, dropout=0.0), ConvDecoderConfig(layers=3, size=32, dropout=0.0))
FAMILIES = {
    'rnn': RNN,
    'transformer': TRANSFORMER,
    'conv': CONV,
    'ava': AVA,
    'rnn_to_transformer': (RNN[0], TRANSFORMER[1]),
    'transformer_to_rnn': (TRANSFORMER[0], RNN[1]),
}
WORDS = 'abcdefgh'
VOCABS = {'ava': lambda: Vocab([' ', *WORDS], delimiter='')}  # the others have words


def make_translator(family, seed, sharpen=1.0, network=None, vocab=None, **config):
    """A `Translator` with random weights; `sharpen` above 1 makes its choices more decided.

    `network` has fields of `Seq2SeqConfig`, `config` those of `Config`.
    """
    encoder, decoder = FAMILIES[family]
    network = Seq2SeqConfig(**{'embedding_size': 32, 'encoder': encoder, 'decoder': decoder, **(network or {})})
    config = Config(model=network, seed=seed, **config)
    vocab = vocab or VOCABS.get(family, lambda: Vocab(list(WORDS)))()
    model = build_model(config, vocab, vocab)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(variable * sharpen)
    return Translator(model, config, vocab, vocab)


def save_translator(translator, folder, number=1):
    """Makes a model folder, or adds checkpoint `number` to it."""
    os.makedirs(os.path.join(folder, 'vocab'), exist_ok=True)
    write_config(folder, translator.config)
    write_manifest(folder, translator.config.seed, {})
    translator.src_vocab.save(os.path.join(folder, 'vocab'), 'src')
    translator.trg_vocab.save(os.path.join(folder, 'vocab'), 'trg')
    checkpoint = tf.train.Checkpoint(model=translator.model)
    manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=9, checkpoint_name='ckpt')
    manager.save(checkpoint_number=number)
