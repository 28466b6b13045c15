"""The short training of the PyTorch reference that FlowSeq was published with, field by field; see README.md."""

import dataclasses

from sequencing.config import (
    Config,
    CorpusConfig,
    DataConfig,
    FlowSeqConfig,
    FlowTrainConfig,
    TrainConfig,
    VocabConfig,
)
from sequencing.flow_config import (
    FlowPriorConfig,
    FlowTransformerDecoderConfig,
    FlowTransformerEncoderConfig,
    FlowTransformerPosteriorConfig,
)


def config_flowseq_short():
    """Run A: 1,900 updates of reconstruction, 1,400 of the bound, whose KL warms up over the first 900 of them."""
    pieces = VocabConfig('list', file='vocab/de.vocab')
    return Config(
        data=DataConfig(
            folder='$DATA/flowseq-short',
            corpora=(CorpusConfig('train.en', 'train.de'),),  # text that is cut into pieces already
            dev_src='dev.en',
            dev_trg=('dev.de', 'dev.de.txt'),  # pieces for the loss, text for BLEU
            src_lang='en',
            trg_lang='de',
            src_vocab=pieces,
            trg_vocab=pieces,
            joint_vocab=True,
            max_src_length=24,
            max_trg_length=24,
            max_length_ratio=0.0,
        ),
        model=FlowSeqConfig(
            embedding_size=128,
            latent_size=128,
            hidden_size=256,
            share_embeddings=True,
            tie_output=True,
            encoder=FlowTransformerEncoderConfig(layers=3, heads=4),
            posterior=FlowTransformerPosteriorConfig(layers=2, heads=4),
            decoder=FlowTransformerDecoderConfig(layers=2, heads=4),
            prior=FlowPriorConfig(steps=(1, 1), factors=(2,), hidden_size=128, heads=4),
            any_token=True,
        ),
        # The rate rises over all of the first phase and starts at its peak in the second.
        train=TrainConfig(
            optimizer='adamw', amsgrad=True, weight_decay=1e-3, learning_rate=1e-3, schedule='exponential',
            decay_rate=0.999995, decay_steps=1, clip_norm=1.0, label_smoothing=0.1, loss_unit='sentences',
            batch_unit='sentences', batch_size=64, by_length=False, max_steps=3300,
            validate_every=1300, save_every=1900, best_by='nll',
            flow=FlowTrainConfig(reconstruction_steps=1900, kl_warmup_steps=900, init_over_padding=True),
        ),
        precision='float32',
        model_dir='runs/flowseq_short',
    )  # fmt: skip


def config_flowseq_short_slow():
    """Run B: the reference's default warm-up of KL, and 500 updates of the bound."""
    fast = config_flowseq_short()
    flow = dataclasses.replace(fast.train.flow, kl_warmup_steps=10_000)
    return dataclasses.replace(
        fast, train=dataclasses.replace(fast.train, max_steps=2400, flow=flow), model_dir='runs/flowseq_short_slow'
    )
