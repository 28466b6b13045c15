"""What `sequencing_np` promises beside agreement: its file, its command, any line, any batch."""

import json
import os
import subprocess
import sys
import unittest
from unittest import mock

import numpy as np
import tensorflow as tf

import nmt_infer
import nmt_np
import sequencing_np
from build_model import build_model
from flow_layers import ActNorm
from flow_layers.build import build_flow
from sequencing.config import Config, TrainConfig
from sequencing.errors import UserError
from sequencing.model_folder import write_config
from sequencing.optimizers import build_optimizer
from sequencing.vocab import Vocab, VocabMaker
from sequencing_np import noise as numpy_noise
from sequencing_np.model_file import ModelFile, Weights, quantise, read_model, vocabs, write_model
from sequencing_np.seq2seq import DECODERS, Seq2Seq
from tests import strict_arrays
from tests.numpy_support import AUTOREGRESSIVE, FLOWS, convert, write_model_folder
from tests.support import FolderTest, run_tool, scratch_folder, seeds
from tests.test_commands import ODD
from tests.toy import ROOT
from tools import ckpt2npz

WORDS = [f'w{i}' for i in range(19)]


class ArrayTest(FolderTest):
    """Base: random arrays too."""

    def numbers(self, *shape):
        return np.random.default_rng(self.draw.randrange(2**31)).normal(size=shape).astype(np.float32)


