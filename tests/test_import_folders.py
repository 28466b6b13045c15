"""Checkpoint folders of the published FlowSeq through the importer as a command, and what the model folder then says.

The wanted ids come from `published_flowseq`. It has the flow in the density direction alone, which is enough: a latent
is the image of zero noise if and only if it is mapped to zero.
"""

import itertools
import json
import math
import os
import unittest

import numpy as np
import tensorflow as tf

from sequencing import flowseq_decoding
from sequencing.blocks import Rows
from sequencing.translator import load
from tests.published_flowseq import PublishedFlowSeq
from tests.support import run_tool, scratch_folder, seeds, untraced
from tests.test_import_variants import FLOW, TOKENS, VARIANTS, configuration, random_arrays
from tests.torch_files import in_old_format, in_zip_archive
from tools import import_flowseq

SPACE = '\u2581'
SUBWORDS = {None: 'bpe', 'joint-bpe': 'bpe', 'sep-bpe': 'bpe', 'joint-spm': 'spm', 'word': 'none', 'bert-bpe': 'none'}
CLEAR_MARGIN = 1e-3
SMALL = dict(
    embed=6, src_tokens=9, encoder=dict(type='rnn', rnn_mode='RNN', num_layers=1),
    posterior=dict(type='rnn', rnn_mode='RNN', num_layers=1, use_attn=False), decoder=dict(type='simple'),
    length=dict(type='diff_softmax', diff_range=5),
    flow=dict(FLOW, num_steps=[0, 0], coupling_type='rnn', rnn_mode='RNN'),
)  # fmt: skip


def text_of(tokens, subword):
    """What the published program writes, its lines that end in a continuation mark put right."""
    if subword == 'spm':
        return ''.join(tokens).replace(SPACE, ' ').strip()
    text = ''
    for token in tokens:
        text += token[:-2] if subword == 'bpe' and token.endswith('@@') else f'{token} '
    return text.removesuffix(' ')


class FoldersTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.draw = seeds(self)
        self.random = np.random.default_rng(self.draw.randrange(2**31))
        self.folder, self.numbers = scratch_folder(self.addCleanup), itertools.count()
        self.compared = []  # of each position, whether its likeliest token is clear

    def checkpoint(self, variant, arrays, old=False):
        """Writes a checkpoint folder; returns its path and the tokens of both sides."""
        folder = os.path.join(self.folder, f'checkpoint{next(self.numbers)}')
        os.makedirs(os.path.join(folder, 'vocab'))
        sides, sizes = ('xx', 'yy'), (variant.get('src_tokens', TOKENS), TOKENS)
        forms = ('{}', '{}@@', f'{SPACE}{{}}')  # every way of cutting words finds its marks
        lists = [
            ['<pad>', '<unk>', '<eos>', *(forms[i % 3].format(f'w{i}' if sizes[0] == sizes[1] else side + str(i))
                                         for i in range(size))]
            for side, size in zip(sides, sizes)
        ]  # fmt: skip
        for side, tokens in zip(sides, lists):
            self.write(folder, f'vocab/{side}.vocab', ''.join(f'{token}\n' for token in tokens).encode())
        sizes = dict(src_vocab_size=len(lists[0]), tgt_vocab_size=len(lists[1]))
        self.write(folder, 'config.json', json.dumps({**configuration(variant), **sizes}).encode())
        self.write(folder, 'model.pt', (in_old_format if old else in_zip_archive)(arrays))
        return folder, *lists

    def write(self, folder, name, content):
        with open(os.path.join(folder, name), 'wb') as file:
            file.write(content)

    def imported(self, checkpoint, subword=None, any_token=False):
        """The `Translator` of a checkpoint folder, by the tool's command line."""
        model_dir = os.path.join(self.folder, f'model{next(self.numbers)}')
        flags = [f'--checkpoint={checkpoint}', f'--model_dir={model_dir}', f'--any_token={any_token}']
        code, out, err = run_tool(import_flowseq.main, *flags, *([f'--subword={subword}'] if subword else []))
        self.assertEqual((code, err), (0, ''))
        self.assertIn('parameters, xx to yy', out)
        translator = load(model_dir)
        self.assertEqual({translator.src_vocab.subword, translator.trg_vocab.subword}, {SUBWORDS[subword]})
        self.assertEqual(translator.config.model.any_token, any_token)
        return translator

    def lines(self, tokens, count):
        return [' '.join(self.draw.choices([*tokens[3:], 'foreign'], k=self.draw.randint(1, 6))) for _ in range(count)]

    def logits(self, translator, published, tokens, line):
        """Of the latent that zero noise becomes, `[T, N]`: all but finding that latent by the published formulas."""
        ids = [tokens.index(word) if word in tokens else 1 for word in line.split()] + [2]
        states = published.encode(np.array(ids))
        prior = published.config['prior']
        unit = max(2, 2 ** (len(prior['flow']['num_steps']) - 1))
        told = published.length_log_probs(states[-1], len(ids), unit)
        length = max(told, key=told.get)
        if prior['length_predictor']['type'] == 'diff_logistic':  # tells differences
            length = unit * max(1, math.ceil((len(ids) + length) / unit))
        rows = Rows(tf.ones([1, length], tf.bool))
        source = translator.model.encode(tf.constant([ids]), tf.ones([1, len(ids)], tf.bool))
        size = translator.model.latent_size
        z, _ = flowseq_decoding.generate(translator.model, source, rows, tf.zeros([length, size]))
        z = z.numpy().astype(np.float64)
        noise, _ = published.flow(z, states, length)
        self.assertAllClose(noise, np.zeros([length, size]), atol=2e-3)
        return published.logits(z, states)

    def check(self, translator, published, vocabs, subword, any_token, lines=()):
        """Lines alone (a convolution sees padding), by default two of chance: ids, lengths, text; returns all texts."""
        texts, (source, target) = [], vocabs
        for line in lines or self.lines(source, 2):
            logits = self.logits(translator, published, source, line)
            logits = logits if any_token else np.where(np.arange(logits.shape[1]) < 2, -np.inf, logits)
            want = logits.argmax(axis=1)
            best = np.sort(logits, axis=1)
            clear = best[:, -1] - best[:, -2] > CLEAR_MARGIN
            ended = np.cumsum(want == 2) > 0
            with untraced():
                output = next(translator.stream([line])).outputs[0]
            got = np.full_like(want, 2)
            got[: output.length] = [target.index(token) for token in output.tokens]
            self.assertEqual((output.span, output.output_truncated), (len(want), False))
            self.assertAllEqual(got[clear], np.where(ended, 2, want)[clear])
            self.assertEqual(output.translation, text_of(output.tokens, SUBWORDS[subword]))
            self.assertTrue(any_token or not {'<pad>', '<unk>'} & set(output.tokens))
            self.compared += clear.tolist()
            texts.append(output.translation)
        return texts

    def test_every_variant(self):
        """With flows of few steps: where the weights of a step belong is asked in test_import_variants."""
        for number, (name, variant) in enumerate(VARIANTS.items()):
            subword, any_token = list(SUBWORDS)[number % len(SUBWORDS)], number % 2 == 0
            with self.subTest(name, subword=subword, any_token=any_token):
                steps = variant['flow']['num_steps'] if name == 'shifted' else [0 for _ in variant['flow']['num_steps']]
                variant = {**variant, 'flow': {**variant['flow'], 'num_steps': steps}}
                arrays = random_arrays(variant, self.random)
                folder, *vocabs = self.checkpoint(variant, arrays, old=number % 3 == 0)
                translator = self.imported(folder, subword, any_token)
                self.assertEqual(translator.config.data.joint_vocab, vocabs[0] == vocabs[1])
                published = PublishedFlowSeq(arrays, configuration(variant))
                self.check(translator, published, vocabs, subword, any_token)
        self.assertGreater(np.mean(self.compared), 0.2)

    def test_every_way_of_cutting_words_with_and_without_any_token(self):
        """With a bias that makes PAD and UNK the likeliest token at some positions, on the lines that have the most of
        PAD; the other half of all pairs of the two flags is that of `test_every_variant`."""
        arrays, config = random_arrays(SMALL, self.random), configuration(SMALL)
        arrays['decoder.readout.bias'][2] = -99.0  # nothing ends before something is said
        folder, *vocabs = self.checkpoint(SMALL, arrays)
        translator, published = self.imported(folder), PublishedFlowSeq(arrays, config)
        lines = self.lines(vocabs[0], 5)
        rows = [self.logits(translator, published, vocabs[0], line) for line in lines]
        logits = np.concatenate(rows)
        for token, share in ((0, 0.5), (1, 0.3)):
            others = np.delete(logits, token, axis=1).max(axis=1)
            lift = np.quantile(others - logits[:, token], share)
            arrays['decoder.readout.bias'][token] += lift
            logits[:, token] += lift
        says_pad = np.split(logits.argmax(axis=1) == 0, np.cumsum([len(row) for row in rows])[:-1])
        lines = [lines[i] for i in sorted(range(5), key=lambda i: says_pad[i].sum())[-2:]]
        folder, *vocabs = self.checkpoint(SMALL, arrays, old=True)
        published, texts = PublishedFlowSeq(arrays, config), []
        for number, subword in enumerate(SUBWORDS):
            any_token = number % 2 == 1
            with self.subTest(subword=subword, any_token=any_token):
                translator = self.imported(folder, subword, any_token)
                found = self.check(translator, published, vocabs, subword, any_token, lines)
                self.assertTrue(any_token or '<pad>' not in ''.join(found))
                texts += found
        self.assertIn('<pad>', ''.join(texts))
        self.assertGreater(np.mean(self.compared), 0.2)

    def test_far_lengths_are_not_cut(self):
        """A length predictor that tells 30 tokens more than the source has, of a source of one word."""
        length = dict(type='diff_softmax', diff_range=30)
        variant = {**SMALL, 'length': length}
        arrays = random_arrays(variant, self.random)
        arrays['prior._length_predictor.diff.bias'][-1] = 99.0
        arrays['decoder.readout.bias'][2] = -99.0  # nothing ends before that
        folder, source, _ = self.checkpoint(variant, arrays)
        translator = self.imported(folder)
        with untraced():
            output = next(translator.stream([source[3]])).outputs[0]
            self.assertEqual((output.length, output.span, output.output_truncated), (32, 32, False))
            output = next(translator.stream([source[3]], max_length=9)).outputs[0]
            self.assertEqual((output.length, output.output_truncated), (9, True))


if __name__ == '__main__':
    unittest.main()
