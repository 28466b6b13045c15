"""Turns a checkpoint of the published FlowSeq (PyTorch) into a model folder of ours.

    python tools/import_flowseq.py --checkpoint flowseq_wmt14 --model_dir runs/flowseq_wmt14
    python nmt_infer.py --model_dir runs/flowseq_wmt14 --decode argmax --test_src test.bpe.en

The checkpoint folder holds `model.pt`, `config.json` and `vocab/`. Sources are to be cut into the vocabulary's
subwords, as the published scripts want them; translations come out joined. PyTorch is not needed.
"""

import json
import os
import sys

from sequencing import cli

cli.quiet_tensorflow()

from sequencing.errors import UserError  # noqa: E402

_EMBEDDING_DROPOUT = 0.2  # of every encoder and of the Transformer posterior there, whatever the configuration
SUBWORDS = {'joint-bpe': 'bpe', 'sep-bpe': 'bpe', 'joint-spm': 'spm', 'word': 'none', 'bert-bpe': 'none'}


def define_flags(flags):
    from absl import flags as absl

    absl.DEFINE_string('checkpoint', '', 'folder with model.pt, config.json and vocab/', flag_values=flags)
    absl.DEFINE_string('model_dir', '', 'folder to write the model to; must not exist, or be empty', flag_values=flags)
    absl.DEFINE_enum('subword', None, list(SUBWORDS), 'how tokens become text; by default seen by @@ or U+2581 in '
                     'the vocabulary', flag_values=flags)  # fmt: skip
    absl.DEFINE_bool('any_token', False, 'let padding and unknown be chosen in decoding, as the published code does',
                     flag_values=flags)  # fmt: skip


def main(argv=None):
    return cli.run(run, define_flags, argv, __doc__)


def run(flags):
    cli.require(flags, 'checkpoint', 'model_dir')
    model, config = import_checkpoint(flags.checkpoint, flags.model_dir, flags.subword, flags.any_token)
    count = sum(int(v.shape.num_elements()) for v in model.trainable_variables)
    print(f'{flags.model_dir}: {count:,} parameters, {config.data.src_lang} to {config.data.trg_lang}, '
          f'lengths in multiples of {config.model.length_unit}')  # fmt: skip


def import_checkpoint(checkpoint, model_dir, subword=None, any_token=False):
    """Reads a checkpoint folder, writes a model folder, and returns the model and its `Config`.

    Raises:
      UserError: a file is missing or damaged, or holds what we have no place for.
    """
    import tensorflow as tf

    from build_model import build_model
    from sequencing import model_folder
    from tools.flowseq_weights import Weights, load_flowseq
    from tools.torch_file import read_torch_file

    if os.path.isdir(model_dir) and os.listdir(model_dir):
        raise UserError(f'--model_dir {model_dir} is not empty: give a folder that does not exist yet.')
    theirs = _read_json(os.path.join(checkpoint, 'config.json'))
    vocabs = read_vocabs(checkpoint, theirs, subword)
    config = config_of(theirs, os.path.join(checkpoint, 'config.json'), joint=len(vocabs) == 1, any_token=any_token)
    path = _existing(os.path.join(checkpoint, 'model.pt'))
    weights = read_torch_file(path)
    if not isinstance(weights, dict) or not isinstance(weights.get('core'), dict):
        raise UserError(f"{path} has no entry 'core': it is not the model.pt of a FlowSeq checkpoint folder.")
    model = build_model(config, vocabs[0], vocabs[-1])
    load_flowseq(model, Weights(weights['core'], path))
    os.makedirs(os.path.join(model_dir, 'vocab'), exist_ok=True)
    for vocab, name in zip(vocabs, ['joint'] if len(vocabs) == 1 else ['src', 'trg']):
        vocab.save(os.path.join(model_dir, 'vocab'), name)
    best = tf.train.CheckpointManager(
        tf.train.Checkpoint(model=model), os.path.join(model_dir, 'best'), 1, None, 'ckpt'
    )
    best.save(checkpoint_number=0)
    model_folder.write_manifest(model_dir, config.seed, {'imported from': os.path.abspath(checkpoint)})
    model_folder.write_config(model_dir, config)
    return model, config


