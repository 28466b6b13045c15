"""Single layers against arrays recorded from the published implementation; see `$SEQUENCING_SHARED`."""

import unittest

import numpy as np
import tensorflow as tf

from flow_layers import (
    AFFINE,
    ActNorm,
    Coupling,
    FeatureSplit,
    FlowMemory,
    MultiHeadLinear,
    SelfAttentionConditioner,
    TimeSplit,
)
from tests.flow_support import arrays_below, golden
from tools.flowseq_weights import Weights, load_layers

TOLERANCE = 1e-5


class UnitGoldensTest(tf.test.TestCase):
    def check_directions(self, layer, arrays, prefix, mask, memory=None):
        x = arrays[f'{prefix}x']
        for direction, method in (('forward', layer.forward_and_log_det), ('backward', layer.inverse_and_log_det)):
            out, log_det = method(tf.constant(x), mask=mask, memory=memory)
            self.assertAllClose(out, arrays[f'{prefix}{direction}/out'], TOLERANCE, TOLERANCE)
            self.assertAllClose(log_det, arrays[f'{prefix}{direction}/logdet'], TOLERANCE, TOLERANCE)

    def check_initialisation(self, layer, arrays, prefix, mask, memory=None):
        """What comes out depends on the data alone. (The recorded weights before and after initialisation are no
        use: in the goldens, all three sets of weights of a unit are the same, those it had in the end.)"""
        data = tf.constant(arrays[f'{prefix}init/data'])
        out = layer.initialise(data, mask, memory, over_padding=True)
        self.assertAllClose(out, arrays[f'{prefix}init/out'], TOLERANCE, TOLERANCE)
        log_det = layer.forward_log_det_jacobian(tf.identity(data), mask=mask, memory=memory)
        self.assertAllClose(log_det, arrays[f'{prefix}init/logdet'], TOLERANCE, TOLERANCE)

    def test_actnorm(self):
        arrays = golden('units_actnorm.npz')
        mask = tf.constant(arrays['mask'] > 0)
        layer = ActNorm(12)
        self.check_initialisation(layer, arrays, '', mask)
        load_layers([layer], Weights(arrays_below(arrays, 'param/')), [''])
        self.check_directions(layer, arrays, '', mask)

    def test_multi_head_linear(self):
        for kind in 'AB':
            arrays = golden(f'units_multihead_{kind}.npz')
            mask = tf.constant(arrays['mask'] > 0)
            for depth in (5, 16, 24, 40, 64):
                with self.subTest(kind=kind, depth=depth):
                    prefix = f'features{depth}/'
                    layer = MultiHeadLinear(depth, kind.lower())
                    self.assertEqual(layer.heads, arrays[f'{prefix}heads'])
                    load_layers([layer], Weights(arrays_below(arrays, f'{prefix}param/')), [''])
                    self.check_directions(layer, arrays, prefix, mask)

    def test_couplings(self):
        arrays = golden('units_nice_self_attn_add_affine.npz')
        mask = tf.constant(arrays['mask'] > 0)
        memory = FlowMemory(tf.constant(arrays['src']), tf.constant(arrays['src_mask'] > 0))
        splits = {'cont_up_factor4': FeatureSplit(16, 'up', factor=4)}
        for order in ('up', 'down'):
            splits[f'cont_{order}'] = FeatureSplit(16, order)
            splits[f'skip_{order}'] = FeatureSplit(16, order, interleaved=True)
            splits[f'time_{order}'] = TimeSplit(16, order)
        for name, split in splits.items():
            with self.subTest(name):
                hidden = int(arrays[f'{name}/hidden_features'])
                net = SelfAttentionConditioner(split.condition_size, 10, 2 * split.changed_size, hidden, heads=2)
                layer = Coupling(split, AFFINE, net)
                if name == 'cont_up':
                    self.check_initialisation(layer, arrays, f'{name}/', mask, memory)
                weights = Weights(arrays_below(arrays, f'{name}/param/'))
                load_layers([layer], weights, [''])
                weights.check_all_used()
                self.check_directions(layer, arrays, f'{name}/', mask, memory)
                self.assertTrue(np.isfinite(arrays[f'{name}/x']).all())


if __name__ == '__main__':
    unittest.main()
