"""WMT 2016 English to Romanian, Transformer base; see README.md. Not run here."""

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


def config_wmt16_enro():
    """A Transformer of the base size, pre-norm, with more dropout: this corpus has some 600,000 pairs."""
    pieces = VocabConfig('bpe', size=40_000)
    layer = dict(layers=6, size=512, heads=8, hidden_size=2048, dropout=0.3)
    return Config(
        data=DataConfig(
            folder='$DATA/wmt16-enro',
            corpora=(CorpusConfig('train.eng', 'train.ron'),),
            dev_src='dev.en',
            dev_trg=('dev.ro',),
            test_src='test.en',
            test_trg=('test.ro',),
            src_lang='en',
            trg_lang='ro',
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
        train=TrainConfig(
            learning_rate=5e-4, schedule='inverse_sqrt', warmup_steps=4000, beta_2=0.98, epsilon=1e-9, clip_norm=1.0,
            label_smoothing=0.1, batch_size=4000, accumulate=4, max_steps=50_000, validate_every=2000,
            save_every=1000, keep_checkpoints=5, patience=10,
        ),
        decode=DecodeConfig(beam_size=5, length_penalty=0.6),
        precision='mixed_bfloat16',
        model_dir='runs/wmt16_enro',
    )  # fmt: skip
