"""Every architecture of the published FlowSeq is imported: by names, shapes and numbers.

State dicts are made up with the published names and shapes and random weights; what an imported model then computes is
compared with `published_flowseq`, which reads the same arrays by the published formulas.
"""

import math
import unittest

import numpy as np
import tensorflow as tf

from build_model import build_model
from flow_layers import AFFINE, ConvConditioner, Coupling, FeatureSplit, FlowMemory
from sequencing.blocks import Rows
from sequencing.decode_options import DecodeOptions
from sequencing.errors import UserError
from sequencing.length_predictors import SoftmaxLength
from sequencing.vocab import Vocab
from tests.published_flowseq import Flow, PublishedFlowSeq
from tests.support import seeds
from tools import import_flowseq
from tools.flowseq_weights import Weights, load_coupling, load_flowseq

TOKENS, D, H, REACH, HIDDEN = 11, 24, 10, 6, 4  # TOKENS of the target, D the width of latents, HIDDEN of couplings
GATES = {'LSTM': 4, 'GRU': 3, 'RNN': 1}
TRANSFORMER = dict(type='transformer', num_layers=2, heads=2)
SOFTMAX = dict(type='diff_softmax', diff_range=REACH)
FLOW = dict(num_steps=[1, 0], factors=[2], hidden_features=HIDDEN)  # 24 channels are 3 heads of 8
VARIANTS = {
    'attention': dict(
        encoder=TRANSFORMER, posterior=TRANSFORMER, decoder=TRANSFORMER, length=SOFTMAX, shared=True, tied=True,
        flow=dict(FLOW, factors=[3], coupling_type='self_attn', heads=2, pos_enc='attn'),
    ),
    'attention, positions added': dict(
        encoder=TRANSFORMER, posterior=TRANSFORMER, decoder=dict(type='simple'), length=SOFTMAX,
        flow=dict(FLOW, num_steps=[0, 0, 1], factors=[4, 2], coupling_type='self_attn', heads=2, pos_enc='add',
                  transform='additive'),
    ),
    'recurrent': dict(
        embed=6, src_tokens=16, encoder=dict(type='rnn', rnn_mode='GRU', num_layers=2),
        posterior=dict(type='rnn', num_layers=2, use_attn=True),
        decoder=dict(type='rnn', rnn_mode='RNN', num_layers=2), length=dict(type='diff_logistic', diff_range=9, nmix=3),
        flow=dict(FLOW, coupling_type='rnn', rnn_mode='LSTM'),
    ),
    'shifted': dict(
        embed=6, src_tokens=13, encoder=dict(type='rnn', rnn_mode='RNN', num_layers=1),
        posterior=dict(type='shift_rnn', rnn_mode='GRU', num_layers=1, use_attn=False),
        decoder=dict(type='rnn', rnn_mode='GRU', num_layers=1, bidirectional=False), length=SOFTMAX,
        flow=dict(FLOW, num_steps=[0, 1], coupling_type='rnn', rnn_mode='GRU', transform='nlsq'),
    ),
    'one way, convolutions': dict(
        encoder=TRANSFORMER,
        posterior=dict(type='shift_rnn', rnn_mode='LSTM', num_layers=1, bidirectional=False, use_attn=True),
        decoder=dict(type='simple'), length=SOFTMAX, flow=dict(FLOW, coupling_type='conv', kernel_size=5),
    ),
    'plain cells, other default sizes': dict(
        embed=10, encoder=dict(type='rnn', rnn_mode='LSTM', num_layers=1),
        posterior=dict(type='rnn', rnn_mode='RNN', num_layers=1, use_attn=False), decoder=TRANSFORMER,
        length=dict(type='diff_logistic', diff_range=7, nmix=1),
        flow=dict(num_steps=[0, 0], factors=[2], hidden_features=None, coupling_type='rnn', rnn_mode='RNN'),
    ),
    'a table for both sides, another for the output': dict(
        embed=10, shared=True, encoder=dict(type='rnn', rnn_mode='GRU', num_layers=1),
        posterior=dict(type='rnn', rnn_mode='GRU', num_layers=1, use_attn=False), decoder=dict(type='simple'),
        length=SOFTMAX, flow=dict(FLOW, num_steps=[0, 0], coupling_type='rnn', rnn_mode='GRU'),
    ),
    'a table for each side, the output tied': dict(
        src_tokens=12, tied=True, encoder=dict(type='rnn', rnn_mode='GRU', num_layers=1),
        posterior=dict(type='rnn', rnn_mode='GRU', num_layers=1, use_attn=False), decoder=dict(type='simple'),
        length=SOFTMAX, flow=dict(FLOW, num_steps=[0, 0], coupling_type='self_attn', heads=1, pos_enc='add'),
    ),
}  # fmt: skip


