"""Configurations: copy this file to config.py and edit it.

Each function `config_*()` returns a `Config`; `nmt_train.py --config config_demo` picks one by its name. Fields that
are not given have the defaults of `sequencing/config.py`, which says what each is for.
"""

import dataclasses

from sequencing.config import (
    AvEncoderConfig,
    Config,
    CorpusConfig,
    DataConfig,
    DecodeConfig,
    FlowSeqConfig,
    FlowTrainConfig,
    RNNDecoderConfig,
    RNNEncoderConfig,
    Seq2SeqConfig,
    TrainConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
    VocabConfig,
)
from sequencing.flow_config import (
    FlowPriorConfig,
    FlowTransformerDecoderConfig,
    FlowTransformerEncoderConfig,
    FlowTransformerPosteriorConfig,
    SoftmaxLengthConfig,
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
            learning_rate=3e-3, schedule='cosine', warmup_steps=100, max_steps=1200, batch_size=2000,
            validate_every=600, save_every=600, clip_norm=1.0,
        ),
        precision='mixed_bfloat16',
        model_dir='runs/demo',
    )  # fmt: skip


def config_demo_flow():
    """The demo corpus with FlowSeq: all tokens at once, from a latent that a flow generates.

    Most of it is learnt in the first phase, whose updates are cheap: of most positions the decoder gets no latent, and
    has to find their words in the source, beginning with what stands at the same place. There is no other dropout.
    """
    demo = config_demo()
    return dataclasses.replace(
        demo,
        model=FlowSeqConfig(
            embedding_size=128,
            latent_size=128,
            hidden_size=512,
            tie_output=True,
            encoder=FlowTransformerEncoderConfig(layers=3, heads=4, dropout=0.0, embedding_dropout=0.0),
            posterior=FlowTransformerPosteriorConfig(
                layers=2, heads=4, dropout=0.0, embedding_dropout=0.0, word_dropout=0.0
            ),
            decoder=FlowTransformerDecoderConfig(layers=3, heads=4, dropout=0.0, word_dropout=0.85, copy_source=True),
            length=SoftmaxLengthConfig(dropout=0.0),
            prior=FlowPriorConfig(steps=(1,), factors=(), hidden_size=128, heads=4),
        ),
        train=TrainConfig(
            learning_rate=1.5e-3, schedule='cosine', beta_2=0.98, warmup_steps=50, clip_norm=1.0, label_smoothing=0.1,
            batch_size=2000, max_steps=3050, validate_every=1400, save_every=1400,
            flow=FlowTrainConfig(
                reconstruction_steps=2800, reconstruction_warmup=400, bound_rate=0.3, kl_warmup_steps=50,
                glancing=1.0,
            ),
        ),
        model_dir='runs/demo_flow',
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


def config_en2de_flow():
    """English to German with FlowSeq, on short sentences of real text, best with distilled targets (docs/flowseq.md).

    As for the demo, most is learnt in the first phase; free bits keep the latent alive in the second one.
    """
    base = real_text('de')
    tokens = VocabConfig('unigram', size=4000)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(
            base.data, src_vocab=tokens, trg_vocab=tokens, joint_vocab=True, max_src_length=24, max_trg_length=24
        ),
        model=FlowSeqConfig(
            embedding_size=192,
            latent_size=192,
            hidden_size=768,
            share_embeddings=True,
            tie_output=True,
            encoder=FlowTransformerEncoderConfig(layers=3, heads=4, dropout=0.0, embedding_dropout=0.0),
            posterior=FlowTransformerPosteriorConfig(
                layers=1, heads=4, dropout=0.0, embedding_dropout=0.0, word_dropout=0.0
            ),
            decoder=FlowTransformerDecoderConfig(layers=3, heads=4, dropout=0.0, word_dropout=0.8, copy_source=True),
            length=SoftmaxLengthConfig(dropout=0.0),
            prior=FlowPriorConfig(steps=(1,), factors=(), hidden_size=128, heads=4),
        ),
        train=TrainConfig(
            learning_rate=1.2e-3, schedule='cosine', beta_2=0.98, warmup_steps=50, clip_norm=1.0, label_smoothing=0.1,
            batch_size=2000, max_steps=3250, validate_every=1500, save_every=500,
            flow=FlowTrainConfig(
                reconstruction_steps=3000, reconstruction_warmup=400, bound_rate=0.3, kl_warmup_steps=50,
                free_bits=3.0, glancing=1.0,
            ),
        ),
        model_dir='runs/en2de_flow',
    )  # fmt: skip


