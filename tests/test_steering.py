"""What a user may add to search: several models at once, a prefix to begin with, a shortlist of tokens."""

import os
import tempfile

import numpy as np
import tensorflow as tf

from sequencing.decode_options import DecodeOptions, options_for
from sequencing.ensemble import Ensemble
from sequencing.errors import UserError
from sequencing.shortlist import Shortlist
from sequencing.structures import AllowedTokens
from sequencing.translator import Translator, join, pad
from sequencing.vocab import Vocab
from tests.families import WORDS, make_translator
from tests.support import seeds

MODES = ('greedy', 'beam', 'sample')
UNK, BOS, EOS = 1, 2, 3


def read(model, source, target):
    """Logits `[T, N]` of a model that is given the right target; source and target are ids, EOS included."""
    encoded = model.encode(tf.constant(source[np.newaxis]), tf.ones([1, len(source)], tf.bool))
    fed = tf.constant(np.concatenate([[BOS], target[:-1]])[np.newaxis])
    features, _ = model.decoder(model.trg_embedding(fed), encoded, tf.ones(fed.shape, tf.bool))
    return model.logits(features).numpy()[0]


class SteeringTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.draw = seeds(self)

    def pairings(self, *families):
        """Each family with one decoding mode, every mode in turn: which goes with which is drawn."""
        first = self.draw.randrange(3)
        return [(family, MODES[(first + i) % 3]) for i, family in enumerate(families)]

    def lines(self, count, longest=9):
        return [' '.join(self.draw.choices(WORDS, k=self.draw.randint(1, longest))) for _ in range(count)]

    def make(self, family):
        # Logits of some units: those of convolutions are large as they are, and grow with a high power of the weights.
        sharpen = {'rnn': 3.0, 'transformer': 2.0, 'conv': 1.0}[family]
        return make_translator(family, self.draw.randrange(1000), sharpen=sharpen)

    def compare(self, got, want):
        """Two lists of `Translation` hold the same pieces, and scores to 1e-5."""
        self.assertEqual(len(got), len(want))
        for one, two in zip(got, want):
            for a, b in zip(one.outputs, two.outputs, strict=True):
                self.assertEqual(a.tokens, b.tokens)
                self.assertNear(a.score, b.score, 1e-5 * max(1, abs(b.score)))


class EnsembleTest(SteeringTest):
    def joined(self, *families):
        return join([f'model {i}' for i in range(len(families))], [self.make(family) for family in families])

    def test_a_model_with_itself_is_that_model(self):
        for family, mode in self.pairings('rnn', 'transformer', 'conv'):
            one = self.make(family)
            twice = Translator(Ensemble([one.model] * 2), one.config, one.src_vocab, one.trg_vocab)
            lines = self.lines(5)
            options = {'decode': mode, 'nbest': 1 if mode == 'greedy' else 3}
            self.compare(list(twice.stream(lines, **options)), list(one.stream(lines, **options)))

    def test_families_join_and_scores_are_those_of_the_mean_of_probabilities(self):
        joined = self.joined('rnn', 'transformer', 'conv')
        lines = self.lines(6)
        for mode in self.draw.sample(MODES, 2):
            results = list(joined.stream(lines, decode=mode, max_length=7))
            tokens = [result.outputs[0].tokens for result in results]
            src = [np.append(ids, EOS) for ids in joined.src_vocab.encode_lines(lines)]
            trg = [np.append(joined.trg_vocab.ids_of(t), EOS) for t in tokens]
            by_hand = []
            for source, target in zip(src, trg):
                logits = [read(model, source, target).astype('float64') for model in joined.model.models]
                probs = [np.exp(x - x.max(-1, keepdims=True)) for x in logits]
                mean = np.mean([x / x.sum(-1, keepdims=True) for x in probs], axis=0)
                by_hand.append(np.log(mean[np.arange(len(target)), target]).sum())
            for result, score, want in zip(results, joined.score(lines, tokens), by_hand):
                self.assertNear(result.outputs[0].score, want, 1e-5 * max(1, abs(want)))
                self.assertNear(score, want, 1e-5 * max(1, abs(want)))

    def test_a_line_gets_the_same_in_any_batch_and_a_beam_of_one_is_greedy_search(self):
        joined = self.joined('rnn', 'transformer')
        lines = self.lines(6)
        options = {'decode': 'beam', 'beam_size': 4, 'attention': True}
        together = list(joined.stream(lines, **options))
        self.compare([next(joined.stream([line], **options)) for line in lines[:3]], together[:3])
        self.compare(list(joined.stream(lines[::-1], **options))[::-1], together)
        for result in together:
            self.assertAllClose(result.outputs[0].attention.sum(-1), np.ones(result.outputs[0].length), atol=1e-4)
        greedy = list(joined.stream(lines, decode='greedy'))
        self.compare(list(joined.stream(lines, decode='beam', beam_size=1)), greedy)

    def test_models_that_do_not_go_together_are_refused(self):
        one = self.make('rnn')
        other = Translator(one.model, one.config, one.src_vocab, Vocab(list('abcdefgi')))
        with self.assertRaisesRegex(UserError, 'b and a differ in their target vocabulary'):
            join(['a', 'b'], [one, other])


