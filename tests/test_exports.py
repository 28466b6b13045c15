"""Promise 6: an exported model, moved elsewhere with the original deleted, gives the same ids."""

import json
import os
import types
import unittest

import tensorflow as tf

from sequencing.errors import UserError
from sequencing.export import GraphVocab, check_size
from sequencing.flow_config import FlowPriorConfig
from sequencing.vocab import Vocab
from tests.export_support import WORDS, ExportChecks, export
from tests.numpy_support import AUTOREGRESSIVE, FLOWS, flow, scratch_folder, write_model_folder
from tests.support import seeds
from tools import export_savedmodel, export_tflite

SMALL_FLOW = flow(prior=FlowPriorConfig(steps=(0,), factors=(), hidden_size=6, heads=2))  # two couplings


class ExportTest(ExportChecks, unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = scratch_folder(self.addCleanup)

    def test_saved_models_of_every_family(self):
        beam = {'decode': 'beam', 'beam_size': 3, 'length_penalty': 0.7, 'max_length': 11}
        greedy = {'decode': 'greedy'}
        self.check_saved_models({
            'rnn': (AUTOREGRESSIVE['rnn'], beam),
            'transformer': (AUTOREGRESSIVE['transformer'], beam),
            'conv': (AUTOREGRESSIVE['conv'], greedy),
            'flow': (SMALL_FLOW, {'decode': 'argmax'}),
        })  # fmt: skip

    def test_lite_files_of_every_family(self):
        self.check_lite_files({
            'rnn': AUTOREGRESSIVE['rnn_gru'],
            'transformer': AUTOREGRESSIVE['transformer_rotary'],
            'conv': AUTOREGRESSIVE['conv'],
            'flow': SMALL_FLOW,
        })  # fmt: skip


class ExportFlagsTest(ExportChecks, unittest.TestCase):
    """On one small model."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = scratch_folder(cls.addClassCleanup)
        cls.model_dir = os.path.join(cls.folder, 'model')
        write_model_folder(cls.model_dir, AUTOREGRESSIVE['conv'], seeds(cls('test_smaller_weights')), WORDS)

    def path(self, name):
        return os.path.join(self.folder, name)

    def test_smaller_weights(self):
        sizes = []
        for weights in ('float32', 'float16', 'int8'):
            output, limits = self.path(weights), ('--max_src_length=5', '--max_length=6')
            flags = f'--model_dir={self.model_dir}', f'--output_dir={output}', f'--weights={weights}'
            code, said = export(export_tflite, *flags, *limits)
            self.assertEqual(code, 0, said)
            sizes.append(os.path.getsize(os.path.join(output, 'model.tflite')))
            with open(os.path.join(output, 'export.json'), encoding='utf-8') as file:
                notes = json.load(file)
            self.assertEqual((notes['max_src_length'], notes['max_length'], notes['trg']['eos_id']), (5, 6, 3))
            vocab = Vocab.load(output, 'trg')
            self.assertEqual(vocab.tokens[4:], WORDS)
        self.assertEqual(sizes, sorted(sizes, reverse=True))
        self.assertLess(sizes[2], 0.6 * sizes[0])

    def test_mistakes_have_one_message_and_leave_nothing(self):
        before = sorted(os.listdir(self.folder))
        model, output = f'--model_dir={self.model_dir}', f'--output_dir={self.path("new")}'
        for tool, flags, message in (
            (export_tflite, (output,), '--model_dir is required'),
            (export_tflite, (model,), '--output_dir is required'),
            (export_tflite, (model, f'--output_dir={self.folder}'), 'is there already'),
            (export_tflite, (model, f'--output_dir={self.path("none/new")}'), 'cannot be written'),
            (export_tflite, (f'--model_dir={self.model_dir},{self.model_dir}', output), 'several folders'),
            (export_tflite, (model, output, '--weights=int4'), 'int4'),
            (export_savedmodel, (f'--model_dir={self.path("none")}', output), 'no such model folder'),
            (export_savedmodel, (model, output, '--decode=argmax'), 'it has beam, greedy, sample, mbr'),
            (export_savedmodel, (model, output, '--decode=mbr'), 'outside the graph'),
            (export_savedmodel, (model, output, '--beam=3'), '--beam_size?'),
        ):
            code, said = export(tool, *flags)
            self.assertEqual(code, 2, said)
            self.assertIn(message, said)
        self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_what_the_interpreter_has_not_is_refused_by_name(self):
        with self.assertRaisesRegex(UserError, 'transform nlsq'):
            export_tflite.check_interpreter_has_it('folder', FLOWS['flow_recurrent'])
        table = tf.TensorSpec([2**16, 2**13], tf.float32)
        with self.assertRaisesRegex(UserError, '2.0 GiB of weights'):
            check_size('folder', types.SimpleNamespace(variables=[table]))


class GraphVocabTest(tf.test.TestCase):
    """Text is read and written in the graph as it is outside."""

    LINES = [
        '',
        ' ',
        'der Hund',
        '\u3000das\u00a0 Haus\tist\x1fgroß\u2028',
        'a@@ b@@',
        '</s> <pad> \u2581das',
        '猫\x85',
    ]

    def test_lines_are_read_and_written_as_outside(self):
        tokens = ['der', 'Hund', 'das', 'a@@', 'b', 'b@@', 'Haus', 'ist', 'groß', '猫']
        pieces = ['\u2581das', '\u2581Haus', 'es', '\u2581der', 'x']
        for vocab in (
            Vocab(tokens), Vocab(tokens[:3]), Vocab(list('adrHuns ß猫'), delimiter=''), Vocab(pieces),
            Vocab(['<pad>', '<unk>', '<eos>', *tokens]),
        ):  # fmt: skip
            inside = GraphVocab(vocab)
            want = vocab.encode_lines(self.LINES)
            got = inside.encode(tf.constant(self.LINES)).numpy()
            self.assertEqual(got.shape, (len(want), max(map(len, want))))
            for mine, theirs in zip(got, want):
                self.assertAllEqual(mine[: len(theirs)], theirs)
                self.assertAllEqual(mine[len(theirs) :], [vocab.pad_id] * (len(mine) - len(theirs)))
            lengths = [len(ids) for ids in want]
            texts = [text.decode() for text in inside.decode(tf.constant(got), tf.constant(lengths)).numpy()]
            self.assertEqual(texts, [vocab.decode(ids) for ids in want])


if __name__ == '__main__':
    unittest.main()