def config_char_en2de():
    """From characters to characters; for subwords to characters add --set data.src_vocab.kind=unigram
    --set data.src_vocab.size=8000 --set decode.length_ratio=12."""
    base = real_text('de')
    characters = VocabConfig('characters', size=300)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(
            base.data, src_vocab=characters, trg_vocab=characters, max_src_length=400, max_trg_length=400,
            max_length_ratio=15.0,
        ),
        model=Seq2SeqConfig(
            embedding_size=128,
            encoder=RNNEncoderConfig(state_size=512, layers=2, dropout=0.1),
            decoder=RNNDecoderConfig(
                state_size=512, attention_size=128, readout_size=256, layers=2, dropout=0.1, recompute=True
            ),
        ),
        train=dataclasses.replace(base.train, batch_size=12_000),
        decode=dataclasses.replace(base.decode, max_src_length=3000, batch_tokens=12_000),
        model_dir='runs/char_en2de',
    )  # fmt: skip


def config_ava_en2de():
    """From characters to characters through words: attention via attention (Zhao and Zhang, 2018)."""
    base = config_char_en2de()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            base.model,
            encoder=AvEncoderConfig(state_size=512, dropout=0.1),
            decoder=dataclasses.replace(base.model.decoder, attention='via'),
        ),
        model_dir='runs/ava_en2de',
    )


def config_word2pos():
    """Parts of speech of English words, made by tools/make_tag_data.py; scored by tools/tag_accuracy.py."""
    return Config(
        data=DataConfig(
            folder='runs/tag_data',
            corpora=(CorpusConfig('train.words', 'train.tags'),),
            dev_src='dev.words',
            dev_trg=('dev.tags',),
            test_src='test.words',
            test_trg=('test.tags',),
            src_vocab=VocabConfig('words', size=2000),
            trg_vocab=VocabConfig('words', size=40),
        ),
        model=Seq2SeqConfig(
            embedding_size=64,
            encoder=RNNEncoderConfig(state_size=128, dropout=0.1),
            decoder=RNNDecoderConfig(state_size=128, attention_size=64, readout_size=64, dropout=0.1),
        ),
        train=TrainConfig(
            learning_rate=3e-3, schedule='cosine', warmup_steps=100, max_steps=800, batch_size=2000,
            validate_every=400, save_every=400, clip_norm=1.0,
        ),
        decode=DecodeConfig(mode='greedy', length_ratio=1.0),
        model_dir='runs/word2pos',
    )  # fmt: skip


def config_transformer_tiny():
    """English to German by a Transformer for trying things out; data as for `config_en2de`."""
    return transformer('de', 'tiny', layers=(2, 2), size=128, heads=4, hidden_size=512)


def config_transformer_small():
    """A Transformer for some hundred thousand sentences and a CPU."""
    return transformer('de', 'small', layers=(3, 3), size=256, heads=4, hidden_size=1024)


def config_transformer_small_en2ro():
    return transformer('ro', 'small', layers=(3, 3), size=256, heads=4, hidden_size=1024)


def config_transformer_small_en2zh():
    return transformer('zh', 'small', layers=(3, 3), size=256, heads=4, hidden_size=1024)


def config_transformer_deep():
    """Six encoder layers, one decoder layer (Kasai et al., 2021): fast to decode; takes long to learn."""
    return transformer('de', 'deep', layers=(6, 1), size=256, heads=4, hidden_size=1024)


def config_transformer_base():
    """The base model of Vaswani et al., 2017, pre-norm; for millions of sentences and a GPU."""
    return transformer('de', 'base', layers=(6, 6), size=512, heads=8, hidden_size=2048, batch_size=25_000,
                       warmup_steps=4000, learning_rate=7e-4, schedule='inverse_sqrt', max_steps=100_000,
                       ema=0.999)  # fmt: skip


def config_transformer_big():
    """The big model of Vaswani et al., 2017, pre-norm."""
    return transformer('de', 'big', layers=(6, 6), size=1024, heads=16, hidden_size=4096, batch_size=25_000,
                       warmup_steps=4000, learning_rate=5e-4, dropout=0.3, schedule='inverse_sqrt', max_steps=300_000,
                       ema=0.999)  # fmt: skip


def transformer(language, name, layers, size, heads, hidden_size, dropout=0.1, batch_size=2400, warmup_steps=600,
                learning_rate=2e-3, schedule='cosine', max_steps=4600, ema=0.0):  # fmt: skip
    """A Transformer on the data of `real_text`; `layers` are those of encoder and decoder.

    The defaults are for an hour or so of a CPU.
    """
    base = real_text(language)
    same = dict(size=size, heads=heads, hidden_size=hidden_size, dropout=dropout)
    joint = language != 'zh'  # no script in common
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, joint_vocab=joint),
        model=Seq2SeqConfig(
            embedding_size=size,
            share_embeddings=joint,
            tie_output=True,
            encoder=TransformerEncoderConfig(layers=layers[0], **same),
            decoder=TransformerDecoderConfig(layers=layers[1], **same),
        ),
        train=TrainConfig(
            learning_rate=learning_rate, schedule=schedule, warmup_steps=warmup_steps, max_steps=max_steps, beta_2=0.98,
            epsilon=1e-9, label_smoothing=0.1, batch_size=batch_size, clip_norm=1.0, ema=ema, validate_every=1500,
            save_every=1000, patience=5,
        ),
        model_dir=f'runs/transformer_{name}_en2{language}',
    )  # fmt: skip