class PrefixTest(SteeringTest):
    def test_outputs_begin_with_their_prefix_and_scores_count_it(self):
        for family, mode in self.pairings('rnn', 'transformer', 'conv'):
            translator = self.make(family)
            lines = self.lines(6)
            prefixes = ['', 'b', 'h g', '', 'a a a', 'never']
            options = {'decode': mode, 'nbest': 1 if mode == 'greedy' else 3}
            results = list(translator.stream(lines, prefixes, **options))
            for line, prefix, result in zip(lines, prefixes, results):
                begun = translator.trg_vocab.pieces(translator.trg_vocab.encode(prefix))
                tokens = [output.tokens for output in result.outputs]
                for one in tokens:
                    self.assertEqual(one[: len(begun)], begun)
                for output, score in zip(result.outputs, translator.score([line] * len(tokens), tokens)):
                    self.assertNear(output.score, score, 1e-5 * max(1, abs(score)))
            free = list(translator.stream(lines, **options))
            self.compare([results[0], results[3]], [free[0], free[3]])
            order = self.draw.sample(range(6), 6)
            shuffled = list(translator.stream([lines[i] for i in order], [prefixes[i] for i in order], **options))
            self.compare(shuffled, [results[i] for i in order])

    def test_the_beginning_of_its_own_output_changes_nothing(self):
        translator = self.make('transformer')
        lines = self.lines(5)
        options = {'decode': self.draw.choice(['greedy', 'sample']), 'max_length': 12}
        free = list(translator.stream(lines, **options))
        begun = [' '.join(result.outputs[0].tokens[: 1 + i]) for i, result in enumerate(free)]
        known = [i for i, text in enumerate(begun) if '<' not in text]  # a special token has no text
        if known:
            again = list(translator.stream([lines[i] for i in known], [begun[i] for i in known], **options))
            self.compare(again, [free[i] for i in known])

    def test_one_that_is_too_long_is_cut_and_that_is_said(self):
        translator = self.make('rnn')
        for mode in self.draw.sample(MODES, 2):
            cut, whole = translator.stream(['a b c'] * 2, ['d e f g h', 'd e'], decode=mode, max_length=3)
            self.assertEqual(cut.outputs[0].tokens, ['d', 'e', 'f'])
            self.assertEqual((cut.prefix_truncated, cut.outputs[0].output_truncated), (True, True))
            self.assertFalse(whole.prefix_truncated)
        long = ' '.join(self.draw.choices(WORDS, k=60))  # longer than 2 x source + 20, which comes on top of it
        self.assertTrue(translator.translate(['a'], [long], decode='greedy')[0].startswith(long))

    def test_a_blank_line_stays_blank_and_counts_have_to_match(self):
        translator = self.make('rnn')
        self.assertEqual(translator.translate(['', 'a'], ['b', 'c'], max_length=2)[0], '')
        for lines, prefixes in ((3, 1), (1, 4)):
            with self.assertRaisesRegex(UserError, f'{lines} lines to translate and {prefixes} prefixes'):
                translator.translate(['a'] * lines, ['b'] * prefixes)


