"""The two scripts as a user meets them: every mistake has one message and exit code 2, every line its answer."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest

from absl import flags

import nmt_infer
import nmt_train
from sequencing.config import Config
from sequencing.config_files import load_config
from sequencing.options import from_dict, override, to_dict
from tests.support import run_tool, seeds
from tests.toy import ROOT, write_task
from tools import plot_attention, score

ODD = (
    b'\xef\xbb\xbfa b c\r\n'  # a byte order mark, and an end of line of Windows
    b'\n   \n'
    b'never seen\n'
    b'a \xff b\n'  # not UTF-8
    b'a \x00 b\n'
    b'a\xe2\x80\xa8b \x0c \xc2\x85 c\n'  # a line separator, a form feed, a next line: none of them ends a line
    b'a b'  # no final end of line
)
NO_DEV = ('--set=data.dev_src=', '--set=data.dev_trg=[]')


class CommandTest(unittest.TestCase):
    """One tiny training serves all tests of what comes after it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = cls.scratch.name
        cls.config = write_task(os.path.join(cls.folder, 'data'), 'copy', seeds(cls('test_setup')))
        cls.model_dir = os.path.join(cls.folder, 'model')
        cls.cache = f'--set=data.cache_dir={cls.folder}/cache'
        cls.trained = cls.train('--restart')  # of what is not there yet

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()
        super().tearDownClass()

    @classmethod
    def train(cls, *more):
        common = ('--config=config_toy', f'--config_file={cls.config}', f'--model_dir={cls.model_dir}', cls.cache)
        return run_tool(nmt_train.main, *common, *more)

    def write(self, name, data):
        path = os.path.join(self.folder, name)
        with open(path, 'wb') as file:
            file.write(data)
        return path

    def infer(self, *arguments):
        return run_tool(nmt_infer.main, f'--model_dir={self.model_dir}', *arguments)

    def test_setup(self):
        code, out, _ = self.trained
        self.assertEqual(code, 0)
        self.assertRegex(out, r'step 10 .*target tokens/s .*ETA')
        self.assertRegex(out, r'BLEU = [\d.]+ \(nrefs:1\|case:mixed.*version:')
        self.assertRegex(out, r'chrF2 = [\d.]+ \(nrefs')
        for name in ('config.json', 'manifest.json', 'vocab', 'checkpoint', 'best', 'tensorboard', 'translations'):
            self.assertTrue(os.path.exists(os.path.join(self.model_dir, name)), name)

    def test_every_line_has_its_answer(self):
        source, target = self.write('odd.src', ODD), os.path.join(self.folder, 'odd.out')
        code, _, err = self.infer(f'--test_src={source}', f'--output_file={target}', '--decode=greedy')
        self.assertEqual(code, 0, err)
        with open(target, 'rb') as file:
            lines = file.read().split(b'\n')
        self.assertEqual(len(lines), 9)
        self.assertEqual(lines[1:3] + lines[8:], [b'', b'', b''])
        self.assertIn('2 lines held bytes that are not UTF-8', err)
        alone = self.write('alone.src', b'a b c\n')
        code, out, _ = self.infer(f'--test_src={alone}', '--decode=greedy')
        self.assertEqual(out.encode(), lines[0] + b'\n')

    def test_an_empty_input_gives_an_empty_output(self):
        code, out, _ = self.infer('--test_src=' + self.write('empty.src', b''))
        self.assertEqual((code, out), (0, ''))

    def test_long_lines_are_cut_and_that_is_said(self):
        source = self.write('long.src', b'a ' * 10_000 + b'\nb\n')
        code, out, err = self.infer(f'--test_src={source}', '--decode=greedy', '--max_length=3', '--format=jsonl')
        self.assertEqual(code, 0)
        first, second = map(json.loads, out.splitlines())
        self.assertTrue(first['source_truncated'])
        self.assertFalse(second['source_truncated'])
        self.assertIn('line 1: longer than the model reads', err)

    def test_json_lines_hold_what_was_promised_and_scores_agree_with_the_scorer(self):
        source = self.write('json.src', b'a b c\nd e\n')
        target = os.path.join(self.folder, 'out.jsonl')
        code, _, _ = self.infer(f'--test_src={source}', f'--output_file={target}', '--format=jsonl', '--beam_size=3',
                                '--nbest=3', '--attention')  # fmt: skip
        self.assertEqual(code, 0)
        with open(target) as file:
            values = [json.loads(line) for line in file]
        for value in values:
            self.assertLessEqual(
                {'translation', 'tokens', 'length', 'score', 'rank_score', 'source_truncated', 'output_truncated',
                 'nbest', 'attention'}, set(value))  # fmt: skip
            self.assertEqual(value['length'], len(value['tokens']))
            self.assertEqual(len(value['attention']), value['length'])
            for row in value['attention']:
                self.assertEqual(len(row), len(value['source_tokens']) + 1)
                self.assertAlmostEqual(sum(row), 1.0, places=3)
            ranks = [output['rank_score'] for output in value['nbest']]
            self.assertEqual(ranks, sorted(ranks, reverse=True))
        model = f'--model_dir={self.model_dir}'
        code, out, _ = run_tool(score.main, f'--hypothesis={target}', f'--test_src={source}', model)
        self.assertEqual(code, 0)
        for got, value in zip(out.split(), values):
            self.assertAlmostEqual(float(got), value['score'], delta=2e-5 * max(1, abs(value['score'])))

    def test_standard_input_and_output_work_in_a_pipe(self):
        command = [sys.executable, os.path.join(ROOT, 'nmt_infer.py'), f'--model_dir={self.model_dir}']
        done = subprocess.run(command, input=b'a b\n\nc\n', capture_output=True, cwd=ROOT)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.split(b'\n')
        self.assertEqual((len(lines), lines[1], lines[3]), (4, b'', b''))
        self.assertEqual(done.stderr, b'')

    def test_scores_against_references_go_to_standard_error(self):
        source, target = self.write('s.src', b'a b c d\nb c\n'), self.write('s.trg', b'a b c d\nb c\n')
        code, out, err = self.infer(f'--test_src={source}', f'--test_trg={target}')
        self.assertEqual((code, len(out.splitlines())), (0, 2))
        self.assertRegex(err, r'BLEU = [\d.]+ \(.*version')
        code, out, _ = run_tool(score.main, f'--hypothesis={source}', f'--test_trg={target}')
        self.assertEqual(code, 0)
        self.assertRegex(out, r'BLEU = 100')

    def test_what_the_scorer_cannot_read_is_refused(self):
        reference = self.write('r.trg', b'a\n')
        for line in ('[]', '{"translation": "a"}', '{"translation": "a", "tokens": 5}',
                     '{"translation": "a", "tokens": "a"}', '{"translation": "a", "tokens": ["a"], "span": null}',
                     '{"translation": "a", "tokens": ["a"], "sample": "x"}'):  # fmt: skip
            wrong = self.write('wrong.jsonl', line.encode() + b'\n')
            code, _, err = run_tool(score.main, f'--hypothesis={wrong}', f'--test_trg={reference}')
            self.assertEqual(code, 2, line)
            self.assertIn('line 1: not an object with translation and tokens', err)
        code, _, err = run_tool(score.main, f'--hypothesis={reference}', f'--test_trg={reference}', '--nbest=2')
        self.assertEqual(code, 2)
        self.assertIn('--nbest 2 needs JSON lines', err)

    def test_a_picture_of_attention_is_drawn(self):
        path = os.path.join(self.folder, 'attention.png')
        code, _, err = run_tool(plot_attention.main, f'--model_dir={self.model_dir}', '--sentence=a b c d e',
                           f'--output_file={path}')  # fmt: skip
        if code:  # an untrained model may answer with nothing, and then there is nothing to draw
            self.assertIn('its translation is empty', err)
        else:
            with open(path, 'rb') as file:
                self.assertEqual(file.read(4), b'\x89PNG')

    def test_mistakes_in_translating_are_told(self):
        model, good = f'--model_dir={self.model_dir}', '--test_src=' + self.write('good.src', b'a\n')
        gone = os.path.join(self.folder, 'gone')
        newer = os.path.join(self.folder, 'newer')
        os.makedirs(newer)
        for name, text in (('config.json', '{}'), ('manifest.json', '{"format": 99}')):
            self.write(f'newer/{name}', text.encode())
        for arguments, told in (
            ((), '--model_dir is required'),
            ((f'--model_dir={gone}',), 'no such model folder'),
            ((f'--model_dir={self.folder}',), 'not a model folder'),
            ((f'--model_dir={newer}',), 'format 99, newer'),
            ((model, '--test_src=' + gone), 'no such file'),
            ((model, '--test_src=' + self.folder), 'is a folder'),
            ((model, good, f'--output_file={gone}/x'), '--output_file'),
            ((model, good, f'--output_file={self.folder}/good.src'), 'the file of --test_src, too'),
            ((model, good, '--decode=argmax'), 'it has beam, greedy, sample'),
            ((model, good, '--beam_size=0'), 'beam_size'),
            ((model, good, '--beam_size=x'), 'beam_size'),
            ((model, good, '--nbest=9', '--beam_size=2', '--format=jsonl'), 'at most beam_size 2'),
            ((model, good, '--nbest=2'), '--nbest needs --format jsonl'),
            ((model, good, '--attention'), '--attention needs --format jsonl'),
            ((model, good, '--checkpoint=' + gone), '--checkpoint'),
            ((model, good, '--no_such_flag=1'), 'no_such_flag'),
            ((model, good, 'left'), "unexpected argument 'left'"),
            ((model, good, '--test_trg=' + self.write('long.trg', b'a\nb\n')), '2 lines'),
        ):
            code, _, err = run_tool(nmt_infer.main, *arguments)
            self.assertEqual(code, 2, (arguments, err))
            self.assertIn(told, err)
            self.assertEqual(len(err.strip().splitlines()), 1, err)

    def test_options_that_change_nothing_are_told(self):
        source = '--test_src=' + self.write('one.src', b'a\n')
        for asked, told in (
            (('--decode=beam', '--beam_size=2'), ()),
            (('--decode=sample', '--temperature=0.5', '--top_k=3', '--top_p=0.9'), ()),
            (('--decode=mbr', '--ntr=3', '--temperature=0.5', '--utility=bleu'), ()),
            (('--decode=greedy', '--beam_size=2', '--tau=0.1', '--iw_k=2'), ('beam_size', 'tau', 'iw_k')),
        ):
            code, _, err = self.infer(source, *asked)
            self.assertEqual(code, 0, err)
            self.assertEqual(err.count('is not read by --decode'), len(told), err)
            for name in told:
                self.assertIn(f'--{name} is not read by --decode greedy of this model', err)

    def test_a_field_that_there_is_not_is_told_with_those_that_there_are(self):
        own = self.write('own.py', (
            b'from sequencing.config import Config, TrainConfig\n'
            b'from sequencing.flow_config import FlowPriorConfig\n'
            b'def config_one():\n    return Config(train=TrainConfig(\n        learing_rate=1.0))\n'
            b'def config_two():\n    return FlowPriorConfig(zzz=1)\n'
            b'def config_three():\n    return dict(a=1).pop(b=2)\n'
        ))  # fmt: skip
        for name, told in (
            ('config_one', 'line 4: TrainConfig has no field learing_rate. Did you mean learning_rate? It has '),
            ('config_two', 'line 7: FlowPriorConfig has no field zzz. It has kind, '),
            ('config_three', 'line 9: TypeError: '),
        ):
            code, _, err = run_tool(nmt_train.main, f'--config={name}', f'--config_file={own}')
            self.assertEqual((code, err.count('\n')), (2, 1), err)
            self.assertIn(told, err)

    def test_mistakes_in_training_are_told_before_anything_is_made(self):
        data = os.path.join(self.folder, 'data')
        self.write('data/short.trg', b'a\nb\n')
        self.write('data/nothing', b'')
        self.write('bad_config.py', b'def config_bad():\n    return 1 / 0\n\ndef config_none():\n    return 3\n')
        for arguments, told in (
            (('--config=config_tou',), 'Did you mean config_toy?'),
            (('--set=train.max_step=3',), "Did you mean 'max_steps'?"),
            (('--set=model.encoder.dropout=1.5',), 'model.encoder.dropout'),
            (('--set=model.encoder.kind=rn',), 'model.encoder.kind is one of'),
            (('--set=train.max_steps',), '--set takes FIELD=VALUE'),
            (('--set=train.batch_size=many',), 'train.batch_size takes a whole number'),
            (('--set=data.corpora.0.src=gone',), 'no such file'),
            ((f'--set=data.corpora.0.src={data}',), 'is a folder'),
            (('--set=data.corpora.0.trg=short.trg',), 'train.src, line 3'),
            (('--set=data.corpora.0.src=nothing',), 'is empty'),
            (('--set=data.dev_src=gone',), 'no such file'),
            ((f'--config_file={self.folder}/gone.py',), 'no such file'),
            ((f'--config_file={self.folder}/bad_config.py', '--config=config_bad'), 'line 2: ZeroDivisionError'),
            ((f'--config_file={self.folder}/bad_config.py', '--config=config_none'), 'has to return'),
            (('--precision=float8',), 'precision'),
            (('--set=train.flow.reconstruction_steps=99999999',), 'train.flow.reconstruction_steps is the first part'),
            (('--set=model.encoder.kind=[1]',), 'model.encoder.kind is one of'),
            (('--device=TPU:9',), 'no such device'),
        ):
            fresh = os.path.join(self.folder, 'fresh')
            common = ['--config=config_toy', f'--config_file={self.config}', f'--model_dir={fresh}', self.cache]
            code, _, err = run_tool(nmt_train.main, *common, *arguments)
            self.assertEqual(code, 2, (arguments, err))
            self.assertIn(told, err)
            self.assertFalse(os.path.exists(os.path.join(fresh, 'config.json')), arguments)
            self.assertFalse(os.path.exists(os.path.join(fresh, 'checkpoint')), arguments)

    def test_going_on_with_another_configuration_is_refused_where_it_cannot_be(self):
        code, _, err = self.train('--set=model.embedding_size=24')
        self.assertEqual(code, 2)
        self.assertRegex(err, 'model.embedding_size was 16 and is now 24')
        code, _, err = self.train('--set=model.encoder.kind=conv', '--set=model.embedding_size=24')
        self.assertEqual(code, 2)
        self.assertIn("this one: model.encoder.kind was 'rnn' and is now 'conv'. Use the old values", err)
        code, _, err = self.train('--set=train.learning_rate=0.001')
        self.assertEqual(code, 0)
        self.assertIn('train.learning_rate is now 0.001, was 0.005', err)

    def test_changed_text_is_noticed_on_resuming(self):
        other, data = os.path.join(self.folder, 'resumed'), os.path.join(self.folder, 'changing')
        shutil.copytree(self.model_dir, other)
        shutil.copytree(os.path.join(self.folder, 'data'), data)
        common = ('--config=config_toy', f'--config_file={self.config}', f'--model_dir={other}', self.cache,
                  f'--set=data.folder={data}')  # fmt: skip
        code, _, err = run_tool(nmt_train.main, *common)
        self.assertEqual(code, 0, err)
        with open(os.path.join(data, 'train.src'), 'a') as src, open(os.path.join(data, 'train.trg'), 'a') as trg:
            src.write('a\n')
            trg.write('a\n')
        code, _, err = run_tool(nmt_train.main, *common, '--set=train.max_steps=12')
        self.assertEqual(code, 2)
        self.assertIn('the training text is not what', err)

    def test_restart_keeps_the_old_folder(self):
        other = os.path.join(self.folder, 'again')
        shutil.copytree(self.model_dir, other)
        common = ('--config=config_toy', f'--config_file={self.config}', f'--model_dir={other}', self.cache)
        code, out, _ = run_tool(nmt_train.main, *common, '--restart', '--set=train.max_steps=1', *NO_DEV)
        self.assertEqual(code, 0)
        self.assertNotIn('going on', out)
        self.assertIn('training ended at step 1', out)
        self.assertTrue(os.path.exists(f'{other}.old-1/ckpt-10.index'))
        self.assertFalse(os.path.exists(f'{self.model_dir}.old-1'))

    def test_a_device_is_written_to_and_not_replaced(self):
        pipe = os.path.join(self.folder, 'pipe')
        os.mkfifo(pipe)
        with open(os.open(pipe, os.O_RDWR), 'rb') as reader:
            code, _, _ = self.infer('--test_src=' + self.write('p.src', b'a b\n'), f'--output_file={pipe}')
            self.assertEqual(code, 0)
            self.assertTrue(reader.readline().endswith(b'\n'))
        self.assertTrue(stat.S_ISFIFO(os.stat(pipe).st_mode))

    def test_a_warm_start_takes_what_fits(self):
        other = os.path.join(self.folder, 'warm')
        code, out, err = run_tool(
            nmt_train.main, '--config=config_toy', f'--config_file={self.config}', f'--model_dir={other}', self.cache,
            f'--init_from={self.model_dir}', '--set=model.decoder.readout_size=24', '--set=train.max_steps=1', *NO_DEV,
        )  # fmt: skip
        self.assertEqual(code, 0, err)
        found = re.search(r'(\d+) of (\d+) variables taken', out)
        self.assertLess(int(found[1]), int(found[2]))
        self.assertRegex(out, r'decoder/readout/kernel: new: shape \[\d+, 24\] here, \[\d+, 16\] there')

    def test_a_warm_start_that_cannot_be_is_told_before_anything_is_made_or_moved(self):
        common = ('--config=config_toy', f'--config_file={self.config}', self.cache, *NO_DEV)
        fresh, untrained = os.path.join(self.folder, 'never_made'), os.path.join(self.folder, 'untrained')
        os.makedirs(untrained)
        shutil.copy(f'{self.model_dir}/config.json', untrained)
        for source, said in (
            ('nowhere', 'nowhere: there is no such model folder'),
            (self.folder, 'not a model folder'),
            (untrained, 'holds no checkpoint yet'),
        ):
            code, _, err = run_tool(nmt_train.main, *common, f'--model_dir={fresh}', f'--init_from={source}')
            self.assertEqual(code, 2)
            self.assertIn(said, err)
            self.assertFalse(os.path.exists(fresh))
        for source, said in (('nowhere', 'no such model folder'), (self.model_dir, 'would be kept in')):
            code, _, err = self.train(f'--init_from={source}', '--restart')
            self.assertEqual(code, 2)
            self.assertIn(said, err)
            self.assertFalse(os.path.exists(f'{self.model_dir}.old-1'))
        code, out, err = self.train('--init_from=nowhere')  # goes on: the other folder is needed no more
        self.assertEqual(code, 0, err)
        self.assertIn('going on', out)

    def test_sequence_level_training_goes_on_from_a_trained_model(self):
        common = ('--config=config_toy', f'--config_file={self.config}', self.cache, '--mode=rl',
                  '--set=train.max_steps=2', *NO_DEV)  # fmt: skip
        mixer, risk = [os.path.join(self.folder, name) for name in ('mixer', 'risk')]
        code, out, err = run_tool(
            nmt_train.main, *common, f'--model_dir={mixer}', f'--init_from={self.model_dir}',
            '--set=train.rl.kind=mixer', '--set=train.label_smoothing=0.1', '--set=train.flow.free_bits=2',
        )  # fmt: skip
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r'warm start .*\n(.*\n)*step 2 .* reward 0\.\d+')
        self.assertIn('mode rl does not read train.label_smoothing, model.encoder.dropout, model.decoder.dropout', err)
        self.assertIn('only flow models read train.flow.free_bits: nothing changes by it', err)
        chrf = ('--set=train.rl.reward=chrf', '--set=train.rl.samples=3', f'--init_from={mixer}')
        code, out, err = run_tool(nmt_train.main, *common, f'--model_dir={risk}', *chrf)
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r'warm start .*\n(.*\n)*step 2 .* reward 0\.\d+')
        code, _, err = self.train('--mode=rl')
        self.assertEqual(code, 2)
        self.assertIn("train.mode was 'train' and is now 'rl'", err)
        code, _, err = run_tool(nmt_train.main, *common, f'--model_dir={mixer}')
        self.assertEqual(code, 2)
        self.assertIn("train.rl.kind was 'mixer' and is now 'mrt'", err)

    def test_explain_says_everything_and_trains_nothing(self):
        fresh = os.path.join(self.folder, 'explained')
        code, out, _ = run_tool(nmt_train.main, '--config=config_toy', f'--config_file={self.config}', self.cache,
                           f'--model_dir={fresh}', '--explain', '--set=train.max_steps=77')  # fmt: skip
        self.assertEqual(code, 0)
        self.assertRegex(out, r'train.max_steps +77 +command line')
        self.assertRegex(out, r'train.batch_size +8 +config_toy')
        self.assertRegex(out, r'train.beta_1 +0.9 +default')
        self.assertRegex(out, r'in all +[\d,]+')
        self.assertIn('800 pairs read', out)
        self.assertIn('less with model.decoder.recompute', out)
        self.assertFalse(os.path.exists(os.path.join(fresh, 'config.json')))
        code, out, err = run_tool(nmt_train.main, '--config=config_toy', f'--config_file={self.config}', self.cache,
                                  f'--model_dir={fresh}', '--explain', '--set=data.test_src=gone')  # fmt: skip
        self.assertEqual(code, 2)
        self.assertIn('gone: no such file', err)
        for stores_nothing in ('model.decoder.recompute=true', 'model.decoder.attention=general'):
            code, out, _ = run_tool(nmt_train.main, '--config=config_toy', f'--config_file={self.config}', self.cache,
                               f'--model_dir={fresh}', '--explain', f'--set={stores_nothing}')  # fmt: skip
            self.assertEqual(code, 0)
            self.assertNotIn('model.decoder.recompute', out.partition('memory (estimate)')[2])

    def test_help_names_every_flag(self):
        for script in (nmt_train, nmt_infer, score, plot_attention):
            code, out, _ = run_tool(script.main, '--help')
            self.assertEqual(code, 0)
            self.assertIn('python ', out)
            known = flags.FlagValues()
            script.define_flags(known)
            for name in known:
                self.assertIn(name, out)