def configuration(variant):
    return dict(
        embed_dim=variant.get('embed', D), latent_dim=D, hidden_size=H, share_embed=variant.get('shared', False),
        tie_weights=variant.get('tied', False), src='xx', tgt='yy', encoder=variant['encoder'],
        posterior=variant['posterior'], decoder=variant['decoder'],
        prior=dict(type='normal', length_predictor=variant['length'], flow=variant['flow']),
    )  # fmt: skip


class Published:
    """Names and shapes of a state dict, as the published program writes it."""

    def __init__(self, variant):
        self.shapes, self.embed = {}, variant.get('embed', D)
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
        self.linear(f'{prefix}key_proj.', 2 * hidden, D)
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
        for name in ('encoder.', 'encoder.core.'):
            self.add(f'{name}embed.', weight=[variant.get('src_tokens', TOKENS) + 3, self.embed])
        for name in ('posterior.tgt_', 'posterior.core.tgt_'):
            self.add(f'{name}embed.', weight=[TOKENS + 3, self.embed])
        self.linear('decoder.readout.', TOKENS + 3, D)
        self.encoder(variant['encoder'])
        self.posterior(variant['posterior'])
        self.decoder(variant['decoder'])
        length, prefix = variant['length'], 'prior._length_predictor.'
        softmax = length['type'] == 'diff_softmax'
        for i in range(2 if softmax else 1):
            self.linear(f'{prefix}ctx_proj.{2 * i}.', D, D)
        self.linear(f'{prefix}diff.', 2 * length['diff_range'] + 1 if softmax else 3 * length['nmix'], D)
        size, flow = D, variant['flow']
        for i, steps in enumerate(flow['num_steps']):
            last = i == len(flow['factors'])
            changed = 0 if last else size // flow['factors'][i]
            self.level(flow, f'prior.flow.blocks.{i}.', steps, size, changed)
            size = 2 * (size - changed)

    def encoder(self, part):
        if part is TRANSFORMER:
            for i in range(2):
                self.layer(f'encoder.core.layers.{i}.', D, H, source=False)
        else:
            self.rnn('encoder.core.rnn.', part, self.embed, H, part['num_layers'])
            self.linear('encoder.core.enc_proj.0.', D, H)

    def posterior(self, part):
        size = D if part is TRANSFORMER else H
        if part is TRANSFORMER:
            for i in range(2):
                self.layer(f'posterior.core.layers.{i}.', D, H, source=True)
        else:
            two_ways = part.get('bidirectional', True)
            self.rnn('posterior.core.rnn.', part, self.embed, H, part['num_layers'], two_ways)
            if part['use_attn']:
                self.global_attention('posterior.core.attn.', H, H, H)
            self.linear('posterior.core.ctx_proj.0.', H, 2 * H if part['use_attn'] else H)
        for end in ('mu', 'logvar'):
            self.weight_norm(f'posterior.core.{end}.linear.', D, size)

    def decoder(self, part):
        if part is TRANSFORMER:
            self.attention('decoder.pos_attn.', D)
            for i in range(2):
                self.layer(f'decoder.layers.{i}.', D, H, source=True)
            return
        states = D if part['type'] == 'simple' else H
        if part['type'] == 'rnn':
            self.rnn('decoder.rnn.', part, D, H, part['num_layers'], part.get('bidirectional', True))
        self.global_attention('decoder.attn.', states, H, D)
        self.linear('decoder.ctx_proj.0.', D, D + states)

    def level(self, flow, prefix, steps, size, changed):
        """`changed` channels are done after it; none after the last."""
        half = size // 2
        if flow.get('pos_enc') == 'attn':
            self.actnorm(f'{prefix}pos_attn.actnorm.', size)
            self.coupling(f'{prefix}pos_attn.coupling_up.', flow, half, half, attend=True)
            self.coupling(f'{prefix}pos_attn.coupling_down.', flow, half, half)
        for j in range(steps):
            for k in '12':
                step, head = f'{prefix}steps.{j}.', next((n for n in (32, 16, 8) if size % n == 0), size)
                self.actnorm(f'{step}actnorm{k}.', size)
                self.add(f'{step}linear{k}.', weight=[head, head], weight_inv=[head, head])
                self.actnorm(f'{step}unit{k}.actnorm1.', size)
                for name in ('coupling1', 'coupling2'):
                    for order in ('up', 'down'):
                        self.coupling(f'{step}unit{k}.{name}_{order}.', flow, half, half)
                if changed:
                    self.actnorm(f'{step}unit{k}.actnorm2.', size)
                    for order in ('up', 'down'):
                        self.coupling(f'{step}unit{k}.coupling3_{order}.', flow, size, size)
        if changed:
            self.coupling(f'{prefix}prior.', flow, size - changed, changed)

    def actnorm(self, prefix, size):
        self.add(prefix, log_scale=[size], bias=[size])

    def coupling(self, prefix, flow, inputs, changed, attend=False):
        outputs = changed * {'additive': 1, 'affine': 2, 'nlsq': 5}[flow.get('transform', 'affine')]
        prefix, kind, hidden = f'{prefix}net.', flow['coupling_type'], flow['hidden_features'] or 2 * inputs
        if kind == 'self_attn':
            if inputs != D:
                self.add(f'{prefix}src_proj.', weight=[inputs, D])
            if attend:
                self.attention(f'{prefix}pos_attn.', inputs)
            self.layer(f'{prefix}transformer.', inputs, hidden, source=True)
            return self.weight_norm(f'{prefix}linear.linear.', outputs, inputs)
        if kind == 'rnn':
            self.rnn(f'{prefix}rnn.', flow, inputs, hidden)
        else:
            self.weight_norm(f'{prefix}conv1.conv.', hidden, inputs, flow['kernel_size'])
            self.weight_norm(f'{prefix}conv2.conv.', hidden, hidden, flow['kernel_size'])
        self.global_attention(f'{prefix}attn.', hidden, hidden, hidden)
        return self.weight_norm(f'{prefix}linear.linear.', outputs, inputs + hidden)


