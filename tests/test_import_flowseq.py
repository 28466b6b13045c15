"""The importer: files of both PyTorch formats, without PyTorch; and what it refuses."""

import base64
import io
import json
import os
import pickle
import re
import tempfile
import unittest
import zipfile

import numpy as np

from sequencing.errors import UserError
from sequencing.flow_config import FlowPriorConfig, FlowSeqConfig, FlowTrainConfig
from tests.published_flowseq import Layers
from tests.support import seeds
from tools import import_flowseq
from tools.flowseq_weights import Weights, load_recurrent
from tools.torch_file import read_torch_file

# torch.save({'core': OrderedDict(a=arange(6.).reshape(2, 3).t(), b=tensor([True, False]))}, file,
#            _use_new_zipfile_serialization=False), PyTorch 2.13
LEGACY = (
    'gAKKCmz8nEb5IGqoUBkugAJN6QMugAJ9cQAoWBAAAABwcm90b2NvbF92ZXJzaW9ucQFN6QNYDQAAAGxpdHRsZV9lbmRpYW5xAohYCgAAAHR5cGVfc2'
    'l6ZXNxA31xBChYBQAAAHNob3J0cQVLAlgDAAAAaW50cQZLBFgEAAAAbG9uZ3EHSwR1dS6AAn1xAFgEAAAAY29yZXEBY2NvbGxlY3Rpb25zCk9yZGVy'
    'ZWREaWN0CnECKVJxAyhYAQAAAGFxBGN0b3JjaC5fdXRpbHMKX3JlYnVpbGRfdGVuc29yX3YyCnEFKChYBwAAAHN0b3JhZ2VxBmN0b3JjaApGbG9hdF'
    'N0b3JhZ2UKcQdYDgAAADk0MDk5NjA5NzcxNTM2cQhYAwAAAGNwdXEJSwZOdHEKUUsASwNLAoZxC0sBSwOGcQyJaAIpUnENdHEOUnEPWAEAAABicRBo'
    'BSgoaAZjdG9yY2gKQm9vbFN0b3JhZ2UKcRFYDgAAADk0MDk5NjA5NzgzNjQ4cRJoCUsCTnRxE1FLAEsChXEUSwGFcRWJaAIpUnEWdHEXUnEYdXMugA'
    'JdcQAoWA4AAAA5NDA5OTYwOTc3MTUzNnEBWA4AAAA5NDA5OTYwOTc4MzY0OHECZS4GAAAAAAAAAAAAAAAAAIA/AAAAQAAAQEAAAIBAAACgQAIAAAAA'
    'AAAAAQA='
)


class TorchFileTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, 'model.pt')

    def write(self, content):
        with open(self.path, 'wb') as file:
            file.write(content)

    def test_the_old_format(self):
        self.write(base64.b64decode(LEGACY))
        core = read_torch_file(self.path)['core']
        np.testing.assert_array_equal(core['a'], np.arange(6.0).reshape(2, 3).T)
        np.testing.assert_array_equal(core['b'], [True, False])
        self.assertEqual(core['a'].dtype, np.float32)

    def test_a_file_cut_short(self):
        whole = base64.b64decode(LEGACY)
        for length in (0, 3, 60, 300, len(whole) - 1):
            self.write(whole[:length])
            with self.assertRaisesRegex(UserError, 'cannot be read as a file of torch.save'):
                read_torch_file(self.path)

    def archive(self, entries, compression=zipfile.ZIP_STORED):
        """A zip archive of a dict of names and contents, and where the content of its first entry starts."""
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, 'w', compression) as file:
            for name, content in entries.items():
                file.writestr(name, content)
            first = file.infolist()[0]
        return bytearray(whole.getvalue()), first.header_offset + 30 + len(first.filename)

    def entries(self):
        """What LEGACY holds, as the entries of the format since 1.6."""
        whole = base64.b64decode(LEGACY)
        starts = [found.start() for found in re.finditer(b'\x80\x02', whole)]  # of magic, version, sizes, tensors, keys
        keys = re.findall(rb'\d{14}', whole[starts[4] :])
        first, second = whole[-34:-10], whole[-2:]
        return {'model/data.pkl': whole[starts[3] : starts[4]], f'model/data/{keys[0].decode()}': first,
                f'model/data/{keys[1].decode()}': second}  # fmt: skip

    def test_zip_archives_of_something_else_or_damaged(self):
        def refused(content, told):
            self.write(bytes(content))
            with self.assertRaisesRegex(UserError, f'model.pt cannot be read as a file of torch.save: .*{told}'):
                read_torch_file(self.path)

        entries = self.entries()
        whole, _ = self.archive(entries)
        self.write(bytes(whole))
        np.testing.assert_array_equal(read_torch_file(self.path)['core']['a'], np.arange(6.0).reshape(2, 3).T)
        for other in ({'notes.txt': 'nothing of torch'}, {'model/version': '3'}, {'model/data_pkl': 'x'}):
            refused(self.archive(other)[0], 'a zip archive without data.pkl')
        for length in (2, 40, len(whole) // 2, len(whole) - 1):
            refused(whole[:length], 'not a zip file')
        refused(self.archive({'model/data.pkl': entries['model/data.pkl']})[0], 'no item named .*model/data/')
        for compression, told in ((zipfile.ZIP_STORED, 'Bad CRC-32'), (zipfile.ZIP_DEFLATED, 'decompressing')):
            content, start = self.archive(entries, compression)
            content[start] |= 6  # of what is deflated: a block of a type that there is not
            refused(content, told)
        refused(self.archive({'model/data.pkl': b'\x80\x02K\x01K\x02a.'})[0], 'append')  # to a number
        refused(self.archive({'model/data.pkl': entries['model/data.pkl'][:-9]})[0], '')
        short = {name: content[:-1] for name, content in entries.items() if name != 'model/data.pkl'}
        refused(self.archive({**entries, **short})[0], '')

    def test_whatever_bit_is_wrong_the_message_is_ours(self):
        random, told = seeds(self), []
        archives = [self.archive(self.entries(), kind)[0] for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
        for content in [base64.b64decode(LEGACY), *archives] * 60:
            content = bytearray(content)
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            self.write(bytes(content))
            try:
                read_torch_file(self.path)
            except UserError as error:  # unless the bit tells nothing, or a number that could be another
                told.append(str(error))
        self.assertTrue(told)
        self.assertEqual([message for message in told if 'model.pt' not in message], [])

    def test_nothing_in_a_file_runs(self):
        canary = self.path + '.ran'

        class Trap:
            def __reduce__(self):
                return os.mkdir, (canary,)

        program = pickle.dumps({'core': {'a': Trap()}}, protocol=2)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, 'w') as file:
            file.writestr('model/data.pkl', program)
        prefix = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
        for content in (archive.getvalue(), prefix + program + pickle.dumps([], 2)):
            self.write(content)
            with self.assertRaisesRegex(UserError, 'holds more than weights: a call of .*mkdir'):
                read_torch_file(self.path)
        self.assertFalse(os.path.exists(canary))

    def test_tensors_that_reach_outside_their_storage(self):
        content = base64.b64decode(LEGACY).replace(b'K\x03K\x02\x86q\x0b', b'K\x04K\x02\x86q\x0b')
        self.write(content)
        with self.assertRaisesRegex(UserError, 'outside its storage'):
            read_torch_file(self.path)


class RecurrentWeightsTest(unittest.TestCase):
    """PyTorch's two bias vectors become ours, for every cell: against a loop over PyTorch's formulas."""

    def test_cells(self):
        import tensorflow as tf

        from sequencing.blocks import Bidirectional

        random = np.random.default_rng(seeds(self).randrange(2**31))
        batch, steps, inputs, units = 2, 5, 3, 4
        x = random.normal(size=[batch, steps, inputs])
        lengths = [5, 3]
        for cell, gates in (('lstm', 4), ('gru', 3), ('rnn', 1)):
            arrays = {}
            for suffix in ('', '_reverse'):
                arrays[f'weight_ih_l0{suffix}'] = random.normal(size=[gates * units, inputs])
                arrays[f'weight_hh_l0{suffix}'] = random.normal(size=[gates * units, units])
                arrays[f'bias_ih_l0{suffix}'] = random.normal(size=[gates * units])
                arrays[f'bias_hh_l0{suffix}'] = random.normal(size=[gates * units])
            stack = Bidirectional(cell, inputs, 2 * units)
            load_recurrent(stack, Weights(arrays), '')
            got = stack(tf.constant(x, tf.float32), tf.sequence_mask(lengths, steps)).numpy()
            for b, length in enumerate(lengths):
                want = Layers(arrays).recurrent('', x[b, :length], cell.upper())
                np.testing.assert_allclose(got[b, :length], want, atol=1e-5)
                np.testing.assert_array_equal(got[b, length:], 0.0)


class CheckpointFolderTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.checkpoint = os.path.join(folder.name, 'checkpoint')
        self.model_dir = os.path.join(folder.name, 'model')
        os.makedirs(os.path.join(self.checkpoint, 'vocab'))

    def write(self, name, text):
        with open(os.path.join(self.checkpoint, name), 'w', encoding='utf-8') as file:
            file.write(text)

    def configuration(self, **changes):
        transformer = dict(type='transformer', num_layers=1, heads=2, dropout=0.1)
        whole = dict(
            embed_dim=8, latent_dim=8, hidden_size=10, share_embed=True, tie_weights=True, src='xx', tgt='yy',
            src_vocab_size=5, tgt_vocab_size=5, encoder=transformer,
            posterior=dict(transformer, dropword=0.2), decoder=dict(transformer, label_smoothing=0.1),
            prior=dict(
                type='normal', length_predictor=dict(type='diff_softmax', diff_range=6),
                flow=dict(levels=1, num_steps=[1], factors=[], coupling_type='self_attn', heads=2, pos_enc='attn'),
            ),
        )  # fmt: skip
        return {**whole, **changes}

    def folder(self, tokens='a@@ b', **changes):
        self.write('config.json', json.dumps(self.configuration(**changes)))
        for name in ('xx', 'yy'):
            self.write(f'vocab/{name}.vocab', '\n'.join(['<pad>', '<unk>', '<eos>', *tokens.split()]) + '\n')

    def refused(self, message):
        with self.assertRaisesRegex(UserError, message):
            import_flowseq.import_checkpoint(self.checkpoint, self.model_dir)
        self.assertFalse(os.path.exists(self.model_dir))

    def test_what_is_missing_is_named(self):
        self.refused('config.json: there is no such file')
        self.write('config.json', '{\n"src": "xx",\n]')
        self.refused('config.json, line 3: is not valid JSON')
        self.folder()
        self.refused('model.pt: there is no such file')
        with open(os.path.join(self.checkpoint, 'model.pt'), 'wb') as file:
            file.write(base64.b64decode(LEGACY))
        self.refused('model.pt has no weights called encoder.embed.weight')
        self.folder(tokens='a b c')
        self.refused('xx.vocab has 6 tokens where config.json says src_vocab_size 5')
        self.folder(encoder=dict(type='tree'))
        self.refused("encoder: type is one of transformer, rnn; got 'tree'")
        os.makedirs(self.model_dir)
        with open(os.path.join(self.model_dir, 'something'), 'w'):
            pass
        with self.assertRaisesRegex(UserError, 'is not empty'):
            import_flowseq.import_checkpoint(self.checkpoint, self.model_dir)

    def test_subwords_are_recognised(self):
        for tokens, subword, wanted in (('a@@ b', None, 'bpe'), ('\u2581a b', None, 'spm'), ('a b', None, 'none'),
                                        ('a@@ b', 'word', 'none'), ('a b', 'joint-spm', 'spm'),
                                        ('a b', 'sep-bpe', 'bpe'), ('\u2581a b', 'joint-bpe', 'bpe'),
                                        ('a@@ ##b', 'bert-bpe', 'none')):  # fmt: skip
            self.folder(tokens)
            vocabs = import_flowseq.read_vocabs(self.checkpoint, self.configuration(), subword)
            self.assertEqual([vocab.subword for vocab in vocabs], [wanted])
            self.assertEqual((vocabs[0].eos_id, vocabs[0].bos_id), (2, None))

    def test_every_kind_of_part_has_a_place(self):
        recurrent = dict(type='rnn', rnn_mode='GRU', num_layers=2)
        theirs = self.configuration(
            encoder=recurrent,
            posterior=dict(type='shift_rnn', rnn_mode='LSTM', num_layers=1, bidirectional=False, use_attn=True),
            decoder=dict(type='simple', dropout=0.3),
            prior=dict(
                length_predictor=dict(type='diff_logistic', diff_range=8, nmix=3),
                flow=dict(num_steps=[2], factors=[], coupling_type='conv', hidden_features=4, transform='nlsq'),
            ),
        )
        model = import_flowseq.config_of(theirs, 'config.json', joint=True).model
        self.assertIsInstance(model, FlowSeqConfig)
        self.assertEqual((model.encoder.kind, model.encoder.cell, model.encoder.layers), ('rnn', 'gru', 2))
        self.assertEqual(model.encoder.embedding_dropout, 0.2)
        self.assertEqual((model.posterior.shifted, model.posterior.bidirectional, model.posterior.attention),
                         (True, False, True))  # fmt: skip
        self.assertEqual((model.decoder.kind, model.decoder.layers), ('rnn', 0))
        self.assertEqual((model.length.kind, model.length.mixtures), ('logistic', 3))
        self.assertEqual((model.prior.coupling, model.prior.transform, model.prior.unmasked_first),
                         ('conv', 'nlsq', True))  # fmt: skip
        self.assertEqual(model.length_unit, 2)
        self.assertTrue(import_flowseq.config_of(theirs, 'config.json', joint=True).train.flow.init_over_padding)
        self.assertFalse(FlowTrainConfig().init_over_padding or FlowPriorConfig().unmasked_first)

    def test_bad_usage(self):
        self.assertEqual(import_flowseq.main(['import_flowseq.py', '--checkpoint', self.checkpoint]), 2)
        self.assertEqual(import_flowseq.main(['import_flowseq.py', '--help']), 0)


if __name__ == '__main__':
    unittest.main()
