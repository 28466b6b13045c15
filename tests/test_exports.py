"""Promise 6: an exported model, moved elsewhere with the original deleted, gives the same ids."""

import dataclasses
import json
import os
import statistics
import unittest
from unittest import mock

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import sequencing
from build_model import build_model
from sequencing import export
from sequencing.config import DecodeConfig
from sequencing.decode_options import options_for
from sequencing.errors import UserError
from sequencing.export import GraphVocab
from sequencing.flow_config import FlowPriorConfig, FlowTransformerDecoderConfig
from sequencing.vocab import Vocab
from tests.export_support import LITE_FILES, WORDS, ExportChecks, run_elsewhere
from tests.families import make_translator
from tests.numpy_support import AUTOREGRESSIVE, FLOWS, flow, write_model_folder
from tests.support import FolderTest, run_tool, scratch_folder, seeds
from tools import export_savedmodel, export_tflite

SMALL_FLOW = flow(
    decoder=FlowTransformerDecoderConfig(layers=1, heads=2, copy_source=True),
    prior=FlowPriorConfig(steps=(0,), factors=(), hidden_size=6, heads=2),  # two couplings
)


def constants_of(folder):
    """The constant matrices of a LiteRT file: arrays as they are stored, and the scales `[N, 1]` of their rows."""
    interpreter = Interpreter(os.path.join(folder, 'model.tflite'))
    for tensor in interpreter.get_tensor_details():
        if len(tensor['shape']) == 2:
            try:
                array = interpreter.get_tensor(tensor['index'])
            except ValueError:  # what is computed has no value yet
                continue
            scale = tensor['quantization_parameters']['scales']
            yield array, scale[:, np.newaxis] if len(scale) else np.float32(1)


def right_factors(nodes):
    """The operation that makes the right factor of each product, '' for an argument."""
    made = {node.name: node for node in nodes}
    for node in nodes:
        if node.op == 'MatMul':
            source = node
            while source and (source is node or source.op in ('Identity', 'Cast', 'Reshape', 'Transpose')):
                source = made.get(source.input[source is node].partition(':')[0])
            yield source.op if source else ''


class ExportTest(ExportChecks, FolderTest):
    """`system_tests/test_exports.py` has all kinds of parts."""

    def test_saved_models(self):
        beam = {'decode': 'beam', 'beam_size': 3, 'length_penalty': 0.7, 'max_length': 7}
        self.check_saved_models({'ensemble': ((AUTOREGRESSIVE['rnn'], AUTOREGRESSIVE['transformer']), beam)})

    def test_saved_models_of_constants(self):
        prior = dataclasses.replace(SMALL_FLOW.prior, steps=(1,))  # couplings that differ in their weights alone
        model = dataclasses.replace(SMALL_FLOW, prior=prior)
        self.check_saved_models({'flow': (model, {'decode': 'argmax'})}, '--constants')
        loaded = tf.saved_model.load(os.path.join(self.folder, 'flow.saved.moved'))
        for name, signature in loaded.signatures.items():
            self.assertFalse(signature.variables, name)
            self.assertFalse([read for read in signature.captured_inputs if read.dtype.is_floating], name)
            functions = signature.graph.as_graph_def().library.function
            products = [origin for function in functions for origin in right_factors(function.node_def)]
            self.assertGreater(len(products), 30, name)
            self.assertEqual(set(products), {'Const'}, name)

    def test_lite_files(self):
        iw = {'decode': 'iw', 'nlen': 2, 'ntr': 3, 'iw_k': 4, 'tau': 0.8, 'seed': seeds(self).randrange(1000)}
        self.check_lite_files({'flow': (SMALL_FLOW, {}), 'iw': (SMALL_FLOW, iw)})