def random_arrays(variant, random):
    """A state dict with random weights, by `random`, a generator of NumPy."""
    arrays = {name: 0.2 * random.normal(size=shape) for name, shape in Published(variant).shapes.items()}
    for name in arrays:
        if name + '_inv' in arrays:  # a flow's matrix is to be far from singular
            arrays[name] = np.linalg.qr(arrays[name])[0] * 1.1
        elif name.endswith('layer_norm.weight'):
            arrays[name] += 1.0
    source, target = 'encoder.embed.weight', 'posterior.tgt_embed.weight'
    if variant.get('shared'):
        arrays[target] = arrays[source]
    if variant.get('tied'):
        arrays['decoder.readout.weight'] = arrays[target]
    arrays['encoder.core.embed.weight'] = arrays[source]
    arrays['posterior.core.tgt_embed.weight'] = arrays[target]
    arrays['decoder.pos_enc._float_tensor'] = np.full([1], np.nan)
    return arrays


class VariantsTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.random = np.random.default_rng(seeds(self).randrange(2**31))

    def arrays(self, variant):
        return random_arrays(variant, self.random)

    def build(self, variant):
        vocabs = [
            Vocab(['<pad>', '<unk>', '<eos>'] + [f'w{i}' for i in range(tokens)])
            for tokens in (variant.get('src_tokens', TOKENS), TOKENS)
        ]
        joint = vocabs[0].tokens == vocabs[1].tokens
        model = build_model(import_flowseq.config_of(configuration(variant), 'config.json', joint), *vocabs)
        for variable in model.trainable_variables:
            variable.assign(tf.fill(variable.shape, np.nan))
        return model

    def test_every_weight_is_where_it_belongs(self):
        src = np.array([[4, 9, 3, 12, 2], [5, 6, 2, 0, 0]])
        trg = np.array([[4, 7, 9, 3, 8, 2, 2, 2], [5, 8, 12, 2, 0, 0, 0, 0]])
        for name, variant in VARIANTS.items():
            with self.subTest(name):
                model, arrays = self.build(variant), self.arrays(variant)
                load_flowseq(model, Weights(arrays))  # refuses what it does not use
                for variable in model.trainable_variables:
                    self.assertTrue(np.isfinite(variable).all(), variable.name)
                self.check_numbers(model, PublishedFlowSeq(arrays, configuration(variant)), src, trg)

    def check_numbers(self, model, published, src, trg):
        """Every part of the model, on padded sentences, against the published formulas, sentence by sentence."""
        source, rows = model.encode(tf.constant(src, tf.int32), tf.constant(src > 0)), Rows(tf.constant(trg > 0))
        ends = [rows.padded(end) for end in model.posterior_ends(tf.constant(trg, tf.int32), rows, source)]
        z = rows.only_real(tf.constant(self.random.normal(size=[trg.size, D]), tf.float32))
        logits = rows.padded(model.logits(z, rows, source))
        z = rows.padded(z)
        noise, log_det = model.prior.forward_and_log_det(z, rows.mask, source.for_prior())
        back, _ = model.prior.inverse_and_log_det(noise, rows.mask, source.for_prior())
        self.assertAllClose(back, z, 1e-3, 1e-3)
        for b, (length, steps) in enumerate(zip((src > 0).sum(axis=1), (trg > 0).sum(axis=1))):
            states = published.encode(src[b, :length])
            self.close(source.rows.padded(source.states)[b, :length], states)
            self.close(source.context[b], states[-1])
            for got, want in zip(ends, published.posterior(trg[b, :steps], states)):
                self.close(got[b, :steps], want)
            latent = z[b, :steps].numpy().astype(np.float64)
            self.close(logits[b, :steps], published.logits(latent, states))
            want, want_log_det = published.flow(latent, states, trg.shape[1])
            self.close(noise[b, :steps], want)
            self.close(log_det[b], want_log_det)
            self.check_lengths(model.length_predictor, published, source.context[b : b + 1], states[-1], int(length))

    def check_lengths(self, predictor, published, context, state, src_length):
        want = published.length_log_probs(state, src_length, predictor.unit)
        if isinstance(predictor, SoftmaxLength):
            lengths, log_probs = predictor.predict(context, tf.constant([src_length]), predictor.most_lengths)
            got = {length: p for length, p in zip(lengths[0].numpy(), log_probs[0].numpy()) if p > -math.inf}
        else:
            differences = predictor.differences()
            got = dict(zip(differences.numpy(), predictor.log_probs(context, differences[tf.newaxis])[0].numpy()))
        self.assertEqual(set(got), set(want))
        self.close([got[key] for key in want], list(want.values()))

    def close(self, got, want):
        self.assertAllClose(got, want, 2e-4, 2e-4)

    def test_an_imported_model_translates(self):
        variant = VARIANTS['recurrent']
        model = self.build(variant)
        load_flowseq(model, Weights(self.arrays(variant)))
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

    def test_tables_that_are_one_only_by_the_configuration_are_refused(self):
        for name, wrong in (
            ('a table for both sides, another for the output', 'posterior.tgt_embed.weight'),
            ('a table for both sides, another for the output', 'posterior.core.tgt_embed.weight'),
            ('a table for each side, the output tied', 'encoder.core.embed.weight'),
            ('a table for each side, the output tied', 'posterior.core.tgt_embed.weight'),
            ('a table for each side, the output tied', 'decoder.readout.weight'),
        ):
            with self.subTest(name, wrong=wrong):
                arrays = self.arrays(VARIANTS[name])
                arrays[wrong] = arrays[wrong] + np.eye(*arrays[wrong].shape)
                told = f'{wrong} is not (the same as|tied to) .*configuration'
                with self.assertRaisesRegex(UserError, told):
                    load_flowseq(self.build(VARIANTS[name]), Weights(arrays))

    def test_the_last_layer_of_a_convolution_has_its_true_width(self):
        """Published: built for 2 * hidden units and given inputs + hidden, so it runs where the two are the same."""
        inputs, source_size, steps = 6, 5, 4
        split = FeatureSplit(2 * inputs, 'up')
        x = self.random.normal(size=[1, steps, 2 * inputs])
        states = self.random.normal(size=[3, source_size])
        memory = FlowMemory(tf.constant(states[np.newaxis], tf.float32), tf.ones([1, 3], tf.bool))
        for hidden, width in ((inputs, 2 * inputs), (4, inputs + 4), (4, 2 * 4)):
            shapes = {
                'linear.linear.weight_v': [2 * inputs, width], 'linear.linear.weight_g': [2 * inputs, 1],
                'linear.linear.bias': [2 * inputs], 'attn.key_proj.weight': [2 * hidden, source_size],
                'attn.key_proj.bias': [2 * hidden], 'attn.query_proj.weight': [hidden, hidden],
                'attn.query_proj.bias': [hidden], 'attn.fc.weight': [hidden, hidden], 'attn.fc.bias': [hidden],
            }  # fmt: skip
            for name, read in (('conv1', inputs), ('conv2', hidden)):
                shapes |= {f'{name}.conv.weight_v': [hidden, read, 3], f'{name}.conv.weight_g': [hidden, 1, 1],
                           f'{name}.conv.bias': [hidden]}  # fmt: skip
            arrays = {f'up.net.{name}': self.random.normal(size=shape) for name, shape in shapes.items()}
            layer = Coupling(split, AFFINE, ConvConditioner(inputs, source_size, 2 * inputs, hidden))
            if width != inputs + hidden:
                with self.assertRaisesRegex(UserError, r'up.net.linear.linear reads 8 units, .* given 6 \+ 4'):
                    load_coupling(layer, Weights(arrays), 'up.')
                continue
            load_coupling(layer, Weights(arrays), 'up.')
            got, log_det = layer.forward_and_log_det(tf.constant(x, tf.float32), memory=memory)
            published = Flow(arrays, dict(coupling_type='conv'), source_size)
            want, want_log_det = published.coupling('up.net.', x[0], states, steps)
            self.close(got[0], want)
            self.close(log_det[0], want_log_det)


if __name__ == '__main__':
    unittest.main()
