"""Flow models as a user meets them: a model folder, lines of text, every decoding mode; random weights."""

import contextlib
import io
import json
import os
import tempfile
import unittest

import numpy as np
import tensorflow as tf
from sacrebleu.metrics import BLEU, CHRF

import nmt_infer
from sequencing.decode_options import DecodeOptions
from sequencing.errors import UserError
from sequencing.translator import Translator, load, pad
from sequencing.vocab import Vocab
from tests.families import make_translator, save_translator
from tests.flow_support import tiny_flow_model
from tests.support import run_tool, seeds
from tests.test_commands import ODD
from tests.test_reranking import mean_utility_by_hand
from tools import score

TOKENS, REACH = 23, 5
CANDIDATES = dict(nlen=3, ntr=2, tau=0.8, seed=7)
MODES = dict(
    argmax=dict(decode='argmax'),
    iw=dict(decode='iw', nbest=6, iw_k=2, **CANDIDATES),
    sample=dict(decode='sample', nbest=6, **CANDIDATES),
    npd=dict(decode='npd', nbest=6, **CANDIDATES),
    mbr=dict(decode='mbr', nbest=6, **CANDIDATES),
)


class FlowTranslationTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = cls.scratch.name
        cls.flow, cls.scoring = os.path.join(cls.folder, 'flow'), os.path.join(cls.folder, 'scoring')
        random = seeds(cls('test_every_promised_field'))
        model, config, vocab = tiny_flow_model(random, tokens=TOKENS)
        save_translator(Translator(model, config, vocab, vocab), cls.flow)
        # The model that scores reads and writes characters.
        other = make_translator('rnn', random.randrange(1000), sharpen=3.0, vocab=Vocab(list('w 0123456789'), ''))
        save_translator(other, cls.scoring)
        cls.translator, cls.scorer = load(cls.flow), load(cls.scoring)

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()
        super().tearDownClass()

    def setUp(self):
        super().setUp()
        self.random = seeds(self)
        self.lines = [self.line(count) for count in (1, 8, 3, 5, 2)]

    def line(self, words):
        return ' '.join(f'w{self.random.randrange(TOKENS)}' for _ in range(words))

    def options(self, mode):
        return {**MODES[mode], **({'rescore_model': self.scoring} if mode == 'npd' else {})}

    def stream(self, lines, mode, **changes):
        return list(self.translator.stream(lines, **{**self.options(mode), **changes}))

    def write(self, name, content):
        path = os.path.join(self.folder, name)
        with open(path, 'wb') as file:
            file.write(content if isinstance(content, bytes) else ''.join(f'{x}\n' for x in content).encode())
        return path

    def infer(self, *arguments):
        return run_tool(nmt_infer.main, f'--model_dir={self.flow}', *arguments)

    def candidates(self, lines):
        """All candidates of npd and mbr, without what ranks them: for each line, text to log p(y | z, x)."""
        ids, mask = pad([np.append(self.translator.src_vocab.encode(line), 3) for line in lines], 0)
        options, limits = DecodeOptions(decode='mbr', **CANDIDATES), tf.fill([len(lines)], 99)
        found = self.translator.model.translate(tf.constant(ids), tf.constant(mask), limits, options)
        results = []
        for row in range(len(lines)):
            texts = {}
            for place in np.flatnonzero(np.isfinite(found.scores[row])):
                chosen = found.ids[row, place].numpy()[: int(found.lengths[row, place])]
                text = ' '.join(self.translator.trg_vocab.tokens[i] for i in chosen if i > 3)
                texts[text] = max(texts.get(text, -np.inf), float(found.scores[row, place]))
            results.append(texts)
        return results

    def scores_by_hand(self, line, texts):
        """text to log p(text | line) by the model that scores, walked a step at a time."""
        model, vocab = self.scorer.model, self.scorer.trg_vocab
        src = tf.constant([[*vocab.encode(line), vocab.eos_id]] * len(texts))
        targets = [[*vocab.encode(text), vocab.eos_id] for text in texts]
        memory, state = model.start(src, tf.ones_like(src, tf.bool), 1, 99)
        tokens, totals = [vocab.bos_id] * len(texts), [0.0] * len(texts)
        for time in range(max(map(len, targets))):
            logits, state, _ = model.step(tf.constant(tokens)[:, tf.newaxis], state, memory, time)
            logits = logits[:, 0].numpy().astype(np.float64)
            for row, target in enumerate(targets):
                if time < len(target):
                    tokens[row] = target[time]
                    totals[row] += logits[row, target[time]] - np.logaddexp.reduce(logits[row])
        return dict(zip(texts, totals))

    def test_a_line_gets_the_same_in_any_batch(self):
        order = self.random.sample(range(5), 5)
        for mode in MODES:
            with self.subTest(mode):
                whole = self.stream(self.lines, mode)
                shuffled = self.stream([self.lines[i] for i in order], mode, batch_tokens=90)
                alone = self.stream(self.lines, mode, batch_tokens=1)
                for got, want in [*zip(alone, whole), *((shuffled[at], whole[i]) for at, i in enumerate(order))]:
                    self.assertEqual(got.candidates, want.candidates)
                    self.assertLen(got.outputs, len(want.outputs))
                    for a, b in zip(got.outputs, want.outputs):
                        self.assertEqual((a.tokens, a.span), (b.tokens, b.span))
                        for field in ('score', 'rank_score', 'length_log_prob'):
                            value = getattr(b, field)
                            self.assertNear(getattr(a, field), value, 1e-4 * max(1, abs(value)))

    def test_batches_shrink_with_the_candidates(self):
        sizes, decode = [], self.translator._decode
        self.translator._decode = lambda sources, *rest: sizes.append(
            len(sources) * (max(map(len, sources)) + 1)) or decode(sources, *rest)  # fmt: skip
        try:
            lines = [self.line(4) for _ in range(24)]
            for mode, rows in (('argmax', 1), ('sample', 6), ('iw', 12), ('mbr', 6)):
                sizes.clear()
                self.stream(lines, mode, batch_tokens=120)
                self.assertEqual(sizes, [120 // rows] * rows, mode)
        finally:
            del self.translator._decode

    def scored(self, results, **options):
        """Pairs of all outputs of the lines and their scores by the scorer, in an order and in batches of its own."""
        pairs = [(line, output) for line, result in zip(self.lines, results) for output in result.outputs]
        self.random.shuffle(pairs)
        outputs = [output for _, output in pairs]
        given = [[getattr(output, name) for output in outputs] for name in ('tokens', 'span', 'sample')]
        scores = self.translator.score([line for line, _ in pairs], *given, **options, batch_tokens=150)
        return list(zip(outputs, scores))

    def test_scores_are_the_scorers(self):
        modes = dict(MODES, noisy=dict(decode='argmax', tau=0.8, ntr=3), chosen=MODES['mbr'])
        for mode, limit in [*((mode, 0) for mode in modes), ('argmax', 2), ('sample', 2), ('iw', 2)]:
            with self.subTest(mode, limit=limit):
                rescored = dict(rescore_model=self.scoring) if mode in ('npd', 'chosen') else {}
                options = {**modes[mode], 'seed': self.random.randrange(2**31), **rescored}
                results = list(self.translator.stream(self.lines, **options, max_length=limit))
                pairs = self.scored(results, **options)
                for output, value in pairs:
                    self.assertNear(output.score, value, 1e-5 * max(1, abs(value)))
                    if mode == 'iw':
                        self.assertNear(output.rank_score, output.score / output.span, 1e-5)
                if limit:
                    self.assertTrue(any(output.output_truncated for output, _ in pairs))
                    self.assertLessEqual(max(output.length for output, _ in pairs), limit)
                if mode in ('noisy', 'sample', 'iw'):  # the seed, or the latent, tells in the score
                    others = self.scored(results, **{**options, 'seed': (options['seed'] + 1) % 2**31})
                    self.assertNotAllClose(sorted(x for _, x in others), sorted(x for _, x in pairs), 1e-5, 1e-5)
        self.assertLen(self.translator._scorers, 5)  # neither a seed nor a latent's number makes a trace
        with self.assertRaisesRegex(UserError, 'with --tau above 0 a score belongs to the latent'):
            self.translator.score(self.lines, self.lines, decode='sample', tau=0.5)
        with self.assertRaisesRegex(UserError, "'w1' is no piece of the target vocabulary"):
            self.scorer.score(['w1'], [['w', 'w1']])

    def test_npd_ranks_by_the_other_model(self):
        results = self.stream(self.lines, 'npd')
        for line, result, texts in zip(self.lines, results, self.candidates(self.lines)):
            want = self.scores_by_hand(line, texts)
            self.assertEqual({output.translation for output in result.outputs}, set(want))
            self.assertLen(result.outputs, len(want))
            for output in result.outputs:
                value = want[output.translation]
                self.assertNear(output.score, value, 1e-4 * max(1, abs(value)))
                self.assertEqual(output.rank_score, output.score)
            best = max(want.values())
            self.assertNear(want[result.outputs[0].translation], best, 1e-4 * max(1, abs(best)))
        penalised = self.stream(self.lines[:1], 'npd', length_penalty=1.0)[0]
        for output in penalised.outputs:
            pieces = len(self.scorer.trg_vocab.encode(output.translation))  # of the model that scores
            self.assertNear(output.rank_score, output.score * 6 / (5 + pieces), 1e-5 * abs(output.score))

    def test_mbr_ranks_by_agreement(self):
        requests = (({}, CHRF()), (dict(utility='bleu'), BLEU(effective_order=True)),
                    (dict(rescore_model=self.scoring), CHRF()))  # fmt: skip
        candidates = self.candidates(self.lines)
        for changes, metric in requests:
            for line, result, texts in zip(self.lines, self.stream(self.lines, 'mbr', **changes), candidates):
                self.assertEqual({output.translation for output in result.outputs}, set(texts))
                if len(texts) == 1:
                    continue
                want = {text: mean_utility_by_hand(text, texts, metric) for text in texts}
                self.assertNear(want[result.outputs[0].translation], max(want.values()), 1e-6)
                scores = self.scores_by_hand(line, texts) if changes.get('rescore_model') else texts
                for output in result.outputs:
                    value = scores[output.translation]
                    self.assertNear(output.rank_score, want[output.translation], 1e-6)
                    self.assertNear(output.score, value, 1e-4 * max(1, abs(value)))

    def test_every_promised_field(self):
        source = self.write('fields.src', self.lines + [''])
        target = os.path.join(self.folder, 'fields.jsonl')
        noise = '--decode=sample', '--tau=0.8', '--seed=7', '--nbest=8'
        code, out, err = self.infer(f'--test_src={source}', f'--output_file={target}', '--nlen=4', '--ntr=2',
                                    '--format=jsonl', *noise)  # fmt: skip
        self.assertEqual((code, out, err.count('fewer lengths')), (0, '', 1), err)
        with open(target) as file:
            values = [json.loads(line) for line in file]
        for value, result in zip(values, self.stream(self.lines, 'sample', nlen=4, nbest=8)):
            src = len(result.source_tokens) + 1
            lengths = [n for n in range(2, src + REACH + 1, 2) if n >= src - REACH]
            self.assertEqual(value['candidates'], 2 * min(4, len(lengths)))
            self.assertLen(value['nbest'], value['candidates'])
            self.assertLen({output['span'] for output in value['nbest']}, value['candidates'] // 2)
            for got, want in zip(value['nbest'], result.outputs):
                self.assertEqual((got['tokens'], got['span'], got['sample']), (want.tokens, want.span, want.sample))
                self.assertIn(got['span'], lengths)
                self.assertNear(got['length_log_prob'], want.length_log_prob, 1e-4)
                self.assertLess(got['length_log_prob'], 0)
            self.assertLen({(output['span'], output['sample']) for output in value['nbest']}, value['candidates'])
        self.assertEqual((values[5]['translation'], values[5]['candidates']), ('', 0))
        arguments = f'--hypothesis={target}', f'--test_src={source}', f'--model_dir={self.flow}'
        code, out, err = run_tool(score.main, *arguments, *noise)
        self.assertEqual((code, err), (0, ''))
        for text, value in zip(out.split('\n'), values):
            wanted = [output['score'] for output in value['nbest']]
            self.assertAllClose([float(x) for x in text.split()], wanted, 1e-5, 1e-5)
        code, out, err = self.infer(f'--test_src={source}', f'--output_file={target}', '--format=jsonl')
        self.assertEqual((code, err), (0, ''))
        with open(target) as file:
            values = [json.loads(line) for line in file]
        self.assertEqual({value['candidates'] for value in values}, {0, 1})
        code, out, err = run_tool(score.main, *arguments)
        self.assertEqual((code, err), (0, ''))
        for text, value in zip(out.split(), values, strict=True):
            self.assertNear(float(text), value['score'], 2e-5 * max(1, abs(value['score'])))

    def test_every_line_has_its_answer(self):
        source = self.write('odd.src', ODD.replace(b'a b c', b'w1 w2 w3') + b'\n' + b'w1 ' * 10_000)
        for options in (dict(decode='argmax'), dict(decode='npd', rescore_model=self.scoring, nlen=2)):
            flags = [f'--{name}={value}' for name, value in options.items()]
            code, out, err = self.infer(f'--test_src={source}', '--max_length=9', *flags)
            self.assertEqual(code, 0, err)
            lines = out.encode().split(b'\n')
            self.assertLen(lines, 10)
            self.assertEqual(lines[1:3] + lines[9:], [b'', b'', b''])
            self.assertIn('2 lines held bytes that are not UTF-8', err)
            self.assertIn('line 9: longer than the model reads', err)
            rescored = options['decode'] == 'npd'
            self.assertEqual(err.count('line 9: longer than the model of --rescore_model reads'), rescored, err)
            self.assertEqual(err.count('longer than the model of'), rescored, err)
            self.assertEqual([lines[0].decode()], self.translator.translate(['w1 w2 w3'], max_length=9, **options))

    def test_shapes_that_nobody_tried(self):
        lines = ['w1', '', self.line(260)]
        for mode in MODES:
            with self.subTest(mode):
                results = self.stream(lines, mode, max_length=500)
                self.assertEqual(results[1].outputs[0].translation, '')
                for line, result in zip(lines, results):
                    self.assertTrue(np.isfinite(result.outputs[0].score), mode)
                    self.assertLessEqual(result.outputs[0].length, len(line.split()) + 1 + REACH)
        result, most = self.stream(lines[:1], 'sample', nlen=10**6, ntr=1)[0], {2, 4, 6}
        self.assertEqual((result.candidates, result.candidates_missing), (len(most), 10**6 - len(most)))
        self.assertEqual({output.span for output in result.outputs}, most)

    def test_lengths_that_cannot_be_told(self):
        targets, said = [self.line(4), self.line(20)], io.StringIO()
        with contextlib.redirect_stderr(said):
            scores = self.translator.score(self.lines[:1] * 2, targets, **self.options('iw'))
        self.assertTrue(np.isfinite(scores[0]))
        self.assertEqual(scores[1], -np.inf)
        self.assertIn('1 of 2 targets have a length that the length predictor cannot tell', said.getvalue())

    def test_options_that_change_nothing_are_told(self):
        source = self.write('one.src', ['w1'])
        for flags, told in (
            (['--decode=argmax', '--ntr=2', '--tau=0.3'], []),
            (['--decode=iw', '--nlen=2', '--iw_k=2'], []),
            (['--decode=argmax', '--nlen=2', '--beam_size=3'], ['--beam_size is not', '--nlen is not']),
            (['--decode=argmax', '--ntr=2'], ['--ntr 2 without --tau']),
            (['--decode=sample', '--nlen=2', '--temperature=0.5', '--utility=bleu'], ['--temperature', '--utility']),
        ):
            code, _, err = self.infer(f'--test_src={source}', *flags)
            self.assertEqual(code, 0, err)
            notes = [line for line in err.splitlines() if 'is not read by' in line or 'without' in line]
            self.assertEqual(len(notes), len(told), err)
            for note, beginning in zip(notes, told):
                self.assertTrue(note.startswith(beginning), note)

    def test_refusals(self):
        source = self.write('one.src', ['w1'])
        modes = 'it has argmax, sample, iw, npd, mbr'
        for flags, told in (
            (['--decode=beam'], modes),
            (['--decode=npd'], '--decode npd needs --rescore_model'),
            (['--decode=npd', f'--rescore_model={self.flow}'], 'is a flow model'),
            (['--decode=mbr', f'--rescore_model={self.folder}/gone'], 'no such model folder'),
            (['--decode=mbr', '--utility=ter'], "utility is one of 'chrf', 'bleu'"),
        ):
            code, out, err = self.infer(f'--test_src={source}', *flags)
            self.assertEqual((code, out), (2, ''), (flags, err))
            self.assertIn(told, err)
            self.assertEqual(err.count('\n'), 1, err)
        with self.assertRaisesRegex(UserError, 'needs --rescore_model'):
            self.translator.translate(['w1'], decode='npd')


if __name__ == '__main__':
    unittest.main()