class ExportFlagsTest(ExportChecks, unittest.TestCase):
    """On one small model."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = scratch_folder(cls.addClassCleanup)
        cls.model_dir = os.path.join(cls.folder, 'model')
        write_model_folder(cls.model_dir, AUTOREGRESSIVE['conv'], seeds(cls('test_smaller_weights')), WORDS)

    def setUp(self):
        super().setUp()
        self.draw = seeds(self)

    def path(self, name):
        return os.path.join(self.folder, name)

    def test_smaller_weights(self):
        sizes, asked = {}, []
        lines = [' '.join(self.draw.choices(WORDS, k=5)) for _ in range(9)]
        translator = sequencing.load(self.model_dir)
        ids = [translator.src_vocab.encode(line).tolist() for line in lines]
        for weights in ('float32', 'float16', 'int8'):
            output, limits = self.path(weights), ('--max_src_length=5', '--max_length=6')
            flags = f'--model_dir={self.model_dir}', f'--output_dir={output}', f'--weights={weights}'
            code, _, said = run_tool(export_tflite.main, *flags, *limits)
            self.assertEqual(code, 0, said)
            asked.append((output, ids))
            sizes[weights] = os.path.getsize(os.path.join(output, 'model.tflite'))
            with open(os.path.join(output, 'export.json'), encoding='utf-8') as file:
                notes = json.load(file)
            self.assertEqual((notes['max_src_length'], notes['max_length'], notes['trg']['eos_id']), (5, 6, 3))
            vocab = Vocab.load(output, 'trg')
            self.assertEqual(vocab.tokens[4:], WORDS)
        self.assertLess(sizes['float16'], 0.7 * sizes['float32'])
        self.assertLess(sizes['int8'], sizes['float16'])
        self.check_rounding(*(constants_of(self.path(weights)) for weights in ('float32', 'int8')))
        # How far a score may be off, as a share of it. float16: 2^-11 for each of the 8 products in a row that a token
        # passes. int8: weights and inputs of eight bits put each of the 5 products that have them off by about 1% of
        # its spread (a step of 6 deviations / 255, over sqrt(12), on either side), 2.2% together; 5 times that. With
        # random weights about one sentence in a hundred is off further, as small changes grow on their way through the
        # layers: hence the median of nine.
        bounds = (1e-4, max), (8 * 2.0**-11, statistics.median), (0.11, statistics.median)
        for found, (share, summary) in zip(run_elsewhere(LITE_FILES, asked, self.folder), bounds):
            pieces = [translator.trg_vocab.pieces(one['ids'][: one['lengths']]) for one in found]
            scores = translator.score(lines, pieces)  # of what this one said
            off = [abs(one['scores'] - score) / max(1.0, abs(score)) for one, score in zip(found, scores)]
            self.assertLess(summary(off), share)

    def test_precision(self):
        """bfloat16 rounds to eight bits of a number: scores are those of float32 but for that."""
        output, lines = self.path('bf16'), [' '.join(self.draw.choices(WORDS, k=4)) for _ in range(9)]
        flags = f'--model_dir={self.model_dir}', f'--output_dir={output}', '--decode=greedy', '--max_length=6'
        code, _, said = run_tool(export_savedmodel.main, *flags, '--precision=mixed_bfloat16')
        self.assertEqual(code, 0, said)
        translator = sequencing.load(self.model_dir)
        src_ids = np.stack([translator.src_vocab.encode(line) for line in lines])
        found = tf.saved_model.load(output).signatures['ids'](src_ids=tf.constant(src_ids, tf.int32))
        pieces = [translator.trg_vocab.pieces(ids[:end]) for ids, end in zip(found['ids'].numpy(), found['lengths'])]
        scores = translator.score(lines, pieces)
        off = [abs(one - score) / max(1.0, abs(score)) for one, score in zip(found['scores'].numpy(), scores)]
        self.assertLess(statistics.median(off), 0.1)
        self.assertGreater(max(off), 1e-5)  # or it is float32

    def check_rounding(self, exact, rounded):
        """Every matrix that LiteRT rounds (from 1,024 numbers on) is the original's to half a step."""
        matrices = [array for array, _ in exact if array.ndim == 2 and array.size >= 1024]
        self.assertGreater(len(matrices), 2)
        small = [(array * scale, scale) for array, scale in rounded if array.dtype == np.int8]
        self.assertEqual(len(small), len(matrices))
        for array, scale in small:
            off = [np.max(np.abs(array - matrix) / scale) for matrix in matrices if matrix.shape == array.shape]
            self.assertLess(min(off), 0.5 * (1 + 1e-3))

    def test_a_saved_model_holds_each_weight_once(self):
        output = self.path('saved')
        code, _, said = run_tool(export_savedmodel.main, f'--model_dir={self.model_dir}', f'--output_dir={output}')
        self.assertEqual(code, 0, said)
        loaded = tf.saved_model.load(output)
        read = {v.ref() for signature in loaded.signatures.values() for v in signature.variables}
        names = [name for name, _ in tf.train.list_variables(f'{output}/variables/variables')]
        kept = [name for name in names if name.endswith('VARIABLE_VALUE')]
        self.assertEqual(len(kept), len(read))  # others stand in the graph as constants

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
            (export_tflite, (model, output, '--decode=iw'), 'it has beam, greedy, sample, mbr'),
            (export_tflite, (model, output, '--decode=mbr'), '<greedy|argmax|iw>'),
            (export_savedmodel, (f'--model_dir={self.path("none")}', output), 'no such model folder'),
            (export_savedmodel, (model, output, '--decode=argmax'), 'it has beam, greedy, sample, mbr'),
            (export_savedmodel, (model, output, '--decode=mbr'), 'outside the graph'),
            (export_savedmodel, (model, output, '--decode=npd'), 'by a second model'),
            (export_savedmodel, (model, output, '--beam=3'), '--beam_size?'),
            (export_savedmodel, (model, output, '--constants'), 'flow models'),
            (export_tflite, (model, output, '--max_src_length=1001'), 'reads 1000 tokens'),
        ):
            code, _, said = run_tool(tool.main, *flags)
            self.assertEqual(code, 2, said)
            self.assertIn(message, said)
        self.assertEqual(sorted(os.listdir(self.folder)), before)

    def test_what_the_interpreter_has_not_is_refused_by_name(self):
        for model, what in ((FLOWS['flow_recurrent'], 'transform nlsq'), (AUTOREGRESSIVE['ava'], 'kind ava')):
            with self.assertRaisesRegex(UserError, f'{what}.*SavedModel'):
                export_tflite.check_interpreter_has_it('folder', model)

    def test_modes_of_the_model_folder_are_refused_too(self):
        config = AUTOREGRESSIVE['conv']
        for mode, message in (('mbr', 'comparing their text'), ('sample', 'which the signature does not take')):
            folder = self.path(f'of {mode}')
            write_model_folder(folder, config, self.draw, WORDS, decode=DecodeConfig(mode=mode))
            code, _, said = run_tool(export_savedmodel.main, f'--model_dir={folder}', f'--output_dir={folder}.saved')
            self.assertEqual(code, 2, said)
            self.assertIn(message, said)
            self.assertFalse(os.path.exists(f'{folder}.saved'))

    def test_sizes_are_those_of_checkpoints(self):
        folder = self.path('transformer')
        config = write_model_folder(folder, AUTOREGRESSIVE['transformer'], self.draw, WORDS)
        vocab = Vocab(WORDS)
        size = sum(4 * v.shape.num_elements() for v in build_model(config, vocab, vocab).variables)
        flags = f'--model_dir={folder}', f'--output_dir={folder}.saved'
        for folders, needed in (([folder], size), ([folder, folder], 2 * size)):
            with mock.patch.object(export, 'MOST_BYTES', needed):
                export.check_size(folders, 'best')
            with mock.patch.object(export, 'MOST_BYTES', needed - 1), self.assertRaises(UserError):
                export.check_size(folders, 'best')
        for tool in (export_savedmodel, export_tflite):
            with mock.patch.object(export, 'MOST_BYTES', size - 1):
                code, _, said = run_tool(tool.main, *flags)
            self.assertEqual(code, 2, said)
            self.assertIn('GiB of weights', said)


