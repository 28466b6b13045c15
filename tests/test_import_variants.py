"""Every architecture of the published FlowSeq has its place: state dicts by the published names and shapes."""

import unittest

import numpy as np
import tensorflow as tf

from build_model import build_model
from sequencing.decode_options import DecodeOptions
from sequencing.errors import UserError
from sequencing.vocab import Vocab
from tests.support import seeds
from tools import import_flowseq
from tools.flowseq_weights import Weights, load_flowseq

TOKENS, E, H, REACH, HIDDEN = 11, 8, 10, 6, 4  # E is the width of embeddings and latents, HIDDEN of couplings
GATES = {'LSTM': 4, 'GRU': 3, 'RNN': 1}
TRANSFORMER = dict(type='transformer', num_layers=2, heads=2)
SOFTMAX = dict(type='diff_softmax', diff_range=REACH)
FLOW = dict(num_steps=[1, 0], factors=[2], hidden_features=HIDDEN)
VARIANTS = {
    'attention': dict(
        encoder=TRANSFORMER, posterior=TRANSFORMER, decoder=TRANSFORMER, length=SOFTMAX, tied=True,
        flow=dict(FLOW, coupling_type='self_attn', heads=2, pos_enc='attn'),
    ),
    'attention, positions added': dict(
        encoder=TRANSFORMER, posterior=TRANSFORMER, decoder=dict(type='simple'), length=SOFTMAX,
        flow=dict(FLOW, coupling_type='self_attn', heads=2, pos_enc='add', transform='additive'),
    ),
    'recurrent': dict(
        encoder=dict(type='rnn', rnn_mode='GRU', num_layers=2), posterior=dict(type='rnn', num_layers=2, use_attn=True),
        decoder=dict(type='rnn', rnn_mode='RNN', num_layers=2), length=dict(type='diff_logistic', diff_range=9, nmix=3),
        flow=dict(FLOW, coupling_type='rnn', rnn_mode='LSTM'),
    ),
    'shifted': dict(
        encoder=dict(type='rnn', rnn_mode='RNN', num_layers=1),
        posterior=dict(type='shift_rnn', rnn_mode='GRU', num_layers=1, use_attn=False),
        decoder=dict(type='rnn', rnn_mode='GRU', num_layers=1, bidirectional=False), length=SOFTMAX,
        flow=dict(FLOW, coupling_type='rnn', rnn_mode='GRU', transform='nlsq'),
    ),
    'one way, convolutions': dict(
        encoder=TRANSFORMER,
        posterior=dict(type='shift_rnn', rnn_mode='LSTM', num_layers=1, bidirectional=False, use_attn=True),
        decoder=dict(type='simple'), length=SOFTMAX,
        flow=dict(num_steps=[2], factors=[], coupling_type='conv', hidden_features=HIDDEN, kernel_size=5),
    ),
}  # fmt: skip


def configuration(variant):
    return dict(
        embed_dim=E, latent_dim=E, hidden_size=H, share_embed=variant.get('tied', False),
        tie_weights=variant.get('tied', False), src='xx', tgt='yy', encoder=variant['encoder'],
        posterior=variant['posterior'], decoder=variant['decoder'],
        prior=dict(type='normal', length_predictor=variant['length'], flow=variant['flow']),
    )  # fmt: skip