class ShortlistTest(SteeringTest):
    def shortlist(self, translator, pairs, **sizes):
        ids = [[vocab.ids_of([piece])[0] for piece in side] for vocab, side in
               zip((translator.src_vocab, translator.trg_vocab), zip(*pairs))]  # fmt: skip
        return Shortlist(*ids, [0.0] * len(pairs), translator.src_vocab, translator.trg_vocab, **sizes)

    def test_one_that_allows_everything_changes_nothing(self):
        for family, mode in self.pairings('rnn', 'transformer', 'conv'):
            translator = self.make(family)
            every = self.shortlist(translator, [(a, b) for a in WORDS for b in WORDS])
            lines = self.lines(5)
            size = self.draw.choice([2, 20])  # or more hypotheses than tokens
            options = {'decode': mode, 'beam_size': size, 'nbest': 1 if mode == 'greedy' else 2}
            free = list(translator.stream(lines, **options))
            self.compare(list(translator.stream(lines, shortlist=every, **options)), free)

    def test_under_one_a_wide_beam_finds_the_best_of_what_may_be_written(self):
        for family in ('rnn', 'conv'):
            translator = self.make(family)
            few = self.shortlist(translator, [('a', 'c'), ('b', 'f'), ('b', 'e')], frequent=0)
            lines, limit = ['a', 'b a', 'b'], 2
            for line, result in zip(lines, translator.stream(lines, shortlist=few, beam_size=60, max_length=limit)):
                words = {'a': 'c', 'b': 'ef', 'b a': 'cef'}[line]
                allowed = [0, UNK, 2, EOS, *translator.trg_vocab.ids_of(list(words))]
                best = max(self.all_scores(translator.model, translator.src_vocab.encode(line), allowed, limit))
                self.assertEqual(result.outputs[0].tokens, translator.trg_vocab.pieces(best[1]))
                self.assertNear(result.outputs[0].score, best[0], 1e-4)

    def all_scores(self, model, source, allowed, limit):
        """(score, ids) of every output of allowed tokens, by reading it with the whole output layer."""
        every = [()]
        for _ in range(limit):
            every += [(*ids, i) for ids in every for i in allowed if i != EOS]
        every = sorted(set(every))
        src = tf.constant(np.append(source, EOS)[np.newaxis].repeat(len(every), axis=0))
        trg, mask = pad([np.array([*ids, EOS]) for ids in every], 0)
        encoded = model.encode(src, tf.ones_like(src, tf.bool))
        fed = np.concatenate([np.full([len(every), 1], 2), trg[:, :-1]], axis=1)
        logits = model.logits(model.decoder(model.trg_embedding(fed), encoded, tf.constant(mask))[0]).numpy()
        few = logits[..., allowed].astype('float64')
        few -= np.log(np.exp(few).sum(-1, keepdims=True))
        places = np.vectorize(allowed.index)(trg)
        tokens = np.take_along_axis(few, places[..., np.newaxis], -1)[..., 0]
        return [(float(score), ids) for score, ids in zip((tokens * mask).sum(axis=1), every)]

    def test_a_line_sees_only_its_own_tokens_whatever_else_is_in_the_batch(self):
        translator = self.make('transformer')
        pairs = [(a, b) for a in WORDS for b in self.draw.sample(WORDS, 2)]
        few = self.shortlist(translator, pairs, frequent=0)
        lines, prefixes = self.lines(7, longest=3), ['', 'a', '', '', 'h b', '', 'c']
        for mode in self.draw.sample(MODES, 2):
            results = list(translator.stream(lines, prefixes, few, decode=mode))
            self.compare(list(translator.stream(lines[::-1], prefixes[::-1], few, decode=mode))[::-1], results)
            alone = [next(translator.stream([a], [b], few, decode=mode)) for a, b in zip(lines[:4], prefixes)]
            self.compare(alone, results[:4])
            for line, prefix, result in zip(lines, prefixes, results):
                may = {b for a, b in pairs if a in line.split()} | {*prefix.split(), '<unk>', '<pad>', '<s>'}
                self.assertLessEqual(set(result.outputs[0].tokens), may)
                self.assertTrue(result.outputs[0].translation.startswith(prefix))

    def test_members_of_an_ensemble_share_one(self):
        members = [self.make('rnn'), self.make('transformer')]
        joined = join(['a', 'b'], members)
        few = self.shortlist(joined, [(a, b) for a in WORDS for b in 'bdf'], frequent=0)
        lines = self.lines(4)
        for result in joined.stream(lines, shortlist=few, decode='sample', nbest=5):
            for output in result.outputs:
                self.assertLessEqual(set(output.tokens), {'b', 'd', 'f', '<unk>', '<pad>', '<s>'})
        alone = Translator(Ensemble([members[0].model] * 2), joined.config, joined.src_vocab, joined.trg_vocab)
        self.compare(list(alone.stream(lines, shortlist=few)), list(members[0].stream(lines, shortlist=few)))

    def test_weights_as_they_are_trained_and_as_they_are_stored_give_the_same(self):
        from sequencing.layers import store_for_decoding

        translator = self.make('transformer')
        model, tokens = translator.model, np.array([0, 1, 2, 3, 5, 9], np.int32)
        src, mask = pad([np.array([4, 5, 3]), np.array([6, 3])], 0)
        allowed = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 1]], bool)
        options = options_for(model, translator.config, decode='greedy')
        batch = (tf.constant(src), tf.constant(mask), tf.constant([5, 4]), options)
        before = model.translate(*batch, shortlist=AllowedTokens(tokens, allowed))
        store_for_decoding(model, tf.float32)
        after = model.translate(*batch, shortlist=AllowedTokens(tokens, allowed))
        self.assertAllEqual(before.ids, after.ids)
        self.assertAllClose(before.scores, after.scores, atol=1e-4)

    def test_files_are_read_best_pairs_first_and_mistakes_are_told(self):
        vocab = Vocab(list(WORDS))

        def read(text, **sizes):
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, 'lex')
                with open(path, 'w') as file:
                    file.write(text)
                return Shortlist.from_file(path, vocab, vocab, **sizes)

        def words(shortlist, line):
            tokens, allowed = shortlist([vocab.encode(line)])
            self.assertTrue(allowed.all())
            return ''.join(vocab.pieces(tokens)).removeprefix('<pad><unk><s></s>')

        text = 'a\tc\t0.1\nb\td\t0.9\na\te\t0.5\na\tf\t0.4\nzz\ta\t1\n'
        self.assertEqual(words(read(text, best=2, frequent=0), 'a'), 'ef')
        self.assertEqual(words(read(text.replace('\t', ' '), best=1, frequent=1), 'a b'), 'ade')
        self.assertEqual(words(read('a h -3\na g -1\na b -2\n', best=2, frequent=0), 'a'), 'bg')
        self.assertEqual(words(read('a h\na g\na b\n', best=2, frequent=0), 'a h'), 'gh')
        self.assertEqual(read(text).unknown, 1)
        for text, told in (
            ('a b\n\n', 'line 2'),
            ('a b c d\n', 'line 1'),
            ('a b x\n', 'line 1'),
            ('a b nan\n', 'line 1'),
            ('x y\n', 'no line has'),
        ):
            with self.assertRaisesRegex(UserError, told):
                read(text)


class SeedTest(tf.test.TestCase):
    def test_many_seeds_share_one_trace(self):
        draw = seeds(self)
        translator = make_translator('rnn', draw.randrange(1000))
        lines = [' '.join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(6)]
        given = draw.sample(range(2**31), 3)
        found = [translator.translate(lines, decode='sample', seed=seed) for seed in given]
        self.assertNotEqual(found[0], found[1])
        self.assertNotEqual(found[1], found[2])
        self.assertEqual(found[0], translator.translate(lines, decode='sample', seed=given[0]))
        (function,) = translator._functions.values()
        self.assertEqual(function.experimental_get_tracing_count(), 1)
        ids, mask = pad([np.append(translator.src_vocab.encode(lines[0]), EOS)], translator.src_vocab.pad_id)
        options = DecodeOptions(decode='sample', seed=given[1])
        limits = tf.constant(2 * mask.sum(axis=1) + 18, tf.int32)
        alone = translator.model.translate(tf.constant(ids), tf.constant(mask), limits, options)
        length = int(alone.lengths[0, 0])
        self.assertEqual(translator.trg_vocab.decode(alone.ids[0, 0, :length].numpy()), found[1][0])


if __name__ == '__main__':
    tf.test.main()