class LengthTest(unittest.TestCase):
    """A model that never says EOS writes as much as the length ratio of its configuration allows."""

    def test_outputs_are_as_long_as_the_configuration_lets_them(self):
        draw = seeds(self)
        for ratio in (0.5, 3.0):
            decode = DecodeConfig(length_ratio=ratio, max_src_length=7, mode='greedy')
            translator = make_translator('conv', draw.randrange(1000), decode=decode)
            translator.model.output.bias.assign(-99.0 * tf.one_hot(translator.trg_vocab.eos_id, 12))
            options = options_for(translator.model, translator.config)
            rows = [draw.choices(range(4, 12), k=n) for n in (7, 3, 0)]
            src_ids = tf.constant([row + [0] * (7 - len(row)) for row in rows])
            want = [int(7 * ratio) + 20, int(3 * ratio) + 20, 0]
            _, signatures = export_savedmodel.build(translator, options)
            self.assertEqual(signatures['ids'](src_ids)['lengths'].numpy().tolist(), want)
            longest = export_tflite.output_size(translator, 7, options)
            self.assertEqual(longest, want[0])
            lite = export_tflite.build(translator, 7, longest, options)
            self.assertEqual([int(lite(src_ids[i : i + 1])['lengths'][0]) for i in range(3)], want)


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
            padded = [[vocab.pad_id, *ids[:1], vocab.eos_id, vocab.pad_id] for ids in want if len(ids)]
            for keep_pad in (False, True):
                texts = inside.decode(tf.constant(padded), tf.fill([len(padded)], 4), keep_pad).numpy()
                self.assertEqual([x.decode() for x in texts], [vocab.decode(ids, keep_pad) for ids in padded])


if __name__ == '__main__':
    unittest.main()
