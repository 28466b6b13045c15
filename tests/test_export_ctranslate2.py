"""An exported Transformer, served by CTranslate2 from another folder, translates as the original does."""

import dataclasses
import os
import shutil
import tempfile
import unittest

import ctranslate2
import numpy as np
import tensorflow as tf

from sequencing.config import DecodeConfig
from tests.families import TRANSFORMER, WORDS, make_translator, save_translator
from tests.support import seeds
from tools import export_ctranslate2


def network(embedding_size=32, **changes):
    """Fields of a Transformer that differ on both sides from the smallest one."""
    encoder, decoder = (dataclasses.replace(part, **changes) for part in TRANSFORMER)
    return {'embedding_size': embedding_size, 'encoder': encoder, 'decoder': decoder}


class ExportTest(unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = scratch.name

    def export(self, translator, *arguments):
        model_dir = os.path.join(self.folder, f'model{self.random.randrange(10**9)}')
        save_translator(translator, model_dir)
        made, served = os.path.join(self.folder, 'made'), os.path.join(self.folder, 'served')
        shutil.rmtree(served, ignore_errors=True)
        command = ['export', f'--model_dir={model_dir}', f'--output_dir={made}', *arguments]
        self.assertEqual(export_ctranslate2.main(command), 0)
        shutil.move(made, served)
        shutil.rmtree(model_dir)
        return served

    def check_same(self, translator, served, beam_size):
        lines = [' '.join(self.random.choices(WORDS, k=self.random.randint(1, 9))) for _ in range(9)]
        engine, limit = ctranslate2.Translator(served, intra_threads=1), 30
        sources = [translator.src_vocab.pieces(ids) for ids in translator.src_vocab.encode_lines(lines)]
        found = engine.translate_batch(
            sources, beam_size=beam_size, length_penalty=0, max_decoding_length=limit, min_decoding_length=0,
        )  # fmt: skip
        mode = {'decode': 'beam', 'beam_size': beam_size, 'nbest': 1} if beam_size > 1 else {'decode': 'greedy'}
        wanted = [translation.outputs[0] for translation in translator.stream(lines, max_length=limit, **mode)]
        pairs = [(got.hypotheses[0], output.tokens) for got, output in zip(found, wanted)]
        if beam_size > 1:  # hypotheses that reach the limit compete with EOS counted here, and without it there
            pairs = [pair for pair in pairs if max(map(len, pair)) < limit]
            self.assertGreater(len(pairs), 3)
        self.assertLessEqual(sum(a != b for a, b in pairs), 1)  # near ties may fall otherwise
        scored = engine.score_batch(sources, [output.tokens for output in wanted])
        for got, output in zip(scored, wanted):
            self.assertLess(abs(sum(got.log_probs) - output.score), 1e-3 * max(1, abs(output.score)))

    def test_every_kind_of_transformer_translates_the_same(self):
        for part in (
            dict(embedding_size=12),
            dict(norm='post', activation='gelu', positions='learned', max_positions=40),
            dict(activation='swiglu', positions='rotary'),
        ):
            with self.subTest(part):
                translator = make_translator(
                    'transformer', self.random.randrange(1000), sharpen=2.0, network=network(**part)
                )
                output = translator.model.output  # sentences that end
                output.kernel.assign(0.3 * output.kernel)
                output.bias.assign_add(2.0 * tf.one_hot(translator.trg_vocab.eos_id, output.bias.shape[0]))
                served = self.export(translator)
                for beam_size in (1, 4):
                    self.check_same(translator, served, beam_size)

    def test_int8_is_smaller(self):
        translator = make_translator('transformer', self.random.randrange(1000))
        sizes = [
            os.path.getsize(os.path.join(self.export(translator, f'--quantization={kind}'), 'model.bin'))
            for kind in ('float32', 'int8')
        ]
        self.assertLess(sizes[1], sizes[0])

    def test_what_the_engine_has_not_is_refused_by_name(self):
        for family, kind in (('rnn', 'encoder of kind rnn'), ('conv', 'encoder of kind conv')):
            translator = make_translator(family, 1)
            with self.assertRaisesRegex(Exception, kind):
                export_ctranslate2.check_engine_has_it('folder', translator.config)

    def test_positions_reach_as_far_as_sources_do(self):
        translator = make_translator('transformer', self.random.randrange(1000))
        served = self.export(translator)
        longest = translator.config.decode.max_src_length
        source = [WORDS[0]] * longest
        found = ctranslate2.Translator(served, intra_threads=1).translate_batch([source], max_decoding_length=3)
        self.assertEqual(len(found), 1)
        self.assertTrue(np.isfinite(found[0].scores or [0.0]).all())

    def test_positions_reach_as_far_as_outputs_do(self):
        for ratio, places in ((0.5, 60 + 1), (3.0, 3 * 60 + 20 + 1)):
            decode = DecodeConfig(length_ratio=ratio, max_src_length=60)
            translator = make_translator('transformer', 1, decode=decode)
            spec = export_ctranslate2.make_spec(translator.model, translator.config)
            for side in (spec.encoder, spec.decoder):
                self.assertEqual(len(side.position_encodings.encodings), places)


if __name__ == '__main__':
    unittest.main()
