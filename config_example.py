"""Configurations: copy this file to config.py and edit it.

Each function `config_*()` returns a `Config`; `nmt_train.py --config config_demo` picks one by its name. Fields that
are not given have the defaults of `sequencing/config.py`, which says what each is for.
"""

from sequencing.config import (
    Config,
    CorpusConfig,
    DataConfig,
    DecodeConfig,
    RNNDecoderConfig,
    RNNEncoderConfig,
    Seq2SeqConfig,
    TrainConfig,
    VocabConfig,
)


def config_demo():
    """English to German of a small grammar, made by tools/make_demo_data.py; trains in a few minutes on a CPU."""
    return Config(
        data=DataConfig(
            folder='runs/demo_data',
            corpora=(CorpusConfig('train.en', 'train.de'),),
            dev_src='dev.en',
            dev_trg=('dev.de',),
            test_src='test.en',
            test_trg=('test.de',),
            src_lang='en',
            trg_lang='de',
            src_vocab=VocabConfig('unigram', size=1200),
            trg_vocab=VocabConfig('unigram', size=1200),
        ),
        model=Seq2SeqConfig(
            embedding_size=128,
            encoder=RNNEncoderConfig(state_size=256, dropout=0.1),
            decoder=RNNDecoderConfig(state_size=256, attention_size=128, readout_size=128, dropout=0.1),
        ),
        train=TrainConfig(
            learning_rate=3e-3, schedule='cosine', warmup_steps=100, max_steps=1000, batch_size=2000,
            validate_every=500, save_every=500, clip_norm=1.0,
        ),
        model_dir='runs/demo',
    )  # fmt: skip


def config_en2de():
    """English to German on real text: name its folder with --set data.folder=DIR."""
    return real_text('de')


def config_en2ro():
    return real_text('ro')


def config_en2zh():
    return real_text('zh')


def real_text(language):
    """The RNN attention model for train, dev and test files from English, such as train.en.gz and train.de.gz."""
    return Config(
        data=DataConfig(
            corpora=(CorpusConfig('train.en.gz', f'train.{language}.gz'),),
            dev_src='dev.en',
            dev_trg=(f'dev.{language}',),
            test_src='test.en',
            test_trg=(f'test.{language}',),
            src_lang='en',
            trg_lang=language,
            src_vocab=VocabConfig('unigram', size=8000),
            trg_vocab=VocabConfig('unigram', size=8000),
        ),
        model=Seq2SeqConfig(
            embedding_size=256,
            tie_output=True,
            encoder=RNNEncoderConfig(state_size=512, dropout=0.1),
            decoder=RNNDecoderConfig(state_size=512, attention_size=256, readout_size=256, dropout=0.1),
        ),
        train=TrainConfig(
            learning_rate=1.5e-3, schedule='cosine', warmup_steps=400, max_steps=4500, label_smoothing=0.1,
            batch_size=2400, clip_norm=1.0, validate_every=1000, save_every=500, patience=5,
        ),
        decode=DecodeConfig(length_penalty=0.6),
        precision='mixed_bfloat16',
        model_dir=f'runs/en2{language}',
    )  # fmt: skip
