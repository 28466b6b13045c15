"""Ensembles, prefixes, shortlists and averaged checkpoints as a user meets them: commands on model folders."""

import json
import os
import tempfile

import numpy as np
import tensorflow as tf

import nmt_infer
import sequencing
from tests.families import WORDS, make_translator, save_translator
from tests.support import run_tool, seeds
from tools import average_checkpoints, make_shortlist


class SteeringCommandTest(tf.test.TestCase):
    """Two folders of models with random weights serve all tests."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = cls.scratch.name
        draw = seeds(cls('test_an_ensemble_of_folders_is_that_of_its_models'))
        cls.models = {'rnn': [], 'transformer': []}
        for family, translators in cls.models.items():
            for number in (3, 5, 8):
                translators.append(make_translator(family, draw.randrange(1000), sharpen=1.5))
                save_translator(translators[-1], cls.path(family), number)

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()
        super().tearDownClass()

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder, name)

    def write(self, name, text):
        with open(self.path(name), 'w') as file:
            file.write(text)
        return self.path(name)

    def infer(self, folders, *arguments, decode='greedy'):
        folders = ','.join(map(self.path, folders))
        return run_tool(nmt_infer.main, f'--model_dir={folders}', f'--decode={decode}', '--max_length=6', *arguments)

    def test_an_ensemble_of_folders_is_that_of_its_models(self):
        source = self.write('e.src', 'a b c\nd\n\nh g f e\n')
        code, out, err = self.infer(['rnn', 'transformer'], f'--test_src={source}', '--format=jsonl')
        self.assertEqual(code, 0, err)
        found = [json.loads(line) for line in out.splitlines()]
        self.assertEqual((len(found), found.pop(2)['translation']), (4, ''))
        joined = sequencing.load([self.path('rnn'), self.path('transformer')])
        scores = joined.score(['a b c', 'd', 'h g f e'], [value['tokens'] for value in found])
        for value, score in zip(found, scores):
            self.assertNear(value['score'], score, 1e-5 * max(1, abs(score)))

    def test_what_cannot_be_joined_is_refused(self):
        other = make_translator('rnn', 1)
        other.trg_vocab = sequencing.Vocab(list('abcdefgz'))
        save_translator(other, self.path('other'))
        source = '--test_src=' + self.write('r.src', 'a\n')
        for folders, flag, told in (
            (['rnn', 'other'], '--seed=1', 'differ in their target vocabulary'),
            (['rnn', 'gone'], '--seed=1', 'no such model folder'),
            (['rnn', 'transformer'], f'--checkpoint={self.path("rnn")}/ckpt-3', 'several model folders'),
        ):
            code, _, err = self.infer(folders, source, flag)
            self.assertEqual((code, len(err.strip().splitlines())), (2, 1), err)
            self.assertIn(told, err)

    def test_prefixes_come_from_a_file(self):
        source, begun = self.write('p.src', 'a b\nc\nd e\n'), self.write('p.trg', 'g h\n\nf f f f f f f f\n')
        code, out, err = self.infer(['rnn'], f'--test_src={source}', f'--prefix_file={begun}', decode='beam')
        self.assertEqual(code, 0, err)
        lines = out.splitlines()
        self.assertStartsWith(lines[0], 'g h')
        self.assertEqual(lines[2], 'f f f f f f')
        self.assertIn('line 3: its prefix is longer than --max_length', err)
        code, _, err = self.infer(['rnn'], f'--test_src={source}', '--prefix_file=' + self.write('q.trg', 'a\nb\n'))
        self.assertEqual(code, 2)
        self.assertIn('2 lines', err)
        self.assertIn('3', err.split('has')[-1])

    def test_a_shortlist_is_made_from_text_and_read(self):
        draw = seeds(self)
        lexicon = dict(zip(WORDS, draw.sample(WORDS, 8)))
        pairs = []
        for _ in range(60):
            words = draw.choices(WORDS, k=draw.randint(1, 5))
            pairs.append((' '.join(words), ' '.join(draw.sample([lexicon[word] for word in words], len(words)))))
        source, target = (
            self.write(name, '\n'.join(side) + '\n') for name, side in zip(('l.src', 'l.trg'), zip(*pairs))
        )
        made = self.path('lex')
        code, _, err = run_tool(
            make_shortlist.main, f'--model_dir={self.path("rnn")}', f'--src={source}', f'--trg={target}',
            f'--output_file={made}', '--iterations=8',
        )  # fmt: skip
        self.assertEqual(code, 0, err)
        test = self.write('s.src', 'a b\nc\n')
        code, out, err = self.infer(['rnn'], f'--test_src={test}', f'--shortlist={made}', '--shortlist_best=1',
                                    '--shortlist_frequent=0', '--format=jsonl', '--nbest=4',
                                    decode='sample')  # fmt: skip
        self.assertEqual(code, 0, err)
        for line, words in zip(out.splitlines(), ('ab', 'c')):
            for output in json.loads(line)['nbest']:
                may = {lexicon[word] for word in words} | {'<unk>', '<pad>', '<s>'}
                self.assertLessEqual(set(output['tokens']), may)

    def test_model_1_is_that_of_plain_loops(self):
        random = np.random.default_rng(seeds(self).randrange(2**31))
        pairs = [(random.integers(0, 5, random.integers(1, 5)), random.integers(0, 7, random.integers(1, 4)))
                 for _ in range(9)]  # fmt: skip
        sources, targets, probs = make_shortlist.ibm_model_1(pairs, 7, iterations=4)
        t = {(x, y): 1.0 for source, target in pairs for x in [-1, *source] for y in target}
        for _ in range(4):
            counts = dict.fromkeys(t, 0.0)
            for source, target in pairs:
                for y in target:
                    whole = sum(t[x, y] for x in [-1, *source])
                    for x in [-1, *source]:
                        counts[x, y] += t[x, y] / whole
            t = {(x, y): c / sum(v for (s, _), v in counts.items() if s == x) for (x, y), c in counts.items()}
        self.assertEqual(set(zip(sources, targets)), set(t))
        self.assertAllClose(probs, [t[pair] for pair in zip(sources, targets)], rtol=1e-6)

    def test_averaged_checkpoints_make_a_model_folder(self):
        folder = self.path('transformer')
        for flags, numbers in (
            (['--last=2'], (1, 2)),
            ([f'--checkpoints={folder}/ckpt-3,{folder}/ckpt-8'], (0, 2)),
        ):
            output = self.path(f'average{numbers[0]}')
            code, _, err = run_tool(average_checkpoints.main, f'--model_dir={folder}', f'--output_dir={output}', *flags)
            self.assertEqual(code, 0, err)
            want = make_translator('transformer', 0)
            both = [self.models['transformer'][i].model.variables for i in numbers]
            for variable, *values in zip(want.model.variables, *both):
                variable.assign(np.mean([value.numpy() for value in values], axis=0))
            source = self.write('a.src', 'a b c\nh\n')
            code, out, err = run_tool(nmt_infer.main, f'--model_dir={output}', f'--test_src={source}', '--max_length=6')
            self.assertEqual(code, 0, err)
            self.assertEqual(out.splitlines(), want.translate(['a b c', 'h'], max_length=6))
            with open(os.path.join(output, 'manifest.json')) as file:
                self.assertLen(json.load(file)['averaged_from'], 2)

    def test_mistakes_in_averaging_are_told(self):
        model, output = f'--model_dir={self.path("rnn")}', f'--output_dir={self.path("new")}'
        for arguments, told in (
            ((model, output), 'which checkpoints'),
            ((model, output, '--last=2', '--checkpoints=best'), 'which checkpoints'),
            ((model, output, '--last=4'), 'keeps 3 checkpoints'),
            ((model, output, '--checkpoints=gone'), '--checkpoint'),
            ((model, f'--output_dir={self.folder}', '--last=1'), 'there already'),
            ((output, '--last=1'), '--model_dir is required'),
            ((model, output, f'--checkpoints={self.path("transformer")}/ckpt-3'), 'cannot be loaded: it has no model/'),
        ):
            code, _, err = run_tool(average_checkpoints.main, *arguments)
            self.assertEqual(code, 2, (arguments, err))
            self.assertIn(told, err)
            self.assertFalse(os.path.exists(self.path('new')))

    def test_help_shows_a_command(self):
        for tool in (average_checkpoints, make_shortlist):
            code, out, _ = run_tool(tool.main, '--help')
            self.assertEqual(code, 0)
            self.assertIn('python tools/', out)


if __name__ == '__main__':
    tf.test.main()