class SubwordsToCharactersTest(unittest.TestCase):
    def test_trained_moved_translated_and_scored(self):
        random, words = seeds(self), ['ab', 'cde', 'fa', 'bedc', 'hgh']
        with tempfile.TemporaryDirectory() as folder:
            config = write_task(os.path.join(folder, 'data'), 'reverse', random, words)
            trained, moved, result = (os.path.join(folder, name) for name in ('trained', 'moved', 'out.jsonl'))
            sets = {'data.src_vocab.kind': 'unigram', 'data.src_vocab.size': 24, 'data.trg_vocab.kind': 'characters',
                    'data.cache_dir': folder, 'train.learning_rate': 0.01, 'train.max_steps': 60,
                    'decode.length_ratio': 12.0, 'seed': random.randrange(1000)}  # fmt: skip
            settings = [f'--set={name}={value}' for name, value in sets.items()]
            code, out, err = run_tool(nmt_train.main, '--config=config_toy', f'--config_file={config}',
                                      f'--model_dir={trained}', *settings)  # fmt: skip
            self.assertEqual(code, 0, err)
            os.rename(trained, moved)
            shutil.rmtree(os.path.join(folder, 'data'))
            source = os.path.join(folder, 'x.src')
            with open(source, 'w') as file:
                file.write('cde ab\nfa hgh bedc ab\n')
            code, _, err = run_tool(nmt_infer.main, f'--model_dir={moved}', f'--test_src={source}', '--beam_size=2',
                                    f'--output_file={result}', '--format=jsonl')  # fmt: skip
            self.assertEqual(code, 0, err)
            with open(result) as file:
                found = [json.loads(line) for line in file]
            self.assertEqual(len(found), 2)
            for line in found:
                self.assertTrue(line['tokens'])
                self.assertTrue(all(len(token) == 1 for token in line['tokens']), line['tokens'])
                self.assertEqual(line['translation'], ''.join(line['tokens']))
            code, out, err = run_tool(
                score.main, f'--hypothesis={result}', f'--test_src={source}', f'--model_dir={moved}'
            )
            self.assertEqual(code, 0, err)
            for line, scored in zip(found, out.splitlines(), strict=True):
                self.assertAlmostEqual(line['score'], float(scored), delta=1e-5 * max(1.0, abs(line['score'])))


class ConfigTest(unittest.TestCase):
    def test_every_example_survives_json_and_lists_its_origins(self):
        import config_example

        names = [name for name in vars(config_example) if name.startswith('config_')]
        self.assertIn('config_demo', names)
        for name in names:
            config, origins = load_config(name, os.path.join(ROOT, 'config_example.py'))
            self.assertEqual(from_dict(Config, json.loads(json.dumps(to_dict(config)))), config)
            self.assertIn('default', origins.values())

    def test_overrides_are_typed_by_their_field(self):
        config = override(Config(), ['train.learning_rate=1', 'data.dev_src=3', 'data.dev_trg=["a", "b"]',
                                     'model.encoder.bidirectional=false', 'data.corpora.0.src=x'])  # fmt: skip
        self.assertEqual(config.train.learning_rate, 1.0)
        self.assertEqual((config.data.dev_src, config.data.dev_trg), ('3', ('a', 'b')))
        self.assertFalse(config.model.encoder.bidirectional)
        self.assertEqual(config.data.corpora[0].src, 'x')
        self.assertEqual(override(config, ['data.dev_src=', 'data.dev_trg=']).data.dev_trg, ())


if __name__ == '__main__':
    unittest.main()