class Published:
    """Names and shapes of a state dict, as the published program writes it."""

    def __init__(self, variant):
        self.shapes = {}
        self.model(variant)

    def add(self, prefix, **shapes):
        self.shapes.update({prefix + name: shape for name, shape in shapes.items()})

    def linear(self, prefix, outputs, inputs):
        self.add(prefix, weight=[outputs, inputs], bias=[outputs])

    def weight_norm(self, prefix, outputs, *inputs):
        self.add(prefix, weight_v=[outputs, *inputs], weight_g=[outputs] + [1] * len(inputs), bias=[outputs])

    def attention(self, prefix, size):
        self.add(prefix, in_proj_weight=[3 * size, size], in_proj_bias=[3 * size])
        self.add(f'{prefix}layer_norm.', weight=[size], bias=[size])

    def layer(self, prefix, size, hidden, source):
        for name in ('slf_attn', 'enc_attn') if source else ('slf_attn',):
            self.attention(f'{prefix}{name}.', size)
        self.linear(f'{prefix}pos_ffn.linear1.', hidden, size)
        self.linear(f'{prefix}pos_ffn.linear2.', size, hidden)
        self.add(f'{prefix}pos_ffn.layer_norm.', weight=[size], bias=[size])

    def global_attention(self, prefix, query, hidden, outputs):
        self.linear(f'{prefix}key_proj.', 2 * hidden, E)
        self.linear(f'{prefix}query_proj.', hidden, query)
        self.linear(f'{prefix}fc.', outputs, hidden)

    def rnn(self, prefix, part, inputs, units, layers=1, two_ways=True):
        gates, half = GATES[part.get('rnn_mode', 'LSTM')], units // 2 if two_ways else units
        for i in range(layers):
            for suffix in ('', '_reverse') if two_ways else ('',):
                ending, read = f'_l{i}{suffix}', units if i else inputs
                self.add(prefix, **{f'weight_ih{ending}': [gates * half, read],
                                    f'weight_hh{ending}': [gates * half, half],
                                    f'bias_ih{ending}': [gates * half],
                                    f'bias_hh{ending}': [gates * half]})  # fmt: skip

    def model(self, variant):
        for name in ('encoder.', 'encoder.core.', 'posterior.tgt_', 'posterior.core.tgt_'):
            self.add(f'{name}embed.', weight=[TOKENS + 3, E])
        self.linear('decoder.readout.', TOKENS + 3, E)
        self.encoder(variant['encoder'])
        self.posterior(variant['posterior'])
        self.decoder(variant['decoder'])
        length, prefix = variant['length'], 'prior._length_predictor.'
        for i in range(2 if length is SOFTMAX else 1):
            self.linear(f'{prefix}ctx_proj.{2 * i}.', E, E)
        self.linear(f'{prefix}diff.', 2 * REACH + 1 if length is SOFTMAX else 3 * length['nmix'], E)
        counts = variant['flow']['num_steps']
        for i, steps in enumerate(counts):
            self.level(variant['flow'], f'prior.flow.blocks.{i}.', steps, last=i == len(counts) - 1)

    def encoder(self, part):
        if part is TRANSFORMER:
            for i in range(2):
                self.layer(f'encoder.core.layers.{i}.', E, H, source=False)
        else:
            self.rnn('encoder.core.rnn.', part, E, H, part['num_layers'])
            self.linear('encoder.core.enc_proj.0.', E, H)

    def posterior(self, part):
        size = E if part is TRANSFORMER else H
        if part is TRANSFORMER:
            for i in range(2):
                self.layer(f'posterior.core.layers.{i}.', E, H, source=True)
        else:
            self.rnn('posterior.core.rnn.', part, E, H, part['num_layers'], part.get('bidirectional', True))
            if part['use_attn']:
                self.global_attention('posterior.core.attn.', H, H, H)
            self.linear('posterior.core.ctx_proj.0.', H, 2 * H if part['use_attn'] else H)
        for end in ('mu', 'logvar'):
            self.weight_norm(f'posterior.core.{end}.linear.', E, size)

    def decoder(self, part):
        if part is TRANSFORMER:
            self.attention('decoder.pos_attn.', E)
            for i in range(2):
                self.layer(f'decoder.layers.{i}.', E, H, source=True)
            return
        states = E if part['type'] == 'simple' else H
        if part['type'] == 'rnn':
            self.rnn('decoder.rnn.', part, E, H, part['num_layers'], part.get('bidirectional', True))
        self.global_attention('decoder.attn.', states, H, E)
        self.linear('decoder.ctx_proj.0.', E, E + states)

    def level(self, flow, prefix, steps, last):
        if flow.get('pos_enc') == 'attn':
            self.actnorm(f'{prefix}pos_attn.actnorm.')
            self.coupling(f'{prefix}pos_attn.coupling_up.', flow, E // 2, E // 2, attend=True)
            self.coupling(f'{prefix}pos_attn.coupling_down.', flow, E // 2, E // 2)
        for j in range(steps):
            for k in '12':
                step = f'{prefix}steps.{j}.'
                self.actnorm(f'{step}actnorm{k}.')
                self.add(f'{step}linear{k}.', weight=[E, E], weight_inv=[E, E])
                self.actnorm(f'{step}unit{k}.actnorm1.')
                for name in ('coupling1', 'coupling2'):
                    for order in ('up', 'down'):
                        self.coupling(f'{step}unit{k}.{name}_{order}.', flow, E // 2, E // 2)
                if not last:
                    self.actnorm(f'{step}unit{k}.actnorm2.')
                    for order in ('up', 'down'):
                        self.coupling(f'{step}unit{k}.coupling3_{order}.', flow, E, E)
        if not last:
            self.coupling(f'{prefix}prior.', flow, E // 2, E // 2)

    def actnorm(self, prefix):
        self.add(prefix, log_scale=[E], bias=[E])

    def coupling(self, prefix, flow, inputs, changed, attend=False):
        outputs = changed * {'additive': 1, 'affine': 2, 'nlsq': 5}[flow.get('transform', 'affine')]
        prefix, kind = f'{prefix}net.', flow['coupling_type']
        if kind == 'self_attn':
            if inputs != E:
                self.add(f'{prefix}src_proj.', weight=[inputs, E])
            if attend:
                self.attention(f'{prefix}pos_attn.', inputs)
            self.layer(f'{prefix}transformer.', inputs, HIDDEN, source=True)
            return self.weight_norm(f'{prefix}linear.linear.', outputs, inputs)
        if kind == 'rnn':
            self.rnn(f'{prefix}rnn.', flow, inputs, HIDDEN)
        else:
            self.weight_norm(f'{prefix}conv1.conv.', HIDDEN, inputs, flow['kernel_size'])
            self.weight_norm(f'{prefix}conv2.conv.', HIDDEN, HIDDEN, flow['kernel_size'])
        self.global_attention(f'{prefix}attn.', HIDDEN, HIDDEN, HIDDEN)
        return self.weight_norm(f'{prefix}linear.linear.', outputs, inputs + HIDDEN)


class VariantsTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.random = np.random.default_rng(seeds(self).randrange(2**31))

    def arrays(self, variant):
        arrays = {name: 0.1 * self.random.normal(size=shape) for name, shape in Published(variant).shapes.items()}
        for name in arrays:
            if name + '_inv' in arrays:  # a flow's matrix is to be far from singular
                arrays[name] += np.eye(E)
        source, target = 'encoder.embed.weight', 'posterior.tgt_embed.weight'
        if variant.get('tied'):
            arrays[target] = arrays['decoder.readout.weight'] = arrays[source]
        arrays['encoder.core.embed.weight'] = arrays[source]
        arrays['posterior.core.tgt_embed.weight'] = arrays[target]
        arrays['decoder.pos_enc._float_tensor'] = np.full([1], np.nan)
        return arrays

    def build(self, variant):
        vocab = Vocab(['<pad>', '<unk>', '<eos>'] + [f'w{i}' for i in range(TOKENS)])
        config = import_flowseq.config_of(configuration(variant), 'config.json', joint=True)
        model = build_model(config, vocab, vocab)
        for variable in model.trainable_variables:
            variable.assign(tf.fill(variable.shape, np.nan))
        return model

    def test_every_weight_has_a_place_and_every_place_a_weight(self):
        for name, variant in VARIANTS.items():
            with self.subTest(name):
                model = self.build(variant)
                load_flowseq(model, Weights(self.arrays(variant)))  # refuses what it does not use
                for variable in model.trainable_variables:
                    self.assertTrue(np.isfinite(variable).all(), variable.name)
                ids = tf.constant([[4, 9, 3, 2], [5, 2, 0, 0]])
                found = model.translate(ids, ids > 0, tf.constant([9, 9]), DecodeOptions(decode='argmax'))
                self.assertTrue(np.isfinite(found.scores).all())

    def test_missing_and_foreign_weights_are_refused(self):
        variant = VARIANTS['recurrent']
        model, arrays = self.build(variant), self.arrays(variant)
        name = 'posterior.core.rnn.bias_hh_l1_reverse'
        with self.assertRaisesRegex(UserError, f'has no weights called {name}'):
            load_flowseq(model, Weights({other: array for other, array in arrays.items() if other != name}))
        with self.assertRaisesRegex(UserError, 'weight_hh_l1_reverse has shape'):
            load_flowseq(model, Weights({**arrays, name.replace('bias', 'weight'): np.zeros([3, 2])}))
        with self.assertRaisesRegex(UserError, 'no place for: decoder.extra'):
            load_flowseq(model, Weights({**arrays, 'decoder.extra': np.zeros([1])}))


if __name__ == '__main__':
    unittest.main()