class ModelFileTest(ArrayTest):
    def write(self, name, **options):
        weights = {
            'a/kernel': self.numbers(211, 307) * np.exp(3 * self.numbers(307)),
            'b/table': self.numbers(401, 67) * np.exp(3 * self.numbers(401, 1)),
            'b/bias': self.numbers(307),
            'flow/matrix': self.numbers(31, 31),
        }
        weights['a/kernel'][:, 5] = 0.0
        write_model(self.path(name), ModelFile(Config(seed=4), {'x.json': b'{}'}, weights), **options)
        return weights

    def test_float32_comes_back_to_the_bit(self):
        weights = self.write('model.npz')
        model = read_model(self.path('model.npz'))
        self.assertEqual((model.config, model.vocab_files), (Config(seed=4), {'x.json': b'{}'}))
        self.assertEqual(set(model.weights), set(weights))
        for name, array in weights.items():
            np.testing.assert_array_equal(model.weights[name], array)

    def test_int8_is_a_quarter_of_the_size_and_off_by_half_a_step_at_most(self):
        weights = self.write('model.npz')
        self.draw = seeds(self)
        self.write('small.npz', int8=True)
        sizes = [os.path.getsize(self.path(name)) for name in ('model.npz', 'small.npz')]
        self.assertLess(sizes[1], 0.3 * sizes[0])
        self.assertGreater(sizes[1], 0.2 * sizes[0])
        model = read_model(self.path('small.npz'))
        for name, axis in (('a/kernel', 0), ('b/table', 1)):
            step = np.abs(weights[name]).max(axis=axis, keepdims=True) / 127
            off = np.abs(model.weights[name] - weights[name])
            self.assertTrue((off <= 0.5 * step * (1 + 1e-4)).all(), name)
            self.assertGreater(off.max(), 0.0)
            self.assertEqual(model.weights[name].dtype, np.float32)
        for name in ('b/bias', 'flow/matrix'):
            np.testing.assert_array_equal(model.weights[name], weights[name])

    def test_a_scale_belongs_to_an_output(self):
        kernel = np.array([[1.0, 100.0], [-2.0, 50.0]], np.float32)
        numbers, scale = quantise(kernel, by_row=False)
        np.testing.assert_array_equal(numbers, [[64, 127], [-127, 64]])
        np.testing.assert_allclose(scale, [[2 / 127, 100 / 127]], rtol=1e-6)

    def test_what_is_no_model_is_refused(self):
        self.write('model.npz')
        with open(self.path('model.npz'), 'rb') as file:
            whole = file.read()
        with open(self.path('half.npz'), 'wb') as file:
            file.write(whole[: len(whole) // 2])
        np.savez(self.path('other.npz'), a=np.zeros(3))
        np.savez(self.path('pickled.npz'), format=np.array(1), config=np.array([{}], object))
        np.savez(self.path('newer.npz'), format=np.array(2))
        for name, message in (('half', 'damaged'), ('other', 'is not a model'), ('pickled', 'allow_pickle=False'),
                              ('newer', 'newer than the format 1'), ('absent', 'absent.npz')):  # fmt: skip
            with self.assertRaisesRegex(UserError, message):
                read_model(self.path(f'{name}.npz'))

    def test_vocabularies_are_those_of_the_model_folder(self):
        words = Vocab(['the@@', 'y', 'x'])
        maker = VocabMaker('unigram', 30)
        for _ in range(40):
            maker.add(' '.join(self.draw.choices(['abba', 'baba', 'caba'], k=3)))
        for name, vocab in (('src', words), ('trg', maker.make())):
            vocab.save(self.folder, name)
        src, trg = vocabs(ModelFile(Config(), ckpt2npz.read_files(self.folder), {}))
        self.assertEqual((src.tokens, src.subword), (words.tokens, 'bpe'))
        self.assertEqual(trg.decode(trg.encode('abba caba')), 'abba caba')


class NoiseTest(unittest.TestCase):
    def test_noise_is_that_of_tensorflow(self):
        from sequencing import noise

        draw = seeds(self)
        ids = np.array([[draw.randrange(9000) for _ in range(7)] for _ in range(3)], np.int32)
        mask = np.arange(7) < np.array([[7], [2], [5]])
        np.testing.assert_array_equal(numpy_noise.source_hash(ids, mask), noise.source_hash(ids, mask).numpy())
        parts = draw.randrange(2**31), numpy_noise.source_hash(ids, mask)[:, np.newaxis], np.arange(11)
        want = noise.normals(parts[0], tf.constant(parts[1]), tf.range(11)).numpy()
        np.testing.assert_allclose(numpy_noise.normals(*parts), want, atol=2e-6)


class CommandTest(FolderTest):
    """The command, on one model of random weights; that it agrees with TensorFlow is `test_numpy_agreement`'s."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        draw, folder = seeds(cls('test_mistakes_have_one_message')), scratch_folder(cls.addClassCleanup)
        cls.model_dir, cls.model = os.path.join(folder, 'model'), os.path.join(folder, 'model.npz')
        write_model_folder(cls.model_dir, AUTOREGRESSIVE[draw.choice(['rnn', 'transformer', 'conv'])], draw, WORDS)
        assert convert(cls.model_dir, cls.model) == 0

    def infer(self, *arguments):
        return run_tool(nmt_np.main, f'--model={self.model}', *arguments)

    def write(self, name, data):
        with open(self.path(name), 'wb') as file:
            file.write(data)
        return self.path(name)

    def test_every_line_has_its_answer(self):
        source, target = self.write('odd.src', ODD), self.path('odd.out')
        code, _, err = self.infer(f'--test_src={source}', f'--output_file={target}', '--max_length=9')
        self.assertEqual(code, 0, err)
        with open(target, 'rb') as file:
            lines = file.read().split(b'\n')
        self.assertEqual(len(lines), 9)
        self.assertEqual(lines[1:3] + lines[8:], [b'', b'', b''])
        self.assertIn('2 lines held bytes that are not UTF-8', err)

    def test_a_line_gets_the_same_whatever_else_is_in_the_batch(self):
        model = sequencing_np.load(self.model)
        lines = [' '.join(self.draw.choices(WORDS, k=self.draw.randint(1, 9))) for _ in range(7)]
        order = self.draw.sample(range(7), 7)
        for mode in ('greedy', 'beam'):
            results = list(model.stream(lines, decode=mode, max_length=9))
            shuffled = model.stream([lines[i] for i in order], decode=mode, max_length=9, batch_tokens=20)
            for place, got in enumerate(shuffled):
                want = results[order[place]].outputs[0]
                self.assertEqual(got.outputs[0].tokens, want.tokens)
                self.assertAlmostEqual(got.outputs[0].score, want.score, delta=1e-4 * max(1.0, abs(want.score)))

    def test_beam_one_is_greedy_and_outputs_are_those_of_nmt_infer(self):
        source = self.write('plain.src', ' \n'.join(self.draw.choices(WORDS, k=4)).encode())
        common = [f'--test_src={source}', '--format=jsonl', '--max_length=5']
        greedy, beam = (
            self.infer(*common, *more)[1] for more in (['--decode=greedy'], ['--decode=beam', '--beam_size=1'])
        )
        code, theirs, _ = run_tool(nmt_infer.main, f'--model_dir={self.model_dir}', *common, '--decode=greedy')
        self.assertEqual(code, 0)
        self.assertEqual(greedy.count('\n'), 4)
        for lines in zip(*(text.splitlines() for text in (greedy, beam, theirs)), strict=True):
            first, *others = [json.loads(line) for line in lines]
            for other in others:
                for field in ('score', 'rank_score'):
                    self.assertAlmostEqual(other.pop(field), first[field], delta=1e-4 * max(1.0, abs(first[field])))
                self.assertEqual(other, {field: first[field] for field in other})

    def test_options_of_the_library_are_checked_as_flags_are(self):
        model = sequencing_np.load(self.model)
        for lines, options, message in (
            (['w1'], dict(beam=3), 'Did you mean beam_size'),
            (['w1'], dict(zzz=3), 'there are decode, .*[.]$'),
            (['w1'], dict(decode='bean'), 'it has beam, greedy. Did you mean beam'),
            ('w1', {}, 'got one string'),
        ):
            with self.assertRaisesRegex(UserError, message):
                model.translate(lines, **options)

    def test_scores_go_to_standard_error(self):
        source = self.write('some.src', b'w1 w2\nw3\n')
        code, out, err = self.infer(f'--test_src={source}', f'--test_trg={source}', '--max_length=3')
        self.assertEqual((code, out.count('\n')), (0, 2))
        self.assertRegex(err, r'BLEU = [\d.]+ \(nrefs')

    def test_mistakes_have_one_message(self):
        source = f'--test_src={self.write("some.src", b"w1")}'
        cases = (
            ([source, '--decode=sample'], 'it has beam, greedy'),
            ([source, '--decode=argmax'], 'it has beam, greedy'),
            ([source, '--array_module=cupy'], 'CuPy is not installed'),
            ([source, '--nbest=9', '--format=jsonl'], 'at most beam_size'),
            ([source, '--nbest=2'], '--nbest needs --format jsonl'),
            ([source, '--model='], '--model is required'),
            ([source, f'--model={self.path("nothing.npz")}'], 'nothing.npz'),
            ([f'--test_src={self.path("nothing.src")}'], 'nothing.src'),
            ([source, f'--output_file={self.path("some.src")}'], 'the file of --test_src, too'),
            ([source, '--attention'], 'attention'),
        )
        for arguments, message in cases:
            with mock.patch.dict(sys.modules, {'cupy': None}):
                code, out, err = self.infer(*arguments)
            self.assertEqual((code, out), (2, ''), arguments)
            self.assertIn(message, err)
            self.assertNotIn('Traceback', err)

    def test_cupy_computes_where_it_is(self):
        lines = [' '.join(self.draw.choices(WORDS, k=n)) for n in (5, 2)]
        want = sequencing_np.load(self.model).translate(lines, max_length=7)
        with mock.patch.dict(sys.modules, {'cupy': strict_arrays.MODULE}):
            model = sequencing_np.load(self.model, 'cupy')
        self.assertIsInstance(model.model.trg_table, strict_arrays.StrictArray)
        self.assertEqual(model.translate(lines, max_length=7), want)


class ConversionTest(ArrayTest):
    def test_a_checkpoint_of_training_gives_its_averages(self):
        config = Config(model=AUTOREGRESSIVE['rnn'], train=TrainConfig(ema=0.9))
        vocab = Vocab(WORDS)
        model = build_model(config, vocab, vocab)
        optimizer = build_optimizer(config.train)
        optimizer.build(model.trainable_variables)
        for average in optimizer._model_variables_moving_average:
            average.assign(self.numbers(*average.shape))
        write_config(self.folder, config)
        os.mkdir(self.path('vocab'))
        for name in ('src', 'trg'):
            vocab.save(self.path('vocab'), name)
        tf.train.CheckpointManager(tf.train.Checkpoint(model=model, optimizer=optimizer), self.folder, 1).save()
        self.assertEqual(convert(self.folder, self.path('model.npz'), '--checkpoint=last'), 0)
        got = read_model(self.path('model.npz')).weights
        averages = dict(zip((v.ref() for v in model.trainable_variables), optimizer._model_variables_moving_average))
        for name, variable in (
            ('encoder/layers/0/1/kernel', model.encoder.layers[0][1].kernel),
            ('output/bias', model.output.bias),
            ('src_embedding/table', model.src_embedding.table),
            ('trg_embedding/table', model.trg_embedding.table),
        ):
            np.testing.assert_array_equal(got[name], averages[variable.ref()].numpy())
        self.assertEqual(len(got), len(model.trainable_variables))

    def test_a_part_that_numpy_does_not_have_is_named(self):
        config, vocab = Config(model=AUTOREGRESSIVE['rnn']), Vocab(WORDS)
        weights = Weights(ckpt2npz.weights_of(build_model(config, vocab, vocab)))
        with mock.patch.dict(DECODERS, clear=True), self.assertRaisesRegex(UserError, "model.decoder.kind is 'rnn'"):
            Seq2Seq(config, weights, vocab, vocab)

    def test_layers_that_numpy_does_not_know_are_refused_before_anything_is_written(self):
        for level, place in ((0, 0), (0, 1), (1, 0), (1, 2)):
            with self.subTest(level=level, place=place):
                folder = self.path(f'model{level}{place}')

                def with_one_more(*given, level=level, place=place, **named):
                    flow = build_flow(*given, **named)
                    layers = list(flow.layers[level].layers)
                    layers.insert(place, ActNorm(flow.sizes(given[0], given[3])[level]))
                    flow.layers[level].layers = layers
                    return flow

                with mock.patch('build_flow_model.build_flow', with_one_more):
                    write_model_folder(folder, FLOWS['flow'], self.draw, WORDS)
                    arguments = f'--model_dir={folder}', f'--output_file={self.path("own.npz")}'
                    code, _, err = run_tool(ckpt2npz.main, *arguments)
                self.assertEqual(code, 2, err)
                self.assertIn('not those of the parts that sequencing_np has', err)
                self.assertFalse(os.path.exists(self.path('own.npz')))

    def test_mistakes(self):
        for arguments, message in (
            (['--output_file=x.npz'], '--model_dir is required'),
            ([f'--model_dir={self.folder}', '--output_file=x.bin'], 'ends in .npz'),
            ([f'--model_dir={self.folder}', '--output_file=x.npz'], 'is not a model folder'),
        ):
            code, _, err = run_tool(ckpt2npz.main, *arguments)
            self.assertEqual(code, 2)
            self.assertIn(message, err)

    def test_importing_takes_no_tensorflow(self):
        code = "import sys; import nmt_np, sequencing_np; assert not {'tensorflow', 'keras'} & set(sys.modules)"
        done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == '__main__':
    unittest.main()
