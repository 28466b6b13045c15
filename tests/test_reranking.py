"""mbr: utilities against sacreBLEU, and the choice among an autoregressive model's samples against a plain loop."""

import unittest

import numpy as np
import tensorflow as tf
from sacrebleu.metrics import BLEU, CHRF

from sequencing.decode_options import MBR_SAMPLES, options_for
from sequencing.errors import UserError
from sequencing.line_batches import Output
from sequencing.reranking import bleu_table, chrf_table, distinct, mean_utilities
from sequencing.translator import join
from tests.families import WORDS, make_translator
from tests.support import seeds, untraced


def mean_utility_by_hand(text, texts, metric):
    """Mean sentence score of a text against every other different text, by sacreBLEU."""
    others = sorted(set(texts) - {text})
    return sum(metric.sentence_score(text, [other]).score for other in others) / len(others)


class UtilityTest(unittest.TestCase):
    def setUp(self):
        self.random = seeds(self)

    def texts(self):
        words = [''.join(self.random.choices('abä\u4e2d.', k=self.random.randint(1, 6))) for _ in range(7)]
        lines = [' '.join(self.random.choices(words, k=self.random.randint(1, 9))) for _ in range(6)]
        return lines + ['', 'a', '  ab\tc  ', words[0]]

    def test_tables_are_sacrebleus(self):
        texts = self.texts()
        for table, metric in ((chrf_table(texts), CHRF()), (bleu_table(texts), BLEU(effective_order=True))):
            for row, text in zip(table, texts):
                want = [metric.sentence_score(text, [other]).score for other in texts]
                np.testing.assert_allclose(row, want, atol=1e-9)

    def test_means_leave_the_text_itself_out(self):
        texts = sorted(set(self.texts()))
        for utility, metric in (('chrf', CHRF()), ('bleu', BLEU(effective_order=True))):
            want = [mean_utility_by_hand(text, texts, metric) for text in texts]
            np.testing.assert_allclose(mean_utilities(texts, utility), want, atol=1e-9)
        self.assertEqual(mean_utilities(['alone']).tolist(), [100.0])

    def test_bleu_cuts_words_as_the_language_asks(self):
        texts = ['\u4e2d\u6587\u5b57', '\u4e2d\u6587', '\u6587\u5b57\u4e2d']
        metric = BLEU(effective_order=True, tokenize='zh')
        want = [mean_utility_by_hand(text, texts, metric) for text in texts]
        np.testing.assert_allclose(mean_utilities(texts, 'bleu', 'zh'), want)
        self.assertGreater(max(want), max(mean_utilities(texts, 'bleu')))

    def test_of_equal_texts_the_likeliest_stays(self):
        outputs = [Output(text, [], 1, score, score, False, None) for text, score in
                   (('a', -3.0), ('b', -1.0), ('a', -2.0), ('b', -4.0))]  # fmt: skip
        self.assertEqual([(o.translation, o.score) for o in distinct(outputs)], [('a', -2.0), ('b', -1.0)])


class SampledTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        self.translator = make_translator('rnn', self.random.randrange(1000), sharpen=2.0)
        self.lines = [' '.join(self.random.choices(WORDS, k=self.random.randint(1, 6))) for _ in range(5)]

    def test_the_choice_is_that_of_a_loop_over_samples(self):
        lines, given = self.lines, dict(max_length=7, seed=5)
        samples = list(self.translator.stream(lines, decode='sample', nbest=9, **given))
        for utility, metric in (('chrf', CHRF()), ('bleu', BLEU(effective_order=True))):
            found = list(self.translator.stream(lines, decode='mbr', ntr=9, nbest=9, utility=utility, **given))
            for result, drawn in zip(found, samples):
                texts = [output.translation for output in drawn.outputs]
                self.assertEqual(result.candidates, 9)
                self.assertEqual({output.translation for output in result.outputs}, set(texts))
                self.assertLen(result.outputs, len(set(texts)))
                if len(set(texts)) == 1:
                    continue
                want = {text: mean_utility_by_hand(text, texts, metric) for text in texts}
                for output in result.outputs:
                    self.assertNear(output.rank_score, want[output.translation], 1e-6)
                    likeliest = max(o.score for o in drawn.outputs if o.translation == output.translation)
                    self.assertNear(output.score, likeliest, 1e-5)
                self.assertNear(want[result.outputs[0].translation], max(want.values()), 1e-6)

    def test_a_line_gets_the_same_in_any_batch_and_its_score_is_the_scorers(self):
        given = dict(decode='mbr', ntr=6, max_length=7)
        found = list(self.translator.stream(self.lines, **given))
        alone = list(self.translator.stream(self.lines[::-1], batch_tokens=1, **given))[::-1]
        tokens = [result.outputs[0].tokens for result in found]
        for got, want, score in zip(alone, found, self.translator.score(self.lines, tokens)):
            self.assertEqual(got.outputs[0].translation, want.outputs[0].translation)
            self.assertNear(got.outputs[0].rank_score, want.outputs[0].rank_score, 1e-6)
            self.assertNear(want.outputs[0].score, score, 1e-5 * max(1, abs(score)))

    @untraced()
    def test_a_source_is_read_once_for_all_its_candidates(self):
        sources = [self.lines[0], self.lines[1], self.lines[0], self.lines[0], self.lines[1], '']
        targets = [' '.join(self.random.choices(WORDS, k=self.random.randint(1, 6))) for _ in sources]
        for family in ('rnn', 'transformer', 'conv', 'ava'):
            translator = make_translator(family, self.random.randrange(1000), sharpen=2.0)
            alone = [translator.score([s], [t])[0] for s, t in zip(sources, targets)]
            read, encode = [], translator.model.encode
            translator.model.encode = lambda ids, *rest: read.append(len(ids)) or encode(ids, *rest)
            got = translator.score(sources, targets)
            self.assertEqual(read, [len(set(sources))], family)
            self.assertAllClose(got, alone, 1e-4, 1e-4)
        joined = join(['one', 'two'], [translator, translator])
        self.assertAllClose(joined.score(sources, targets), alone, 1e-4, 1e-4)

    def test_options(self):
        model, config = self.translator.model, self.translator.config
        self.assertEqual(options_for(model, config, decode='mbr').ntr, MBR_SAMPLES)
        self.assertEqual(options_for(model, config, decode='mbr', ntr=3).ntr, 3)
        with self.assertRaisesRegex(UserError, 'utility is one of'):
            options_for(model, config, decode='mbr', utility='ter')
        with self.assertRaisesRegex(UserError, 'npd is not a mode of this model.*beam, greedy, sample, mbr'):
            options_for(model, config, decode='npd', rescore_model='x')


if __name__ == '__main__':
    unittest.main()
