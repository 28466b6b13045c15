"""Flows folded for decoding, beside those that they were made from."""

import tensorflow as tf

from flow_layers import AFFINE, ActNorm, Coupling, FeatureSplit, SelfAttentionConditioner
from flow_layers.build import build_flow
from flow_layers.folded import FoldedFlow
from flow_layers.sequence_flow import MultiLevelFlow
from tests.flow_support import disturb, lengths_and_mask, make_memory, random_normal
from tests.support import seeds

SOURCE = 7  # width of the sources


class FoldedTest(tf.test.TestCase):
    """A folded flow is the flow it was made from."""

    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        tf.random.set_seed(self.random.randrange(2**31))

    def test_both_directions_with_their_log_dets(self):
        for arguments in (
            dict(steps=(1, 0), factors=(4,), heads=2),
            dict(steps=(0, 1), factors=(2,), transform='additive', positions='add', linear='lu'),
        ):
            with self.subTest(**arguments):
                flow = build_flow(16, SOURCE, hidden_size=5, **arguments)
                disturb(flow, self.random, 0.1)
                folded = flow.folded(tf.float32)
                self.assertIsInstance(folded, FoldedFlow)
                mask = lengths_and_mask(self.random, 6, 2, 3)
                x = tf.where(mask[:, :, tf.newaxis], random_normal(self.random, [6, 6, 16], tf.float32), 0.0)
                memory = make_memory(self.random, 3, SOURCE, tf.float32)
                prepared = folded.prepare(memory.outputs, memory.mask)
                for name in ('forward_and_log_det', 'inverse_and_log_det'):
                    want, want_log_det = getattr(flow, name)(x, mask, memory)
                    folded_direction = getattr(folded, name)
                    for direction in folded_direction, tf.function(folded_direction, autograph=False):
                        got, log_det = direction(x, mask, prepared)
                        self.assertAllClose(got, want, 1e-3, 1e-3)
                        self.assertAllClose(log_det, want_log_det, 1e-3, 1e-3)

    def test_levels_may_be_single_layers(self):
        coupling = Coupling(FeatureSplit(8, 'up'), AFFINE, SelfAttentionConditioner(4, SOURCE, 8, 5, 2))
        flow = MultiLevelFlow([ActNorm(8), coupling], 8, (2,))
        disturb(flow, self.random, 0.1)
        folded = flow.folded(tf.float32)
        self.assertIsInstance(folded, FoldedFlow)
        mask = lengths_and_mask(self.random, 2, 2, 3)
        x = tf.where(mask[:, :, tf.newaxis], random_normal(self.random, [2, 6, 8], tf.float32), 0.0)
        memory = make_memory(self.random, 2, SOURCE, tf.float32)
        want = flow.inverse_and_log_det(x, mask, memory)
        got = folded.inverse_and_log_det(x, mask, folded.prepare(memory.outputs, memory.mask))
        self.assertAllClose(got, want, 1e-4, 1e-4)

    def test_padding_is_not_looked_at_and_comes_out_zero(self):
        flow = build_flow(8, SOURCE, (0, 1), (2,), hidden_size=5, heads=2)
        disturb(flow, self.random, 0.1)
        folded = flow.folded(tf.float32)
        mask = lengths_and_mask(self.random, 3, 2, 3)
        real = mask[:, :, tf.newaxis]
        x, memory = random_normal(self.random, [3, 6, 8], tf.float32), make_memory(self.random, 3, SOURCE, tf.float32)
        loud_source = tf.where(memory.mask[:, :, tf.newaxis], memory.outputs, 1e3)
        for name in ('forward_and_log_det', 'inverse_and_log_det'):
            direction = getattr(folded, name)
            want, want_log_det = direction(tf.where(real, x, 0.0), mask, folded.prepare(memory.outputs, memory.mask))
            got, log_det = direction(tf.where(real, x, 1e3), mask, folded.prepare(loud_source, memory.mask))
            self.assertAllClose(got, want, 1e-5, 1e-5)
            self.assertAllClose(log_det, want_log_det, 1e-5, 1e-5)
            self.assertAllEqual(tf.where(real, 0.0, got), tf.zeros_like(got))

    def test_bfloat16_stays_close(self):
        flow = build_flow(16, SOURCE, (0, 0), (2,), hidden_size=5, heads=2)
        mask = tf.ones([2, 4], tf.bool)
        x, memory = random_normal(self.random, [2, 4, 16], tf.float32), make_memory(self.random, 2, SOURCE, tf.float32)
        want = flow.inverse(x, mask=mask, memory=memory)
        folded = flow.folded(tf.bfloat16)
        got, _ = folded.inverse_and_log_det(x, mask, folded.prepare(memory.outputs, memory.mask))
        self.assertEqual(got.dtype, tf.float32)
        self.assertAllClose(got, want, atol=0.2)

    def test_other_flows_stay_as_they_are(self):
        for arguments in (dict(coupling='conv'), dict(transform='nlsq')):
            flow = build_flow(8, SOURCE, (0, 0), (2,), hidden_size=5, **arguments)
            self.assertIs(flow.folded(tf.float32), flow)

    def test_a_subclass_is_another_layer(self):
        def derived(part):
            return type('Own', (part,), {})

        def flow_of(norm=ActNorm, coupling=Coupling, split=FeatureSplit, conditioner=SelfAttentionConditioner):
            layers = [norm(8), coupling(split(8, 'up'), AFFINE, conditioner(4, SOURCE, 8, 5, 2))]
            return MultiLevelFlow(layers, 8, (2,))

        self.assertIsInstance(flow_of().folded(tf.float32), FoldedFlow)
        for own in (
            dict(norm=derived(ActNorm)),
            dict(coupling=derived(Coupling)),
            dict(split=derived(FeatureSplit)),
            dict(conditioner=derived(SelfAttentionConditioner)),
        ):
            flow = flow_of(**own)
            self.assertIs(flow.folded(tf.float32), flow)
