"""Promise 8 for every flow layer, and what else the layers promise."""

import math
import unittest

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from flow_layers import (
    AFFINE,
    TRANSFORMS,
    ActNorm,
    ConvConditioner,
    Coupling,
    FeatureSplit,
    FlowMemory,
    InvertibleLinear,
    MultiHeadLinear,
    RecurrentConditioner,
    SelfAttentionConditioner,
    SequenceFlow,
    TimeSplit,
    masked_normal,
    masked_normal_log_prob,
)
from flow_layers.build import build_flow, build_gaussian_prior
from tests.flow_support import FlowTestCase, disturb, lengths_and_mask, make_memory, random_normal
from tests.support import seeds

SOURCE = 7  # width of the sources


def self_attention(split, transform, positions='add', heads=1):
    outputs = transform.parameters * split.changed_size
    return SelfAttentionConditioner(split.condition_size, SOURCE, outputs, 5, heads, positions)


class LayersTest(FlowTestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        tf.random.set_seed(self.random.randrange(2**31))

    def check(self, layer, depth, unit=1, most=5, source=True, atol=1e-8):
        """On 2 to 4 sentences of up to `unit` * 2 steps, or 3, ..., or `most`."""
        disturb(layer, self.random, 0.2)
        batch, units = self.random.randint(2, 4), self.random.randint(2, most)
        mask = lengths_and_mask(self.random, batch, unit, units)
        x = random_normal(self.random, [batch, unit * units, depth])
        self.check_layer(layer, x, mask, make_memory(self.random, batch, SOURCE) if source else None, atol)

    def test_actnorm(self):
        depth = self.random.randint(1, 5)
        self.check(ActNorm(depth), depth, source=False)

    def test_invertible_linear(self):
        for parametrisation in ('plain', 'lu'):
            depth = self.random.randint(2, 6)
            with self.subTest(parametrisation, depth=depth):
                self.check(InvertibleLinear(depth, parametrisation), depth, source=False)

    def test_multi_head_linear(self):
        for kind in 'ab':
            for depths, parametrisation in (((3, 5, 7), 'plain'), ((16, 24), 'lu'), ((24, 48), 'plain')):
                depth = self.random.choice(depths)  # one head; one of 16 or three of 8; three of 8 or of 16
                with self.subTest(kind=kind, depth=depth):
                    layer = MultiHeadLinear(depth, kind, parametrisation)
                    self.check(layer, depth, most=3, source=False)

    def test_lu_starts_orthogonal_and_stays_regular(self):
        layer = InvertibleLinear(6, 'lu')
        weight = layer.weight(tf.float32)
        self.assertAllClose(weight @ tf.transpose(weight), tf.eye(6), atol=1e-5)
        layer.triangles.assign(tf.zeros_like(layer.triangles))
        self.assertTrue(np.isfinite(layer.log_abs_determinant(tf.float32)))

    def test_transforms_in_couplings(self):
        for name, transform in TRANSFORMS.items():
            depth = self.random.randint(4, 7)
            with self.subTest(name, depth=depth):
                split = FeatureSplit(depth, 'up')
                self.check(Coupling(split, transform, self_attention(split, transform)), depth, most=3, atol=1e-7)

    def test_gradients_of_transforms(self):
        for name, transform in TRANSFORMS.items():
            with self.subTest(name):
                x = random_normal(self.random, [2, 3])
                p = random_normal(self.random, [2, 3 * transform.parameters])

                def both(x, p, transform=transform):
                    y, log_slope = transform.forward(x, p)
                    return y if log_slope is None else tf.sin(y) + tf.square(log_slope)

                for found, numeric in zip(*tf.test.compute_gradient(both, [x, p], delta=1e-5)):
                    self.assertAllClose(found, numeric, rtol=1e-4, atol=1e-4)

    def test_infinities_at_padding_reach_no_gradient(self):
        for name, transform in TRANSFORMS.items():
            for split in (FeatureSplit(self.random.randint(4, 7), 'down'), TimeSplit(self.random.randint(2, 4), 'up')):
                for direction in ('forward', 'inverse'):
                    with self.subTest(name, split=type(split).__name__, direction=direction):
                        self.check_padding(split, transform, direction)

    def check_padding(self, split, transform, direction):
        layer = Coupling(split, transform, self_attention(split, transform))
        disturb(layer, self.random, 0.2)
        mask = lengths_and_mask(self.random, 3, 1, 6)
        real = mask[:, :, tf.newaxis]
        depth = split.depth if isinstance(split, TimeSplit) else split.condition_size + split.changed_size
        x = random_normal(self.random, [3, 6, depth])
        memory = make_memory(self.random, 3, SOURCE)
        found = []
        for filling in (0.0, math.inf, math.nan):
            filled = tf.where(real, x, filling)
            with tf.GradientTape() as tape:
                tape.watch(filled)
                y, log_det = getattr(layer, f'{direction}_and_log_det')(filled, mask, memory)
                total = tf.reduce_sum(tf.sin(tf.where(real, y, 0.0))) + tf.reduce_sum(log_det)
            gradients = tape.gradient(total, [filled, *layer.trainable_variables])
            found.append([tf.convert_to_tensor(g) for g in gradients if g is not None])
        for other in found[1:]:
            self.assertAllClose(found[0], other, atol=1e-12)

    def test_splits(self):
        sizes = [self.random.randint(2, 4), self.random.randint(5, 7), 2 * self.random.randint(2, 3)]
        splits = [TimeSplit(sizes[0], order) for order in ('up', 'down')]
        splits += [FeatureSplit(sizes[1], order, factor) for order, factor in (('down', 2), ('up', 3))]
        splits += [FeatureSplit(sizes[2], order, interleaved=True) for order in ('up', 'down')]
        for split in splits:
            with self.subTest(split=type(split).__name__, order=split.order, changed=split.changed_size):
                in_time = isinstance(split, TimeSplit)
                depth = split.changed_size + (0 if in_time else split.condition_size)
                layer = Coupling(split, AFFINE, self_attention(split, AFFINE))
                if in_time:  # lengths need not be even, only T
                    mask = tf.sequence_mask([self.random.randint(1, 4), 4], 4)
                    x = random_normal(self.random, [2, 4, depth])
                    disturb(layer, self.random, 0.2)
                    self.check_layer(layer, x, mask, make_memory(self.random, 2, SOURCE))
                else:
                    self.check(layer, depth, most=3)

    def test_conditioners(self):
        depth = 3 * self.random.randint(2, 3)
        split = FeatureSplit(depth, 'down', 3)
        sizes = split.condition_size, SOURCE, 2 * split.changed_size, 4
        nets = {f'recurrent {cell}': RecurrentConditioner(*sizes, cell) for cell in ('lstm', 'gru', 'rnn')}
        nets['convolution'] = ConvConditioner(*sizes, kernel_size=3)
        nets['wide convolution'] = ConvConditioner(*sizes, kernel_size=5)
        nets['positions attend'] = self_attention(split, AFFINE, 'attend', heads=2)
        for name, net in nets.items():
            with self.subTest(name, depth=depth):
                self.check(Coupling(split, AFFINE, net), depth, most=3)

    def test_gaussian(self):
        depth = 2 * self.random.randint(2, 4)
        self.check(build_gaussian_prior(depth, SOURCE, 5, heads=2), depth, most=3)

    def test_stack(self):
        flow = build_flow(8, SOURCE, (0, 1), (4,), hidden_size=5, heads=2)
        self.check(flow, 8, unit=2, most=3, atol=1e-7)

    def test_recurrent_additive_stack_of_three_levels(self):
        flow = build_flow(8, SOURCE, (0, 0, 0), (2, 2), hidden_size=4, coupling='recurrent', transform='additive')
        self.check(flow, 8, unit=4, most=2)

    def test_stack_of_other_parts(self):
        flow = build_flow(4, SOURCE, (1, 0), (2,), hidden_size=4, coupling='conv', transform='nlsq', linear='lu')
        self.check(flow, 4, unit=2, most=3, atol=1e-6)

    def test_channels_of_levels(self):
        flow = build_flow(12, SOURCE, (1, 0, 0), (3, 2), hidden_size=4, coupling='conv')
        mask = lengths_and_mask(self.random, 2, 4, 2)
        x = random_normal(self.random, [2, 8, 12])
        disturb(flow, self.random, 0.1)
        memory = make_memory(self.random, 2, SOURCE)
        y, log_det = flow.forward_and_log_det(x, mask, memory)
        back, inverse_log_det = flow.inverse_and_log_det(y, mask, memory)
        self.assertAllClose(back, x, atol=1e-8)
        self.assertAllClose(inverse_log_det, -log_det, atol=1e-8)
        self.assertEqual(flow.sizes(12, (3, 2)), [12, 16, 16])

    def test_padding_is_unmasked_only_where_asked(self):
        """The legacy switch does what it is for: results then depend on the amount of padding."""
        split = FeatureSplit(4, 'up')
        net = ConvConditioner(2, SOURCE, 4, 3, unmasked_first=True)
        layer = Coupling(split, AFFINE, net)
        disturb(layer, self.random)
        mask = tf.ones([2, 3], tf.bool)
        x, memory = random_normal(self.random, [2, 3, 4]), make_memory(self.random, 2, SOURCE)
        more = layer.forward(tf.pad(x, [[0, 0], [0, 2], [0, 0]]), mask=tf.pad(mask, [[0, 0], [0, 2]]), memory=memory)
        self.assertNotAllClose(more[:, :3], layer.forward(x, mask=mask, memory=memory))


class NlsqTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)

    def test_inverse_finds_the_root_that_numpy_finds(self):
        transform = TRANSFORMS['nlsq']
        for scale in (0.0, 1.0, 4.0):
            p = scale * random_normal(self.random, [11, 5])
            y = 3.0 * random_normal(self.random, [11, 1])
            x, _ = transform.inverse(y, p)
            for got, value, row in zip(x.numpy()[:, 0], y.numpy()[:, 0], p.numpy()):
                a, b, g = row[0], math.exp(0.4 * row[1]), row[4]
                d = math.exp(0.4 * row[3])
                c = (8 * math.sqrt(3) / 9 - 0.05) * b / d * math.tanh(0.3 * row[2])
                q = np.poly1d([d, g])
                cubic = (np.poly1d([b, a - value])) * (q * q + 1) + c
                roots = cubic.roots
                real = roots[np.abs(roots.imag) < 1e-6 * (1 + np.abs(roots))].real
                self.assertLess(np.min(np.abs(real - got)), 1e-6 * (1 + abs(got)))

    def test_float32_round_trip_and_finite_gradients(self):
        transform = TRANSFORMS['nlsq']
        x = tf.concat([random_normal(self.random, [50, 3], tf.float32), tf.zeros([1, 3]), 100.0 * tf.ones([1, 3])], 0)
        p = tf.concat([2.0 * random_normal(self.random, [51, 15], tf.float32), tf.zeros([1, 15])], 0)
        with tf.GradientTape() as tape:
            tape.watch([x, p])
            y, _ = transform.forward(x, p)
            back, _ = transform.inverse(y, p)
        self.assertAllClose(back, x, 1e-5, 1e-5)
        for gradient in tape.gradient(back, [x, p]):
            self.assertTrue(np.isfinite(gradient).all())


class InitialisationTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        tf.random.set_seed(self.random.randrange(2**31))
        self.mask = tf.sequence_mask([6, 2, 4], 6)
        self.x = 3.0 * random_normal(self.random, [3, 6, 8], tf.float32) + 2.0
        self.memory = make_memory(self.random, 3, SOURCE, tf.float32)

    def test_actnorm_normalises_real_steps(self):
        layer = ActNorm(8)
        out = layer.initialise(self.x, self.mask).numpy()[self.mask.numpy()]
        self.assertAllClose(out.mean(axis=0), np.zeros(8), atol=1e-5)
        self.assertAllClose(out.std(axis=0, ddof=1), np.ones(8), atol=1e-5)

    def test_padding_counts_only_where_asked(self):
        wider, wider_mask = tf.pad(self.x, [[0, 0], [0, 4], [0, 0]]), tf.pad(self.mask, [[0, 0], [0, 4]])
        for over_padding in (False, True):
            layers = [ActNorm(8), ActNorm(8)]
            for layer, x, mask in zip(layers, (self.x, wider), (self.mask, wider_mask)):
                layer.log_scale.assign(tf.zeros([8]))
                layer.initialise(x, mask, over_padding=over_padding)
            same = np.allclose(layers[0].log_scale, layers[1].log_scale, atol=1e-5)
            self.assertEqual(same, not over_padding)

    def test_couplings_start_without_looking_at_the_source(self):
        flows = {
            name: build_flow(8, SOURCE, (1,), (), hidden_size=8, coupling=name, heads=2)
            for name in ('self_attention', 'recurrent', 'conv')
        }
        for name, flow in flows.items():
            with self.subTest(name):
                out = flow.initialise(self.x, self.mask, self.memory)
                self.assertAllEqual(
                    tf.where(self.mask[:, :, tf.newaxis], 0.0, out), tf.where(self.mask[:, :, tf.newaxis], 0.0, self.x)
                )
                other = FlowMemory(2.0 * self.memory.outputs + 1.0, self.memory.mask)
                again = flow.forward(tf.identity(self.x), mask=self.mask, memory=other)
                self.assertAllClose(out, again, atol=1e-4)
                disturb(flow, self.random)
                moved = [flow.forward(tf.identity(self.x), mask=self.mask, memory=m) for m in (self.memory, other)]
                self.assertNotAllClose(*moved, atol=1e-4)


