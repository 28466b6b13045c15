"""WMT 2014 English to German, Transformer base; see README.md. Not run here."""

from sequencing.config import (
    Config,
    CorpusConfig,
    DataConfig,
    DecodeConfig,
    Seq2SeqConfig,
    TrainConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
    VocabConfig,
)


def config_wmt14_ende():
    """The base model of Vaswani et al., 2017, post-norm as there; made for GPUs."""
    pieces = VocabConfig('bpe', size=37_000)
    layer = dict(layers=6, size=512, heads=8, hidden_size=2048, norm='post', dropout=0.1)
    return Config(
        data=DataConfig(
            folder='$DATA/wmt14-ende',
            corpora=(CorpusConfig('train.eng', 'train.deu'),),
            dev_src='dev.en',
            dev_trg=('dev.de',),
            test_src='test.en',
            test_trg=('test.de',),
            src_lang='en',
            trg_lang='de',
            src_vocab=pieces,
            trg_vocab=pieces,
            joint_vocab=True,
            max_src_length=150,
            max_trg_length=150,
            max_length_ratio=2.0,
        ),
        model=Seq2SeqConfig(
            embedding_size=512,
            share_embeddings=True,
            tie_output=True,
            encoder=TransformerEncoderConfig(**layer),
            decoder=TransformerDecoderConfig(**layer),
        ),
        # 25,000 tokens a side and update, in eight parts.
        train=TrainConfig(
            learning_rate=7e-4, schedule='inverse_sqrt', warmup_steps=4000, beta_2=0.98, epsilon=1e-9, clip_norm=0.0,
            label_smoothing=0.1, batch_size=3200, accumulate=8, max_steps=100_000, validate_every=5000,
            save_every=1500, keep_checkpoints=5,
        ),
        decode=DecodeConfig(beam_size=4, length_penalty=0.6),
        precision='mixed_bfloat16',
        model_dir='runs/wmt14_ende',
    )  # fmt: skip
