"""Promise 6 for every kind of part that there is; `tests/test_exports.py` has a few."""

import dataclasses
import os
import unittest

import sequencing
from sequencing.text import read_lines
from tests.export_support import LITE_FILES, ExportChecks, run_elsewhere
from tests.numpy_support import AUTOREGRESSIVE, FLOWS
from tests.support import run_tool, scratch_folder, seeds
from tests.toy import start, train_command, write_task
from tools import export_tflite


class EveryExportTest(ExportChecks, unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = scratch_folder(self.addCleanup)

    def test_saved_models(self):
        models = {name: (model, {'decode': 'beam', 'beam_size': 3}) for name, model in AUTOREGRESSIVE.items()}
        noisy = {'decode': 'iw', 'nlen': 2, 'ntr': 2, 'iw_k': 3, 'tau': 0.7, 'seed': 7}
        self.check_saved_models({**models, **{name: (flow, noisy) for name, flow in FLOWS.items()}})

    def test_saved_models_of_constants(self):
        self.check_saved_models({name: (flow, {'decode': 'argmax'}) for name, flow in FLOWS.items()}, '--constants')

    def test_lite_files(self):
        # LiteRT lacks the float64 arithmetic of nlsq and the search of ava.
        recurrent = FLOWS['flow_recurrent']
        affine = dataclasses.replace(recurrent, prior=dataclasses.replace(recurrent.prior, transform='affine'))
        models = {**AUTOREGRESSIVE, **FLOWS, 'flow_recurrent': affine}
        asked = {name: (model, {}) for name, model in models.items() if name != 'ava'}
        iw = {'decode': 'iw', 'tau': 0.7, 'nlen': 3, 'ntr': 2, 'iw_k': 3}
        asked.update({f'{name}_iw': (models[name], iw) for name in FLOWS})
        asked['noisy'] = models['flow'], {'tau': 0.7, 'ntr': 3}
        self.check_lite_files(asked)


class TrainedExportTest(unittest.TestCase):
    """What smaller weights do to a model that knows its task, whose choices are clear."""

    SETTINGS = ('train.max_steps=600', 'train.batch_size=64', 'train.schedule=cosine', 'train.warmup_steps=50',
                'train.learning_rate=4e-3', 'train.clip_norm=1.0', 'train.log_every=200', 'model.encoder.state_size=96',
                'model.decoder.state_size=96')  # fmt: skip

    def test_smaller_weights_say_the_same(self):
        draw, folder = seeds(self), scratch_folder(self.addCleanup)
        data, model_dir = os.path.join(folder, 'data'), os.path.join(folder, 'model')
        config = write_task(data, 'copy', draw, train=8000, dev=100)
        process = start(train_command(config, model_dir, *self.SETTINGS, f'seed={draw.randrange(1000)}'))
        output, _ = process.communicate()
        self.assertEqual(process.returncode, 0, output)
        translator, source = sequencing.load(model_dir), list(read_lines(f'{data}/dev.src'))
        want = translator.translate(source, decode='greedy')
        right = sum(said == line for said, line in zip(want, source))
        self.assertGreaterEqual(right, 80, output)
        rows = [ids + [0] * (6 - len(ids)) for ids in (translator.src_vocab.encode(line).tolist() for line in source)]
        for weights in ('float16', 'int8'):
            made = os.path.join(folder, weights)
            flags = f'--model_dir={model_dir}', f'--output_dir={made}', f'--weights={weights}', '--max_src_length=6'
            code, _, said = run_tool(export_tflite.main, *flags)
            self.assertEqual(code, 0, said)
            [found] = run_elsewhere(LITE_FILES, [(made, rows)], folder)
            got = [translator.trg_vocab.decode(one['ids'][: one['lengths']]) for one in found]
            same = sum(mine == theirs for mine, theirs in zip(got, want))
            print(f'{weights}: {same} of {len(want)} as in float32, of which {right} are right')
            self.assertGreaterEqual(same, 95)


if __name__ == '__main__':
    unittest.main()