class ConditionsTest(tf.test.TestCase):
    """What surrounds layers: prepared sources, shared sources, distributions, messages."""

    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        tf.random.set_seed(self.random.randrange(2**31))

    def flow(self, kind, dropout=0.0):
        """A small stack with every kind of split."""
        layers = [ActNorm(8)]
        for split in (FeatureSplit(8, 'up'), FeatureSplit(8, 'down', interleaved=True), TimeSplit(8, 'up')):
            sizes = split.condition_size, SOURCE, 2 * split.changed_size, 6
            if kind == 'self_attention':
                net = SelfAttentionConditioner(*sizes, heads=2, dropout=dropout)
            else:
                net = RecurrentConditioner(*sizes) if kind == 'recurrent' else ConvConditioner(*sizes)
            layers.append(Coupling(split, AFFINE, net))
        flow = SequenceFlow(layers)
        disturb(flow, self.random, 0.1)
        return flow

    def test_a_prepared_source_gives_the_same(self):
        mask = lengths_and_mask(self.random, 3, 2, 2)
        x, memory = random_normal(self.random, [3, 4, 8]), make_memory(self.random, 3, SOURCE)
        for coupling in ('self_attention', 'recurrent'):
            flow = self.flow(coupling)
            prepared = flow.prepare(memory.outputs, memory.mask)
            for method in (flow.forward_and_log_det, flow.inverse_and_log_det):
                for got, want in zip(method(x, mask, prepared), method(x, mask, memory)):
                    self.assertAllClose(got, want, atol=1e-9)

    def test_several_latents_share_a_source(self):
        mask = lengths_and_mask(self.random, 6, 2, 2)
        x, memory = random_normal(self.random, [6, 4, 8]), make_memory(self.random, 2, SOURCE)
        repeated = FlowMemory(tf.repeat(memory.outputs, 3, axis=0), tf.repeat(memory.mask, 3, axis=0))
        for coupling in ('self_attention', 'conv'):
            flow = self.flow(coupling)
            shared = flow.forward_and_log_det(x, mask, memory)
            for got, want in zip(shared, flow.forward_and_log_det(x, mask, repeated)):
                self.assertAllClose(got, want, atol=1e-9)

    def test_the_density_as_a_distribution(self):
        flow = self.flow('self_attention')
        mask = lengths_and_mask(self.random, 3, 2, 2)
        real = mask[:, :, tf.newaxis]
        z, memory = tf.where(real, random_normal(self.random, [3, 4, 8]), 0.0), make_memory(self.random, 3, SOURCE)
        distribution = tfp.distributions.TransformedDistribution(
            masked_normal(mask, 8, tf.float64), tfp.bijectors.Invert(flow)
        )
        got = distribution.log_prob(tf.identity(z), bijector_kwargs=dict(mask=mask, memory=memory))
        noise, log_det = flow.forward_and_log_det(z, mask, memory)
        self.assertAllClose(got, masked_normal_log_prob(noise, mask) + log_det, atol=1e-9)
        by_hand = -0.5 * np.sum(noise.numpy() ** 2, axis=(1, 2))
        by_hand -= 0.5 * math.log(2 * math.pi) * 8 * np.sum(mask.numpy(), axis=1)
        self.assertAllClose(masked_normal_log_prob(noise, mask), by_hand, atol=1e-9)

    def test_dropout_repeats_for_a_seed(self):
        flow = self.flow('self_attention', dropout=0.5)
        mask = lengths_and_mask(self.random, 3, 2, 2)
        x, memory = random_normal(self.random, [3, 4, 8], tf.float32), make_memory(self.random, 3, SOURCE, tf.float32)
        outs = [flow.forward(tf.identity(x), mask=mask, memory=memory, seed=seed) for seed in ([1, 2], [1, 2], [1, 3])]
        self.assertAllEqual(outs[0], outs[1])
        self.assertNotAllClose(outs[0], outs[2])

    def test_bfloat16_sources_leave_latents_and_log_dets_float32(self):
        flow = self.flow('self_attention')
        memory = make_memory(self.random, 3, SOURCE, tf.float32)
        x, mask = random_normal(self.random, [3, 4, 8], tf.float32), lengths_and_mask(self.random, 3, 2, 2)
        small = flow.prepare(tf.cast(memory.outputs, tf.bfloat16), memory.mask)
        got, log_det = flow.forward_and_log_det(x, mask, small)
        self.assertEqual((got.dtype, log_det.dtype), (tf.float32, tf.float32))
        want, want_log_det = flow.forward_and_log_det(x, mask, memory)
        self.assertAllClose(got, want, atol=0.2)
        self.assertAllClose(log_det, want_log_det, atol=1.0)
        back, _ = flow.inverse_and_log_det(got, mask, small)
        self.assertAllClose(back, x, atol=1e-3)

    def test_impossible_layers_are_refused(self):
        with self.assertRaisesRegex(ValueError, "'up' or 'down'"):
            FeatureSplit(4, 'left')
        with self.assertRaisesRegex(ValueError, '5 channels cannot be split'):
            FeatureSplit(5, 'up', interleaved=True)
        with self.assertRaisesRegex(ValueError, 'T has to be even; got 3'):
            layer = Coupling(TimeSplit(2, 'up'), AFFINE, self_attention(TimeSplit(2, 'up'), AFFINE))
            memory = make_memory(self.random, 1, SOURCE, tf.float32)
            layer.forward(tf.zeros([1, 3, 2]), mask=tf.ones([1, 3], tf.bool), memory=memory)
        with self.assertRaisesRegex(ValueError, 'odd number of steps; got 4'):
            ConvConditioner(2, SOURCE, 4, 3, kernel_size=4)
        with self.assertRaisesRegex(ValueError, '3 heads cannot share 4 units'):
            SelfAttentionConditioner(4, SOURCE, 8, 5, heads=3)
        with self.assertRaisesRegex(ValueError, '2 levels have 1 factors; got 2'):
            build_flow(8, SOURCE, (1, 1), (2, 2))


if __name__ == '__main__':
    unittest.main()
