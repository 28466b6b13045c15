"""Tiny FlowSeq models of every kind of part, with random weights, for tests."""

import tensorflow as tf

from sequencing.decode_options import DecodeOptions
from sequencing.flow_config import (
    FlowPriorConfig,
    FlowRNNDecoderConfig,
    FlowRNNEncoderConfig,
    FlowRNNPosteriorConfig,
    FlowTransformerDecoderConfig,
    GaussianPriorConfig,
    LogisticLengthConfig,
)
from tests.flow_support import tiny_flow_model
from tests.support import seeds

RECURRENT = dict(
    embedding_size=6,
    encoder=FlowRNNEncoderConfig(layers=1, cell='gru'),
    posterior=FlowRNNPosteriorConfig(shifted=True, bidirectional=False),
    decoder=FlowRNNDecoderConfig(layers=1, cell='rnn'),
    length=LogisticLengthConfig(reach=5, mixtures=2),
    prior=FlowPriorConfig(steps=(0, 0), factors=(2,), hidden_size=6, coupling='recurrent', cell='gru'),
)
SIMPLE = dict(
    posterior=FlowRNNPosteriorConfig(attention=False),
    decoder=FlowRNNDecoderConfig(layers=0),
    prior=GaussianPriorConfig(hidden_size=6, heads=2, length_unit=3),
    tie_output=True,
    share_embeddings=True,
)
MODELS = {'transformer': {}, 'recurrent': RECURRENT, 'simple': SIMPLE}
THREE_LEVELS = dict(
    decoder=FlowTransformerDecoderConfig(layers=1, heads=2),
    prior=FlowPriorConfig(steps=(0, 0, 0), factors=(2, 2), hidden_size=6, heads=2),
)


class FlowModelCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)

    def model(self, name='transformer', **train):
        return tiny_flow_model(self.random, {**MODELS, 'three levels': THREE_LEVELS}[name], train)

    def translate(self, model, batch, **options):
        limits = tf.fill(tf.shape(batch.src_ids)[:1], 100)
        return model.translate(batch.src_ids, batch.src_mask, limits, DecodeOptions(**options))

    def translator(self, model, **options):
        """The same for any shape, traced once."""
        request = DecodeOptions(**options)
        return tf.function(
            lambda ids, mask: model.translate(ids, mask, tf.fill(tf.shape(ids)[:1], 100), request),
            input_signature=[tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, None], tf.bool)],
            autograph=False,
        )
