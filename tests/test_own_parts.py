"""The parts of `docs/own_parts.md` are what that page says: read off the page, built in, and held to the promises."""

import os
import re
import unittest
from unittest import mock

import numpy as np
import tensorflow as tf

import build_model
from sequencing.config import Config, RNNDecoderConfig, Seq2SeqConfig
from sequencing.structures import Batch
from sequencing.vocab import Vocab
from tests.flow_support import FlowTestCase, disturb, lengths_and_mask, random_normal
from tests.support import seeds
from tests.toy import ROOT


def parts_of_the_page():
    """Everything that its blocks of Python define, as one module would have it."""
    with open(os.path.join(ROOT, 'docs', 'own_parts.md'), encoding='utf-8') as file:
        blocks = re.findall(r'^```python\n(.*?)^```$', file.read(), re.MULTILINE | re.DOTALL)
    names = {'__name__': 'own_parts'}
    exec('\n'.join(blocks), names)
    return names


class OwnPartsTest(FlowTestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        tf.random.set_seed(self.random.randrange(2**31))
        self.page = parts_of_the_page()

    def test_the_encoder_is_built_from_its_configuration_and_ignores_padding(self):
        kind = self.page['WindowEncoderConfig']
        annotations = mock.patch.dict(Seq2SeqConfig.__annotations__)  # the line in `sequencing/config.py`
        annotations.start()
        self.addCleanup(annotations.stop)
        Seq2SeqConfig.__annotations__['encoder'] |= kind
        part = kind(size=10, width=3, dropout=0.5)
        network = Seq2SeqConfig(
            embedding_size=6, encoder=part, decoder=RNNDecoderConfig(state_size=8, attention_size=5)
        )
        vocab = Vocab(list('abcdefg'))
        with mock.patch.dict(build_model.ENCODERS, {'window': self.page['build_window_encoder']}):
            model = build_model.build_model(Config(model=network, seed=self.random.randrange(99)), vocab, vocab)
        disturb(model, self.random, 0.3)
        mask = lengths_and_mask(self.random, 3, 1, 5)
        ids = tf.constant(
            np.random.default_rng(self.random.randrange(99)).integers(4, vocab.size, mask.shape), tf.int32
        )
        want = model.loss(Batch(ids, mask, ids, mask, tf.range(3, dtype=tf.int64)))
        other, padding = tf.where(mask, ids, 5), [[0, 0], [0, 2]]
        longer = [tf.pad(x, padding) for x in (other, mask)]
        got = model.loss(Batch(*longer, *longer, tf.range(3, dtype=tf.int64)))
        self.assertAllClose(got, want, 1e-5)
        dropped = model.loss(Batch(ids, mask, ids, mask, tf.range(3, dtype=tf.int64)), tf.constant([1, 2]))
        self.assertNotAllClose(dropped.loss, want.loss)

    def test_its_windows_are_averages(self):
        encoder = self.page['WindowEncoder'](4, 5, 3, 0.0)
        x = random_normal(self.random, [2, 6, 4], tf.float32)
        mask = lengths_and_mask(self.random, 2, 1, 6)
        got = encoder(x, mask).outputs.numpy()
        value, gate = (part(x).numpy() for part in (encoder.value, encoder.gate))
        gate = mask.numpy()[:, :, np.newaxis] / (1 + np.exp(-gate))
        for b, t in zip(*np.nonzero(mask.numpy())):
            around = [k for k in (t - 1, t, t + 1) if 0 <= k < 6]
            total = sum(gate[b, k] * value[b, k] for k in around)
            self.assertAllClose(got[b, t], total / (sum(gate[b, k] for k in around) + 1e-3), 1e-5, 1e-5)
        self.assertAllEqual(got[~mask.numpy()], np.zeros_like(got[~mask.numpy()]))

    def test_the_flow_layer_is_one(self):
        layer = self.page['PermutedAffine'](6)
        disturb(layer, self.random, 0.4)
        self.check_layer(layer, random_normal(self.random, [3, 5, 6]), lengths_and_mask(self.random, 3, 1, 5))


if __name__ == '__main__':
    unittest.main()
