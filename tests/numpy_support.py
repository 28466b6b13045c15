"""What tests of `sequencing_np` share: model folders with random weights, and a process without TensorFlow."""

import contextlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import tensorflow as tf

from build_model import build_model
from sequencing.config import (
    AvEncoderConfig,
    Config,
    ConvDecoderConfig,
    ConvEncoderConfig,
    DataConfig,
    RNNDecoderConfig,
    RNNEncoderConfig,
    Seq2SeqConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
)
from sequencing.flow_config import (
    FlowPriorConfig,
    FlowRNNDecoderConfig,
    FlowRNNEncoderConfig,
    FlowRNNPosteriorConfig,
    FlowSeqConfig,
    FlowTransformerDecoderConfig,
    FlowTransformerEncoderConfig,
    FlowTransformerPosteriorConfig,
    GaussianPriorConfig,
    LogisticLengthConfig,
    SoftmaxLengthConfig,
)
from sequencing.model_folder import write_config
from sequencing.structures import Batch
from sequencing.vocab import Vocab
from tests.flow_support import disturb
from tests.toy import ROOT
from tools import ckpt2npz

RNN_DECODER = dict(state_size=18, attention_size=14, readout_size=22)
TRANSFORMER = dict(layers=2, size=24, heads=4, hidden_size=26)
CONV = dict(layers=2, size=20)


def seq2seq(encoder, decoder, **model):
    return Seq2SeqConfig(**{'embedding_size': 16, 'encoder': encoder, 'decoder': decoder, **model})


AUTOREGRESSIVE = {
    'rnn': seq2seq(RNNEncoderConfig(state_size=20), RNNDecoderConfig(**RNN_DECODER)),
    'rnn_gru': seq2seq(
        RNNEncoderConfig(state_size=20, cell='gru', layers=2),
        RNNDecoderConfig(**RNN_DECODER, cell='gru', layers=3, attention='general'),
    ),
    'rnn_plain': seq2seq(
        RNNEncoderConfig(state_size=20, cell='rnn', bidirectional=False),
        RNNDecoderConfig(cell='rnn', attention='dot', state_size=18, attention_size=18, readout_size=16),
        share_embeddings=True,
        tie_output=True,
    ),
    'transformer': seq2seq(TransformerEncoderConfig(**TRANSFORMER), TransformerDecoderConfig(**TRANSFORMER)),
    'transformer_post': seq2seq(
        TransformerEncoderConfig(**TRANSFORMER, norm='post', activation='gelu', positions='learned', max_positions=5),
        TransformerDecoderConfig(**TRANSFORMER, norm='post', activation='gelu', positions='none'),
    ),
    'transformer_rotary': seq2seq(
        TransformerEncoderConfig(**TRANSFORMER, activation='swiglu', positions='rotary', scale_embedding=False),
        TransformerDecoderConfig(**TRANSFORMER, activation='swiglu', positions='rotary'),
        embedding_size=24,
        tie_output=True,
    ),
    'conv': seq2seq(ConvEncoderConfig(**CONV), ConvDecoderConfig(**CONV, width=4)),
    'conv_weight_norm': seq2seq(
        ConvEncoderConfig(**CONV, width=5, weight_norm=True, positions='sinusoidal'),
        ConvDecoderConfig(**CONV, weight_norm=True, positions='none', scale_embedding=False),
    ),
    'rnn_to_transformer': seq2seq(RNNEncoderConfig(state_size=20), TransformerDecoderConfig(**TRANSFORMER)),
    'transformer_to_conv': seq2seq(TransformerEncoderConfig(**TRANSFORMER), ConvDecoderConfig(**CONV)),
    'conv_to_rnn': seq2seq(ConvEncoderConfig(**CONV), RNNDecoderConfig(**RNN_DECODER)),
    'ava': seq2seq(AvEncoderConfig(state_size=20), RNNDecoderConfig(**RNN_DECODER, attention='via')),
}


def flow(**model):
    """A tiny FlowSeq that differs from a Transformer with self-attention couplings by some fields."""
    parts = dict(
        embedding_size=8,
        latent_size=8,
        hidden_size=10,
        encoder=FlowTransformerEncoderConfig(layers=1, heads=2),
        posterior=FlowTransformerPosteriorConfig(layers=1, heads=2),
        decoder=FlowTransformerDecoderConfig(layers=1, heads=2),
        length=SoftmaxLengthConfig(reach=5),
        prior=FlowPriorConfig(steps=(1, 0), factors=(2,), hidden_size=6, heads=2),
    )
    return FlowSeqConfig(**{**parts, **model})


