"""Promise 5: TensorFlow and `sequencing_np` give the same, in a process where TensorFlow cannot be imported."""

import os

import tensorflow as tf

import sequencing
from tests.numpy_support import (
    AUTOREGRESSIVE,
    FLOWS,
    convert,
    margin,
    translate_without_tensorflow,
    write_model_folder,
)
from tests.support import scratch_folder, seeds

WORDS = [f'w{i}' for i in range(21)]
SEARCHES = (
    {'decode': 'greedy', 'max_length': 12},
    {'decode': 'beam', 'beam_size': 4, 'nbest': 3, 'length_penalty': 0.6},
)
FLOW_MODES = (
    {'decode': 'argmax', 'max_length': 3},
    {'decode': 'iw', 'nlen': 2, 'ntr': 2, 'iw_k': 3, 'tau': 0.6, 'nbest': 4, 'seed': 7},
)
NOISY = {'decode': 'argmax', 'tau': 0.7, 'ntr': 3, 'seed': 5}
VARIANTS_OF_FAMILIES = ('rnn_gru', 'rnn_plain', 'transformer_post', 'transformer_rotary', 'conv_weight_norm',
                        'ava')  # fmt: skip
WAYS = (
    ('numpy', {}),
    ('numpy', {'batch_tokens': 1}),  # a sentence at a time: no padding
    ('cupy', {}),  # or what stands for it in that process
)


class AgreementTest(tf.test.TestCase):
    """All families go through one process: what costs is to start it."""

    def setUp(self):
        super().setUp()
        self.draw = seeds(self)
        self.folder = scratch_folder(self.addCleanup)

    def test_autoregressive_models(self):
        # Variants of a family are walked by beam search alone, which does more.
        self.check({name: (model, SEARCHES[name in VARIANTS_OF_FAMILIES :]) for name, model in AUTOREGRESSIVE.items()})

    def test_flow_models(self):
        models = {name: (model, FLOW_MODES) for name, model in FLOWS.items()}
        self.check({**models, 'flow': (FLOWS['flow'], (*FLOW_MODES, NOISY))})

    def check(self, models):
        asked, wanted = [], []
        for name, (model_config, modes) in models.items():
            folder, file = (os.path.join(self.folder, name + end) for end in ('', '.npz'))
            write_model_folder(folder, model_config, self.draw, WORDS)
            self.assertEqual(convert(folder, file), 0)
            translator = sequencing.load(folder)
            for options in modes:
                lines = ['', *[' '.join(self.draw.choices([*WORDS, 'unknown'], k=n)) for n in (8, 3, 1, 5, 6)]]
                want = list(translator.stream(lines, **options))
                for module, more in WAYS:
                    asked.append((file, module, lines, {**options, **more}))
                    wanted.append((translator, want))
        for (file, *_, lines, options), (translator, want), got in zip(
            asked, wanted, translate_without_tensorflow(asked)
        ):
            self.assertEqual(len(got), len(lines))
            for line, mine, theirs in zip(lines, got, want):
                about = f'{os.path.basename(file)}, {options}, {line!r}'
                self.assertEqual(len(mine), len(theirs.outputs), about)
                if translator.is_flow:  # the others may write what begins a sentence
                    barred = translator.trg_vocab.tokens[translator.trg_vocab.bos_id]
                    self.assertNotIn(barred, [token for output in mine for token in output['tokens']], about)
                for pair in zip(mine, theirs.outputs):
                    if not self.same(translator, line, *pair, options, about):
                        break

    def same(self, translator, line, mine, theirs, options, about):
        """Whether the outputs are the same. Where they are not it was a tie, and what came after need not be."""
        bound = 1e-4 * max(1.0, abs(theirs.score))
        if mine['tokens'] != theirs.tokens:
            if options['decode'] == 'greedy':
                self.assertLessEqual(margin(translator, line, mine['tokens'], theirs.tokens), 1e-4, about)
            else:
                self.assertNear(mine['rank_score'], theirs.rank_score, bound, about)
            return False
        self.assertNear(mine['score'], theirs.score, bound, about)
        self.assertNear(mine['rank_score'], theirs.rank_score, bound, about)
        self.assertEqual(mine['translation'], theirs.translation)
        self.assertEqual(mine['output_truncated'], theirs.output_truncated, about)
        return True


if __name__ == '__main__':
    tf.test.main()
