"""What tests of exports share: what was exported, moved elsewhere, its model deleted, run in a process without us."""

import json
import os
import shutil
import subprocess
import sys

import sequencing
from tests.numpy_support import margin, write_model_folder
from tests.support import run_tool, seeds
from tools import export_savedmodel, export_tflite

WORDS = [f'w{i}' for i in range(21)]
LONGEST = 9  # pieces of a source that a LiteRT file takes

SAVED_MODELS = """
import json, sys
sys.modules['sequencing'] = sys.modules['flow_layers'] = None
import tensorflow as tf

answers = []
for folder, name, inputs in json.load(sys.stdin):
    found = tf.saved_model.load(folder).signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
    answers.append({key: value.numpy().tolist() for key, value in found.items()})
for answer in answers:
    answer['translations'] = [text.decode() for text in answer.get('translations', [])]
json.dump(answers, sys.stdout)
"""
LITE_FILES = """
import json, sys
sys.modules['tensorflow'] = sys.modules['sequencing'] = None
import numpy as np
from ai_edge_litert.interpreter import Interpreter

answers = []
for folder, sources in json.load(sys.stdin):
    run = Interpreter(folder + '/model.tflite').get_signature_runner()
    found = [run(src_ids=np.array([ids], np.int32)) for ids in sources]
    answers.append([{key: value[0].tolist() for key, value in one.items()} for one in found])
json.dump(answers, sys.stdout)
"""


def run_elsewhere(program, asked, folder):
    """Runs a program in a fresh process, with JSON in and out, from a folder where our code is not found."""
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1', 'TF_CPP_MIN_LOG_LEVEL': '3'}
    environment.pop('PYTHONPATH', None)
    done = subprocess.run([sys.executable, '-c', program], input=json.dumps(asked), text=True, capture_output=True,
                          cwd=folder, env=environment)  # fmt: skip
    if done.returncode:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)


def lines_of(draw):
    """Lines of words, known and unknown, one of them blank and one as long as a LiteRT file takes."""
    return ['', *[' '.join(draw.choices([*WORDS, 'unknown'], k=n)) for n in (LONGEST, 3, 1, 6)]]


class ExportChecks:
    """What test cases of exports mix in; a test case has `folder`, a scratch folder."""

    def exported(self, tool, draw, name, model_config, *arguments):
        """Exports a model with random weights, moves what was written and deletes the model.

        A tuple of configurations, in place of one, makes an ensemble.

        Returns:
          the original's `Translator`, and the folder of the export.
        """
        made, moved = (os.path.join(self.folder, name + end) for end in ('.made', '.moved'))
        configs = model_config if isinstance(model_config, tuple) else (model_config,)
        folders = [os.path.join(self.folder, f'{name}{i}') for i in range(len(configs))]
        for folder, config in zip(folders, configs):
            write_model_folder(folder, config, draw, WORDS)
        model_dir = ','.join(folders)
        translator = sequencing.load(model_dir)
        code, _, said = run_tool(tool.main, f'--model_dir={model_dir}', f'--output_dir={made}', *arguments)
        self.assertEqual(code, 0, said)
        shutil.move(made, moved)
        for folder in folders:
            shutil.rmtree(folder)
        return translator, moved

    def check_same(self, translator, line, options, ids, score):
        """The ids are those of the original wherever it found its choice better than others by 1e-4."""
        about = f'{options}, {line!r}, SEQUENCING_TEST_SEED as printed'
        want = next(translator.stream([line], **options)).outputs[0]
        got, bound = translator.trg_vocab.pieces(ids), 1e-4 * max(1.0, abs(want.score))
        if got != want.tokens and options['decode'] == 'greedy':
            self.assertLessEqual(margin(translator, line, got, want.tokens), 1e-4, about)
        elif line:
            self.assertLess(abs(score - want.score), bound, about)
        return got == want.tokens

    def check_saved_models(self, models, *more):
        """Exports models as SavedModels and compares.

        Args:
          models: dict of name to (model's configuration, dict of options); more: flags of the export.
        """
        draw, asked, wanted = seeds(self), [], []
        for name, (model_config, options) in models.items():
            flags = [*more, *(f'--{key}={value}' for key, value in options.items())]
            translator, folder = self.exported(export_savedmodel, draw, f'{name}.saved', model_config, *flags)
            lines = lines_of(draw)
            if not translator.src_vocab.delimiter:  # of characters, and few of them
                lines = [line[:LONGEST].strip() for line in lines]
            rows = [translator.src_vocab.encode(line).tolist() for line in lines]
            longest = max(map(len, rows)) + 2
            src_ids = [row + [0] * (longest - len(row)) for row in rows]
            asked += [(folder, 'ids', {'src_ids': src_ids}), (folder, 'serving_default', {'lines': lines})]
            wanted.append((translator, lines, {**options}))
        answers = run_elsewhere(SAVED_MODELS, asked, self.folder)
        same = total = 0
        for (translator, lines, options), by_ids, by_text in zip(wanted, answers[::2], answers[1::2]):
            for row, line in enumerate(lines):
                ids = by_ids['ids'][row][: by_ids['lengths'][row]]
                same += self.check_same(translator, line, options, ids, by_ids['scores'][row])
                total += 1
                self.assertEqual(by_text['translations'][row], translator.trg_vocab.decode(ids))
                self.assertEqual(by_ids['ids'][row][len(ids) :], [0] * (len(by_ids['ids'][row]) - len(ids)))
        self.assertGreater(same, 0.8 * total)

    def check_lite_files(self, models):
        """Exports models, a dict as of `check_saved_models`, as LiteRT files and compares."""
        draw, asked, wanted = seeds(self), [], []
        for name, (model_config, options) in models.items():
            flags = [f'--max_src_length={LONGEST}', *(f'--{key}={value}' for key, value in options.items())]
            translator, folder = self.exported(export_tflite, draw, f'{name}.lite', model_config, *flags)
            lines = lines_of(draw)
            rows = [translator.src_vocab.encode(line).tolist() for line in lines]
            asked.append((folder, [row + [0] * (LONGEST - len(row)) for row in rows]))
            wanted.append((translator, lines, {'decode': 'argmax' if translator.is_flow else 'greedy', **options}))
        same = total = 0
        for (translator, lines, options), found in zip(wanted, run_elsewhere(LITE_FILES, asked, self.folder)):
            for line, one in zip(lines, found):
                self.assertEqual(one['ids'][one['lengths'] :], [0] * (len(one['ids']) - one['lengths']))
                self.assertTrue(line or one['lengths'] == 0)
                same += self.check_same(translator, line, options, one['ids'][: one['lengths']], one['scores'])
                total += 1
        self.assertGreater(same, 0.8 * total)