FLOWS = {
    'flow': flow(
        share_embeddings=True,
        tie_output=True,
        decoder=FlowTransformerDecoderConfig(layers=1, heads=2, copy_source=True),
    ),
    'flow_recurrent': flow(
        embedding_size=6,
        encoder=FlowRNNEncoderConfig(layers=2, cell='gru'),
        posterior=FlowRNNPosteriorConfig(shifted=True, bidirectional=False),
        decoder=FlowRNNDecoderConfig(layers=1, cell='rnn'),
        length=LogisticLengthConfig(reach=5, mixtures=2),
        prior=FlowPriorConfig(steps=(0, 0, 0), factors=(2, 3), hidden_size=6, coupling='recurrent', transform='nlsq'),
    ),
    'flow_conv': flow(
        latent_size=64,
        encoder=FlowRNNEncoderConfig(layers=1),
        posterior=FlowRNNPosteriorConfig(shifted=True),
        decoder=FlowRNNDecoderConfig(layers=0),
        prior=FlowPriorConfig(
            steps=(1,), factors=(), hidden_size=6, coupling='conv', transform='additive', linear='lu', kernel_size=5
        ),
        any_token=True,
    ),
    'flow_gaussian': flow(
        posterior=FlowRNNPosteriorConfig(attention=False),
        prior=GaussianPriorConfig(hidden_size=6, heads=2, length_unit=3),
    ),
}


def write_model_folder(folder, model_config, random, words, deviation=0.15, **fields):
    """A model folder as a training leaves it, with every weight random; returns its `Config`, with `fields` of it."""
    config = Config(
        data=DataConfig(joint_vocab=model_config.share_embeddings), model=model_config, seed=random.randrange(2**31),
        **fields,
    )  # fmt: skip
    spells = getattr(model_config.encoder, 'kind', '') == 'ava'
    vocab = Vocab(sorted({*' '.join(words)}), delimiter='') if spells else Vocab(words)
    model = build_model(config, vocab, vocab)
    disturb(model, random, deviation)
    if model_config.kind == 'flowseq':  # PAD, UNK and BOS are what it would say most, if it could
        model.output.bias.assign_add(np.where(np.arange(vocab.size) < 3, 2.0, 0.0))
    os.makedirs(os.path.join(folder, 'vocab'))
    for name in ['joint'] if config.data.joint_vocab else ['src', 'trg']:
        vocab.save(os.path.join(folder, 'vocab'), name)
    write_config(folder, config)
    tf.train.CheckpointManager(tf.train.Checkpoint(model=model), os.path.join(folder, 'best'), 1).save()
    return config


def convert(folder, file, *flags):
    """Runs tools/ckpt2npz.py; returns its exit code."""
    with contextlib.redirect_stdout(io.StringIO()):
        return ckpt2npz.main(['ckpt2npz.py', f'--model_dir={folder}', f'--output_file={file}', *flags])


WITHOUT_TENSORFLOW = """
import json, sys
sys.modules['tensorflow'] = None  # from here on, whoever imports it fails
sys.path.insert(0, 'tests')
import strict_arrays
sys.modules['cupy'] = strict_arrays.MODULE
import sequencing_np

asked = json.load(sys.stdin)
answers = []
for file, module, lines, options in asked:
    results = sequencing_np.load(file, module).stream(lines, **options)
    answers.append([[output._asdict() for output in result.outputs] for result in results])
assert sys.modules['tensorflow'] is None
json.dump(answers, sys.stdout)
"""


def translate_without_tensorflow(asked):
    """Translates in a fresh process in which TensorFlow cannot be imported, and CuPy is `strict_arrays`.

    Args:
      asked: list of (file, array module, lines, dict of options).
    Returns:
      for each, the outputs of each line, as dicts.
    """
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_TENSORFLOW], input=json.dumps(asked), text=True, capture_output=True, cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': ROOT},
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


def margin(translator, line, mine, theirs):
    """How much likelier TensorFlow found its token than ours, where two translations (lists of pieces) part."""
    place = next(i for i, (a, b) in enumerate(zip([*mine, None], [*theirs, None])) if a != b)
    src, trg = translator.src_vocab, translator.trg_vocab
    src_ids = np.append(src.encode(line), src.eos_id)[np.newaxis]
    ours, best = (
        translator.model.score(Batch(src_ids, src_ids >= 0, ids[np.newaxis], ids[np.newaxis] >= 0, None))[1][0, -1]
        for ids in (trg.ids_of([*given, '</s>'][: place + 1]) for given in (mine, theirs))
    )
    return float(best - ours)
