"""FlowSeq in the published sizes on WMT 2014, WMT 2016 and IWSLT 2014; see README.md. Not run here.

Sizes, vocabularies and the course of training are those of Ma et al., 2019, and of the published code. It names batch
and rate for WMT 2014 alone; the others have the same here, IWSLT 2014 smaller batches.
"""

from sequencing.config import Config, CorpusConfig, DataConfig, TrainConfig, VocabConfig
from sequencing.flow_config import (
    FlowPriorConfig,
    FlowRNNDecoderConfig,
    FlowRNNEncoderConfig,
    FlowRNNPosteriorConfig,
    FlowSeqConfig,
    FlowTrainConfig,
    FlowTransformerDecoderConfig,
    FlowTransformerEncoderConfig,
    FlowTransformerPosteriorConfig,
    SoftmaxLengthConfig,
)


def config_wmt14_ende_flowseq_base():
    return wmt14_ende(transformer(256, 512))


def config_wmt14_ende_flowseq_large():
    return wmt14_ende(transformer(512, 1024))


def config_wmt14_ende_flowseq_rnn():
    return wmt14_ende(rnn((3, 2, 2), 512, (4, 4, 2), 512, share_embeddings=True, tie_output=True), smoothing=0.0)


def config_wmt16_enro_flowseq_base():
    return wmt16_enro(transformer(256, 512))


def config_wmt16_enro_flowseq_large():
    return wmt16_enro(transformer(512, 1024))


def config_wmt16_enro_flowseq_rnn():
    return wmt16_enro(rnn((3, 2, 2), 512, (4, 4, 2), 512, share_embeddings=True, tie_output=True), smoothing=0.0)


def config_iwslt14_deen_flowseq():
    return iwslt14_deen(transformer(256, 512, layers=(5, 3, 3), heads=4, dropout=0.2, shared=False, reach=16))


def config_iwslt14_deen_flowseq_rnn():
    return iwslt14_deen(rnn((2, 1, 1), 256, (4, 2, 2), 256, length=SoftmaxLengthConfig(reach=16)), smoothing=0.0)


def transformer(size, flow_size, layers=(6, 4, 4), heads=8, dropout=0.1, shared=True, reach=20):
    """Layers of encoder, posterior and decoder; each flow has three levels."""
    encoder, posterior, decoder = layers
    return FlowSeqConfig(
        embedding_size=size,
        latent_size=size,
        hidden_size=1024,
        share_embeddings=shared,
        tie_output=shared,
        encoder=FlowTransformerEncoderConfig(layers=encoder, heads=heads, dropout=dropout),
        posterior=FlowTransformerPosteriorConfig(layers=posterior, heads=heads, dropout=dropout),
        decoder=FlowTransformerDecoderConfig(layers=decoder, heads=heads, dropout=dropout),
        length=SoftmaxLengthConfig(reach=reach),
        prior=FlowPriorConfig(steps=(4, 4, 2), factors=(2, 2), hidden_size=flow_size, heads=heads),
    )


def rnn(layers, state_size, steps, flow_size, **options):
    encoder, posterior, decoder = layers
    return FlowSeqConfig(
        embedding_size=256,
        latent_size=256,
        hidden_size=state_size,
        encoder=FlowRNNEncoderConfig(layers=encoder),
        posterior=FlowRNNPosteriorConfig(layers=posterior),
        decoder=FlowRNNDecoderConfig(layers=decoder),
        prior=FlowPriorConfig(steps=steps, factors=(2, 2), coupling='recurrent', hidden_size=flow_size),
        **options,
    )


def wmt14_ende(model, smoothing=0.1):
    return recipe('wmt14-ende', ('train.eng', 'train.deu'), ('en', 'de'), VocabConfig('bpe', size=37_000), model,
                  course(batch_size=2048, smoothing=smoothing))  # fmt: skip


def wmt16_enro(model, smoothing=0.1):
    return recipe('wmt16-enro', ('train.eng', 'train.ron'), ('en', 'ro'), VocabConfig('bpe', size=31_500), model,
                  course(batch_size=2048, smoothing=smoothing))  # fmt: skip


def iwslt14_deen(model, smoothing=0.1):
    vocabs = VocabConfig('bpe', size=32_012), VocabConfig('bpe', size=22_825)
    return recipe('iwslt14-deen', ('train.de', 'train.en'), ('de', 'en'), vocabs, model,
                  course(batch_size=512, smoothing=smoothing, reconstruction_steps=15_000))  # fmt: skip


def course(batch_size, smoothing, reconstruction_steps=30_000):
    """Training: sentences an update, in eight parts; every quantity is summed over sentences."""
    return TrainConfig(
        optimizer='adamw', amsgrad=True, weight_decay=1e-3, learning_rate=5e-4, schedule='exponential',
        decay_rate=0.999995, decay_steps=1, clip_norm=1.0, label_smoothing=smoothing, loss_unit='sentences',
        batch_unit='sentences', batch_size=batch_size // 8, accumulate=8, max_steps=reconstruction_steps + 300_000,
        validate_every=1000, save_every=1000, keep_checkpoints=5,
        flow=FlowTrainConfig(reconstruction_steps=reconstruction_steps, kl_warmup_steps=10_000),
    )  # fmt: skip


def recipe(folder, train_files, languages, vocabs, model, train):
    (source, target), joint = languages, isinstance(vocabs, VocabConfig)
    src_vocab, trg_vocab = (vocabs, vocabs) if joint else vocabs
    longest = 4 * model.length.reach  # 80 for WMT, 64 for IWSLT, of which the published reader keeps less, EOS counted
    return Config(
        data=DataConfig(
            folder=f'$DATA/{folder}',
            corpora=(CorpusConfig(*train_files),),
            dev_src=f'dev.{source}',
            dev_trg=(f'dev.{target}',),
            test_src=f'test.{source}',
            test_trg=(f'test.{target}',),
            src_lang=source,
            trg_lang=target,
            src_vocab=src_vocab,
            trg_vocab=trg_vocab,
            joint_vocab=joint,
            max_src_length=longest - 1,
            max_trg_length=longest - 4,
        ),
        model=model,
        train=train,
        model_dir=f'runs/{folder}-flowseq-{model.encoder.kind}-{model.latent_size}',
    )