def read_vocabs(checkpoint, theirs, subword=None):
    """The vocabularies: one, where both sides have the same, else source and target."""
    from sequencing.vocab import Vocab

    vocabs = []
    for side, size in (('src', 'src_vocab_size'), ('tgt', 'tgt_vocab_size')):
        language = _get(theirs, side, os.path.join(checkpoint, 'config.json'))
        path = _existing(os.path.join(checkpoint, 'vocab', f'{language}.vocab'))
        vocab = Vocab.from_file(path, subword=SUBWORDS[subword] if subword else 'auto')
        if (vocab.pad_id, vocab.unk_id, vocab.eos_id, vocab.bos_id) != (0, 1, 2, None):
            raise UserError(f'{path} does not start with <pad>, <unk>, <eos>.')
        if vocab.size != theirs.get(size, vocab.size):
            raise UserError(f'{path} has {vocab.size} tokens where config.json says {size} {theirs[size]}.')
        vocabs.append(vocab)
    return vocabs[:1] if vocabs[0].tokens == vocabs[1].tokens else vocabs


def config_of(theirs, source, joint, any_token=False):
    """Our `Config` for the published configuration `theirs` (a dict), read from the file `source`."""
    from sequencing.config import Config, DataConfig, DecodeConfig, TrainConfig, VocabConfig
    from sequencing.flow_config import FlowSeqConfig, FlowTrainConfig

    def get(name):
        return _get(theirs, name, source)

    tokens = VocabConfig(kind='list')
    model = FlowSeqConfig(
        embedding_size=get('embed_dim'), latent_size=get('latent_dim'), hidden_size=get('hidden_size'),
        share_embeddings=theirs.get('share_embed', False), tie_output=theirs.get('tie_weights', False),
        encoder=_encoder(get('encoder'), f'{source}: encoder'),
        posterior=_posterior(get('posterior'), f'{source}: posterior'),
        decoder=_decoder(get('decoder'), f'{source}: decoder'),
        length=_length(_get(get('prior'), 'length_predictor', source), f'{source}: length_predictor'),
        prior=_prior(_get(get('prior'), 'flow', source), f'{source}: flow'), any_token=any_token,
    )  # fmt: skip
    # There, nothing but the length predictor limits an output: of S tokens, EOS not among them, it tells up to
    # S + 1 + reach, rounded up to the unit. The limit here, ratio * S + 20, is to be no less for any S.
    ratio = float(max(2, model.length.reach + model.length_unit - 19))
    return Config(
        data=DataConfig(
            src_lang=get('src'), trg_lang=get('tgt'), src_vocab=tokens, trg_vocab=tokens, joint_vocab=joint,
            max_src_length=theirs.get('max_src_length', 100), max_trg_length=theirs.get('max_tgt_length', 100),
        ),
        model=model,
        train=TrainConfig(
            label_smoothing=float(get('decoder').get('label_smoothing', 0.0)),
            flow=FlowTrainConfig(init_over_padding=True),
        ),
        decode=DecodeConfig(mode='argmax', validation_mode='argmax', length_ratio=ratio),
    )  # fmt: skip


def _encoder(part, where):
    from sequencing.flow_config import FlowRNNEncoderConfig, FlowTransformerEncoderConfig

    if _kind(part, where, 'transformer', 'rnn') == 'transformer':
        return FlowTransformerEncoderConfig(**_transformer(part, where), embedding_dropout=_EMBEDDING_DROPOUT)
    return FlowRNNEncoderConfig(
        layers=_get(part, 'num_layers', where), cell=_cell(part, where), embedding_dropout=_EMBEDDING_DROPOUT
    )


