"""Promise 5: TensorFlow and `sequencing_np` give the same, in a process where TensorFlow cannot be imported."""

import os
import tempfile

import numpy as np
import tensorflow as tf

import sequencing
from sequencing.decode_options import options_for
from sequencing.structures import Batch
from tests.numpy_support import AUTOREGRESSIVE, FLOWS, convert, translate_without_tensorflow, write_model_folder
from tests.support import seeds

WORDS = [f'w{i}' for i in range(21)]
SEARCHES = (
    {'decode': 'greedy', 'max_length': 12},
    {'decode': 'beam', 'beam_size': 4, 'nbest': 3, 'length_penalty': 0.6, 'max_length': 12},
    {'decode': 'beam', 'beam_size': 1, 'batch_tokens': 1},
)
FLOW_MODES = (
    {'decode': 'argmax'},
    {'decode': 'argmax', 'tau': 0.7, 'ntr': 3, 'seed': 5, 'batch_tokens': 1},
    {'decode': 'iw', 'nlen': 2, 'ntr': 2, 'iw_k': 3, 'tau': 0.6, 'nbest': 4, 'seed': 7},
)


class AgreementTest(tf.test.TestCase):
    """All families go through one process: what costs is to start it."""

    def setUp(self):
        super().setUp()
        self.draw = seeds(self)
        self.folder = self.enterContext(tempfile.TemporaryDirectory())

    def lines(self, count=7, longest=8):
        return [' '.join(self.draw.choices(WORDS + ['unknown'], k=self.draw.randint(1, longest))) for _ in range(count)]

    def model(self, name, model_config):
        folder, file = (os.path.join(self.folder, name + end) for end in ('', '.npz'))
        write_model_folder(folder, model_config, self.draw, WORDS)
        self.assertEqual(convert(folder, file), 0)
        return sequencing.load(folder), file

    def test_autoregressive_models(self):
        self.check_models(AUTOREGRESSIVE, SEARCHES)

    def test_flow_models(self):
        self.check_models(FLOWS, FLOW_MODES)

    def check_models(self, models, modes):
        asked, wanted, told = [], [], []
        for name, model_config in models.items():
            if name not in os.environ.get('FAM', name).split(','):
                continue
            translator, file = self.model(name, model_config)
            for options in modes:
                lines = ['', *self.lines()]
                asked.append((file, lines, options))
                wanted.append(list(translator.stream(lines, **options)))
                told.append((f'{name}, {options}', translator))
        answers = translate_without_tensorflow(asked)
        for (name, translator), (_, lines, options), got, want in zip(told, asked, answers, wanted):
            self.assertEqual(len(got), len(want))
            for line, got_line, want_line in zip(lines, got, want):
                self.check_line(name, translator, line, got_line, want_line, options)

    def check_line(self, name, translator, line, got, want, options):
        self.assertEqual(len(got), len(want.outputs), name)
        for mine, theirs in zip(got, want.outputs):
            if mine['tokens'] != theirs.tokens:  # only where it was a tie, and then nothing after it can be compared
                tie = self.greedy_margin if options['decode'] == 'greedy' else self.beam_margin
                self.assertLessEqual(tie(translator, line, mine['tokens'], theirs), 1e-4, f'{name}: {line}')
                return
            for field in ('score', 'rank_score'):
                number = getattr(theirs, field)
                self.assertNear(mine[field], number, 1e-4 * max(1.0, abs(number)), f'{name}: {line}')
            self.assertEqual(mine['translation'], theirs.translation)
            self.assertEqual(mine['output_truncated'], theirs.output_truncated)

    def greedy_margin(self, translator, line, tokens, theirs):
        """How much likelier TensorFlow found its token than ours, where the two part."""
        place = next(i for i, (a, b) in enumerate(zip([*tokens, None], [*theirs.tokens, None])) if a != b)
        src, trg = translator.src_vocab, translator.trg_vocab
        src_ids = np.append(src.encode(line), src.eos_id)[np.newaxis]
        ours, best = (
            translator.model.score(Batch(src_ids, src_ids >= 0, ids[np.newaxis], ids[np.newaxis] >= 0, None))[1][0, -1]
            for ids in (trg.ids_of([*given, '</s>'][: place + 1]) for given in (tokens, theirs.tokens))
        )
        return float(best - ours)

    def beam_margin(self, translator, line, tokens, theirs):
        return abs(translator.score([line], [tokens])[0] - theirs.score)


class OptionsTest(tf.test.TestCase):
    def test_modes_that_numpy_has_are_modes_of_the_model(self):
        from sequencing_np.seq2seq import Seq2Seq

        config = sequencing.Config()
        self.assertEqual(options_for(Seq2Seq, config).decode, 'beam')
        with self.assertRaisesRegex(sequencing.errors.UserError, 'it has beam, greedy'):
            options_for(Seq2Seq, config, decode='sample')


if __name__ == '__main__':
    tf.test.main()