def _posterior(part, where):
    from sequencing.flow_config import FlowRNNPosteriorConfig, FlowTransformerPosteriorConfig

    kind = _kind(part, where, 'transformer', 'rnn', 'shift_rnn')
    word_dropout = float(part.get('dropword', 0.0))
    if kind == 'transformer':
        return FlowTransformerPosteriorConfig(
            **_transformer(part, where), embedding_dropout=_EMBEDDING_DROPOUT, word_dropout=word_dropout
        )
    return FlowRNNPosteriorConfig(
        layers=_get(part, 'num_layers', where), cell=_cell(part, where), shifted=kind == 'shift_rnn',
        bidirectional=kind == 'rnn' or part.get('bidirectional', True), attention=part.get('use_attn', False),
        dropout=float(part.get('dropout', 0.0)), word_dropout=word_dropout,
    )  # fmt: skip


def _decoder(part, where):
    from sequencing.flow_config import FlowRNNDecoderConfig, FlowTransformerDecoderConfig

    kind = _kind(part, where, 'transformer', 'rnn', 'simple')
    rates = dict(word_dropout=float(part.get('dropword', 0.0)))
    if kind == 'transformer':
        return FlowTransformerDecoderConfig(**_transformer(part, where), **rates)
    rates['dropout'] = float(part.get('dropout', 0.0))
    if kind == 'simple':
        return FlowRNNDecoderConfig(layers=0, **rates)
    return FlowRNNDecoderConfig(
        layers=_get(part, 'num_layers', where), cell=_cell(part, where), bidirectional=part.get('bidirectional', True),
        **rates,
    )  # fmt: skip


def _length(part, where):
    from sequencing.flow_config import LogisticLengthConfig, SoftmaxLengthConfig

    common = dict(reach=_get(part, 'diff_range', where), dropout=float(part.get('dropout', 0.0)))
    if _kind(part, where, 'diff_softmax', 'diff_logistic') == 'diff_softmax':
        return SoftmaxLengthConfig(**common, label_smoothing=float(part.get('label_smoothing', 0.0)))
    return LogisticLengthConfig(**common, mixtures=part.get('nmix', 1))


def _prior(part, where):
    from sequencing.flow_config import FlowPriorConfig

    couplings = {'self_attn': 'self_attention', 'rnn': 'recurrent', 'conv': 'conv'}
    coupling = part.get('coupling_type', 'conv')
    if coupling not in couplings:
        raise UserError(f'{where}: coupling_type is one of {", ".join(couplings)}; got {coupling!r}.')
    return FlowPriorConfig(
        steps=tuple(_get(part, 'num_steps', where)), factors=tuple(_get(part, 'factors', where)),
        coupling=couplings[coupling], transform=part.get('transform', 'affine'),
        hidden_size=part.get('hidden_features') or 0, heads=part.get('heads', 1),
        positions={'attn': 'attend'}.get(part.get('pos_enc', 'add'), 'add'), cell=_cell(part, where),
        kernel_size=part.get('kernel_size', 3), dropout=float(part.get('dropout', 0.0)),
        unmasked_first=coupling == 'conv',
    )  # fmt: skip


def _transformer(part, where):
    return dict(layers=_get(part, 'num_layers', where), heads=_get(part, 'heads', where),
                dropout=float(part.get('dropout', 0.0)))  # fmt: skip


def _cell(part, where):
    mode = part.get('rnn_mode', 'LSTM')
    if mode not in ('LSTM', 'GRU', 'RNN'):
        raise UserError(f'{where}: rnn_mode is LSTM, GRU or RNN; got {mode!r}.')
    return mode.lower()


def _kind(part, where, *kinds):
    kind = _get(part, 'type', where)
    if kind not in kinds:
        raise UserError(f'{where}: type is one of {", ".join(kinds)}; got {kind!r}.')
    return kind


def _get(values, name, where):
    if name not in values:
        raise UserError(f'{where}: {name} is missing.')
    return values[name]


def _existing(path):
    if not os.path.exists(path):
        raise UserError(f'{path}: there is no such file; a FlowSeq checkpoint folder holds model.pt, config.json and '
                        'vocab/.')  # fmt: skip
    return path


def _read_json(path):
    with open(_existing(path), encoding='utf-8') as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise UserError(f'{path}, line {error.lineno}: is not valid JSON ({error.msg}).') from None


if __name__ == '__main__':
    sys.exit(main())
