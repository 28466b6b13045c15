"""From config to batches: vocabularies, epochs, resuming, weights, padding, evaluation."""

import collections
import dataclasses
import itertools
import os
import tempfile
import unittest

import numpy as np

import build_inputs
from build_inputs import build_eval_inputs, build_parallel_inputs, build_vocab, build_vocabs, check_files
from sequencing.config import Config, CorpusConfig, DataConfig, DecodeConfig, TrainConfig, VocabConfig
from sequencing.errors import UserError
from sequencing.parallel_batches import Position
from sequencing.vocab import Vocab
from tests.support import seeds

WORDS = [f'w{i}' for i in range(90)]


class InputsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.vocab = Vocab(WORDS)

    def write(self, name, lines):
        with open(os.path.join(self.folder, name), 'w', encoding='utf-8') as file:
            file.write(''.join(line + '\n' for line in lines))

    def corpus(self, name, chance, count, longest=25):
        """Writes `name.src` and `name.trg`: lengths that differ little, and a different line each."""
        src = [' '.join(chance.choices(WORDS, k=2 + int(chance.random() ** 2 * longest))) for _ in range(count)]
        trg = [' '.join(chance.choices(WORDS, k=max(1, len(s.split()) + chance.randrange(-2, 3)))) for s in src]
        self.write(f'{name}.src', src)
        self.write(f'{name}.trg', trg)
        return [(self.vocab.encode(s).tolist(), self.vocab.encode(t).tolist()) for s, t in zip(src, trg)]

    def config(self, corpora=(('train', 0.0),), batch_unit='tokens', batch_size=200, seed=1, **data):
        corpora = tuple(CorpusConfig(f'{name}.src', f'{name}.trg', weight) for name, weight in corpora)
        return Config(
            data=DataConfig(folder=self.folder, corpora=corpora, max_length_ratio=0.0, **data),
            train=TrainConfig(batch_unit=batch_unit, batch_size=batch_size),
            decode=DecodeConfig(batch_tokens=120, max_src_length=30),
            seed=seed,
        )

    def inputs(self, config=None, **options):
        cache = os.path.join(self.folder, 'cache')
        return build_parallel_inputs(
            config or self.config(), self.vocab, self.vocab, cache, say=lambda _: None, **options
        )

    def assert_same_batches(self, found, want):
        for (batch, position), (want_batch, want_position) in zip(found, want, strict=True):
            self.assertEqual(tuple(map(int, position)), tuple(map(int, want_position)))
            for array, want_array in zip(batch, want_batch):
                np.testing.assert_array_equal(array, want_array)


class EpochTest(InputsTest):
    def test_an_epoch_holds_every_pair_once_as_it_was_written(self):
        chance = seeds(self)
        for unit, size in (('tokens', 150), ('sentences', 7)):
            pairs = self.corpus('train', chance, 1501)
            inputs = self.inputs(self.config(batch_unit=unit, batch_size=size))
            self.assertEqual(inputs.size, 1501)
            for epoch in (0, 3):
                seen = []
                for batch, _ in inputs.one_epoch(epoch):
                    cells = (
                        batch.src_ids.size if batch.src_ids.shape[1] > batch.trg_ids.shape[1] else batch.trg_ids.size
                    )
                    self.assertLessEqual(cells if unit == 'tokens' else len(batch.index), size)
                    for row in range(len(batch.index)):
                        src = batch.src_ids[row][batch.src_mask[row]].tolist()
                        trg = batch.trg_ids[row][batch.trg_mask[row]].tolist()
                        self.assertEqual((src[-1], trg[-1]), (self.vocab.eos_id,) * 2)
                        self.assertEqual((src[:-1], trg[:-1]), pairs[batch.index[row]])
                    seen.extend(batch.index.tolist())
                self.assertEqual(sorted(seen), list(range(1501)))

    def test_arrays_are_padded_on_the_right(self):
        self.corpus('train', seeds(self), 300)
        for batch, _ in self.inputs().one_epoch():
            for ids, mask in ((batch.src_ids, batch.src_mask), (batch.trg_ids, batch.trg_mask)):
                self.assertEqual((ids.dtype, mask.dtype, batch.index.dtype), (np.int32, np.bool_, np.int64))
                self.assertTrue((ids[~mask] == self.vocab.pad_id).all())
                self.assertTrue((mask[:, :-1] >= mask[:, 1:]).all())
                self.assertEqual(mask.sum(axis=1).max(), mask.shape[1])

    def test_order_is_a_function_of_seed_and_epoch(self):
        self.corpus('train', seeds(self), 900)
        order = lambda inputs, epoch: [batch.index.tolist() for batch, _ in inputs.one_epoch(epoch)]
        first = self.inputs()
        self.assertEqual(order(first, 0), order(self.inputs(), 0))
        orders = [order(first, 0), order(first, 1), order(self.inputs(self.config(seed=2)), 0)]
        for one, other in itertools.combinations(orders, 2):
            together = lambda order: {frozenset(pair) for batch in order for pair in itertools.combinations(batch, 2)}
            shared = len(together(one) & together(other)) / len(together(one))
            self.assertLess(shared, 0.5)  # other company, not only another order of batches
            self.assertNotEqual(one, other)

    def test_lengths_meet_by_chance_where_asked(self):
        self.corpus('train', seeds(self), 1300)
        config = self.config(batch_unit='sentences', batch_size=13)
        spread = {}
        for by_length in (True, False):
            train = dataclasses.replace(config.train, by_length=by_length)
            batches = [batch for batch, _ in self.inputs(dataclasses.replace(config, train=train)).one_epoch()]
            self.assertEqual(sorted(np.concatenate([batch.index for batch in batches])), list(range(1300)))
            lengths = [batch.trg_mask.sum(axis=1) for batch in batches]
            spread[by_length] = np.mean([x.std() for x in lengths]) / np.concatenate(lengths).std()
        self.assertLess(spread[True], 0.4)
        self.assertGreater(spread[False], 0.8)

    def test_batches_of_a_window_come_in_random_order(self):
        self.corpus('train', seeds(self), 2000)
        lengths = [batch.trg_ids.shape[1] for batch, _ in self.inputs().one_epoch()]
        rising = sum(a <= b for a, b in itertools.pairwise(lengths)) / (len(lengths) - 1)
        self.assertTrue(0.3 < rising < 0.8, rising)

    def test_any_position_goes_on_as_the_stream_that_was_not_stopped(self):
        chance = seeds(self)
        self.corpus('train', chance, 1200)
        self.corpus('more', chance, 170)
        for corpora in ((('train', 0.0),), (('train', 3.0), ('more', 1.0))):
            config = self.config(corpora, batch_unit='sentences', batch_size=5)
            whole = list(itertools.islice(self.inputs(config).batches(), 800))
            epochs = [position.epoch for _, position in whole]
            self.assertGreater(epochs[-1], 1)
            ends = [i for i, (a, b) in enumerate(itertools.pairwise(epochs)) if a != b]
            for at in [0, *ends, *(chance.randrange(700) for _ in range(6))]:
                position = Position(*map(np.int64, whole[at][1]))
                self.assert_same_batches(itertools.islice(self.inputs(config).batches(position), 60),
                                         whole[at + 1 : at + 61])  # fmt: skip
            inputs = self.inputs(config)
            self.assertAlmostEqual(inputs.epochs(whole[ends[0] + 1][1]), 1.0, delta=0.01)

    def test_dataset_gives_the_same_and_positions_to_go_on_from(self):
        self.corpus('train', seeds(self), 400)
        inputs = self.inputs()
        want = list(itertools.islice(inputs.batches(), 50))
        found = list(inputs.dataset().take(30))
        self.assertEqual(found[0][1].epoch.dtype, 'int64')
        self.assert_same_batches(found, want[:30])
        self.assert_same_batches(inputs.dataset(found[-1][1]).take(20), want[30:])

    def test_several_corpora_without_weights_are_read_as_one(self):
        chance = seeds(self)
        pairs = self.corpus('a', chance, 240) + self.corpus('b', chance, 31)
        inputs = self.inputs(self.config((('a', 0.0), ('b', 0.0))))
        seen = {}
        for batch, _ in inputs.one_epoch():
            for row, index in enumerate(batch.index):
                seen[int(index)] = batch.trg_ids[row][batch.trg_mask[row]].tolist()[:-1]
        self.assertEqual(seen, {i: trg for i, (_, trg) in enumerate(pairs)})

    def test_weights_are_the_shares_of_every_window(self):
        chance = seeds(self)
        self.corpus('big', chance, 3000)
        self.corpus('small', chance, 70)
        config = self.config((('big', 1.0), ('small', 3.0)), batch_unit='sentences', batch_size=4)
        counts, small = collections.defaultdict(lambda: [0, 0]), []
        at = (0, 0)
        for batch, position in itertools.islice(self.inputs(config).batches(), 700):
            is_small = batch.index >= 3000
            counts[at][0] += (~is_small).sum()
            counts[at][1] += is_small.sum()
            small.append((at, batch.index[is_small]))
            at = (position.epoch, position.window)
        for window in list(counts)[:-1]:
            self.assertEqual(counts[window][1], 3 * counts[window][0], window)
        # the small corpus runs in epochs of its own: no pair is given out twice more often than another
        given = np.bincount(np.concatenate([index for window, index in small if window != at]) - 3000, minlength=70)
        self.assertLessEqual(given.max() - given.min(), 1)

    def test_padding_is_small_and_what_the_report_says(self):
        self.corpus('train', seeds(self), 6000)
        inputs = self.inputs(self.config(batch_size=1500))
        masks = [mask for batch, _ in inputs.one_epoch() for mask in (batch.src_mask, batch.trg_mask)]
        padding = 1 - sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)
        self.assertLess(padding, 0.13)
        self.assertAlmostEqual(inputs.report.padding, padding, delta=0.02)


class ReportTest(InputsTest):
    def test_report_counts_what_is_there(self):
        self.write('train.src', ['w1', 'w1 w2', '', 'w1 ' * 50, 'w3 \x00'])
        self.write('train.trg', ['w1 w2 w3', 'w1', 'w1', 'w1', 'w1 ' * 70])
        report = self.inputs(self.config(max_src_length=40, max_trg_length=60)).report
        self.assertEqual((report.read, report.kept, report.replaced_lines), (5, 2, 1))
        self.assertEqual([count for _, count in report.dropped.items()], [1, 1, 1, 0])
        self.assertEqual((report.src_tokens, report.trg_tokens), (2 + 3, 4 + 2))
        self.assertEqual(report.src_lengths, {50: 3, 90: 51, 99: 51, 100: 51})
        self.assertEqual(report.trg_lengths, {50: 2, 90: 71, 99: 71, 100: 71})
        self.assertIn('5 pairs read, 2 kept, dropped: 1 empty', str(report))

    def test_ratio_filter_is_on_as_the_config_says(self):
        self.write('train.src', ['w1', 'w1'])
        self.write('train.trg', ['w1 w2 w3', 'w1'])
        config = self.config()
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_length_ratio=2.0))
        self.assertEqual(self.inputs(config).report.dropped['length ratio'], 1)


class FlowFormTest(InputsTest):
    def test_targets_are_filled_with_eos_to_the_unit(self):
        for unit in (1, 4):
            pairs = self.corpus('train', seeds(self), 200)
            for batch, _ in self.inputs(length_unit=unit).one_epoch():
                for row, index in enumerate(batch.index):
                    src, trg = pairs[index]
                    filled = trg + [self.vocab.eos_id] * (-len(trg) % unit)
                    self.assertEqual(batch.trg_ids[row][batch.trg_mask[row]].tolist(), filled)
                    self.assertEqual(batch.src_ids[row][batch.src_mask[row]].tolist(), [*src, self.vocab.eos_id])
                self.assertEqual(batch.trg_ids.shape[1] % unit, 0)

    def test_an_empty_target_is_one_unit_of_eos(self):
        self.write('dev.src', ['w1', ''])
        self.write('dev.trg', ['', 'w2'])
        config = self.config(dev_src='dev.src', dev_trg=('dev.trg',))
        (batch,) = build_eval_inputs(config, self.vocab, self.vocab, length_unit=3).batches()
        self.assertEqual(batch.trg_ids.tolist(), [[3, 3, 3], [6, 3, 3]])
        self.assertTrue(batch.trg_mask.all())
        self.assertEqual(batch.src_ids.tolist(), [[5, 3], [3, 0]])

    def test_a_vocabulary_without_bos(self):
        self.vocab = Vocab(['<pad>', '<unk>', '<eos>', *WORDS])
        self.write('train.src', ['w1 w2 w3'])
        self.write('train.trg', ['w1'])
        ((batch, _),) = self.inputs(length_unit=2).one_epoch()
        self.assertEqual((batch.src_ids.tolist(), batch.trg_ids.tolist()), ([[4, 5, 6, 2]], [[4, 2]]))


class EvalTest(InputsTest):
    def test_pairs_come_in_file_order_none_left_out(self):
        pairs = self.corpus('dev', seeds(self), 300, longest=45)
        config = self.config(dev_src='dev.src', dev_trg=('dev.trg',))
        inputs = build_eval_inputs(config, self.vocab, self.vocab)
        self.assertEqual(inputs.size, 300)
        at = 0
        for batch in inputs.batches():
            self.assertTrue(max(batch.src_ids.size, batch.trg_ids.size) <= 120 or len(batch.index) == 1)
            for row, index in enumerate(batch.index):
                self.assertEqual(index, at)
                for ids, mask, side in zip(batch[:4:2], batch[1:4:2], pairs[at]):
                    self.assertEqual(ids[row][mask[row]].tolist(), [*side[:30], self.vocab.eos_id])
                at += 1
        self.assertEqual(at, 300)
        for found, want in zip(inputs.dataset(), inputs.batches(), strict=True):
            for array, want_array in zip(found, want):
                np.testing.assert_array_equal(array, want_array)

    def test_unlike_files_are_refused(self):
        self.corpus('train', seeds(self), 3)
        self.write('dev.src', ['w1', 'w2', 'w3'])
        self.write('dev.trg', ['w1', 'w2'])
        config = self.config(dev_src='dev.src', dev_trg=('dev.trg',))
        for check in (lambda: check_files(config), lambda: build_eval_inputs(config, self.vocab, self.vocab)):
            with self.assertRaisesRegex(UserError, r'dev\.src, line 3: has no counterpart'):
                check()


class CheckFilesTest(InputsTest):
    def test_good_files_pass(self):
        self.corpus('train', seeds(self), 5)
        self.corpus('dev', seeds(self), 4)
        check_files(self.config(dev_src='dev.src', dev_trg=('dev.trg', 'dev.trg')))

    def test_bad_files_are_refused_by_field(self):
        self.corpus('train', seeds(self), 5)
        self.write('empty', [])
        os.mkdir(os.path.join(self.folder, 'gone.src'))
        for config, message in (
            (self.config((('gone', 0.0),)), r'gone\.src is a folder; .*data\.corpora\.0\.src'),
            (self.config((('train', 0.0), ('nowhere', 0.0))), r'nowhere\.src: no such file.*data\.corpora\.1\.src'),
            (self.config(dev_src='empty', dev_trg=('train.trg',)), r'empty, line 1: the file is empty'),
            (self.config(test_src='nowhere'), r'nowhere: no such file.*test text'),
            (self.config(test_src='train.src', test_trg=('train.trg', 'empty')), r'empty, line 1'),
        ):
            with self.assertRaisesRegex(UserError, message):
                check_files(config)

    def test_a_folder_that_is_not_set_is_told(self):
        config = self.config((('nowhere-at-all', 0.0),))
        unset = dataclasses.replace(config, data=dataclasses.replace(config.data, folder=''))
        with self.assertRaisesRegex(UserError, r'data\.corpora\.0\.src; data\.folder .*is not set'):
            check_files(unset)


class VocabsTest(InputsTest):
    def setUp(self):
        super().setUp()
        self.saved = os.path.join(self.folder, 'model', 'vocab')
        self.write('train.src', ['the cat sees the dog', 'a dog sleeps'] * 9)
        self.write('train.trg', ['die Katze sieht den Hund', 'ein Hund schläft'] * 9)

    def vocabs(self, kind='words', joint=False, size=60, **options):
        vocab = VocabConfig(kind, size=size, **options)
        config = self.config(src_vocab=vocab, trg_vocab=vocab, joint_vocab=joint)
        return build_vocabs(config, self.saved)

    def test_each_side_has_its_own_tokens_and_is_loaded_again(self):
        src, trg = self.vocabs()
        self.assertEqual(set(src.tokens[4:]), {'the', 'cat', 'sees', 'dog', 'a', 'sleeps'})
        self.assertEqual(set(trg.tokens[4:]), {'die', 'Katze', 'sieht', 'den', 'Hund', 'ein', 'schläft'})
        self.assertEqual(sorted(os.listdir(self.saved)), ['src.json', 'src.tokens', 'trg.json', 'trg.tokens'])
        self.write('train.src', ['other text'])
        self.assertEqual([vocab.tokens for vocab in self.vocabs()], [src.tokens, trg.tokens])

    def test_one_vocabulary_for_both_sides(self):
        for kind in ('unigram', 'words'):
            self.saved = os.path.join(self.folder, kind)
            src, trg = self.vocabs(kind, joint=True)
            self.assertIs(src, trg)
            for line in ('the cat sleeps', 'ein Hund sieht die Katze'):
                self.assertEqual(src.decode(src.encode(line)), line)
            self.assertEqual(self.vocabs(kind, joint=True)[0].content_key(), src.content_key())

    def test_vocabularies_from_files(self):
        self.write('list', ['cat', 'Hund'])
        src, trg = self.vocabs('list', file='list')
        self.assertEqual(
            (src.tokens, trg.encode('ein Hund').tolist()), (['<pad>', '<unk>', '<s>', '</s>', 'cat', 'Hund'], [1, 5])
        )
        os.unlink(os.path.join(self.folder, 'list'))
        self.assertEqual(self.vocabs('list', file='list')[0].tokens, src.tokens)  # the model folder has its own copy

    def test_bad_vocabularies_are_refused(self):
        self.write('twice', ['cat', 'dog', 'cat'])
        with self.assertRaisesRegex(UserError, r"twice, line 3: 'cat' is there already, in line 1"):
            self.vocabs('list', file='twice')
        with self.assertRaisesRegex(UserError, r'src_vocab\.file is empty'):
            self.vocabs('sentencepiece')
        with self.assertRaisesRegex(UserError, r'none\.model: no such file'):
            self.vocabs('sentencepiece', file='none.model')
        self.assertFalse(os.path.exists(self.saved) and os.listdir(self.saved))

    def test_unequal_training_text_is_refused_before_a_vocabulary_is_made(self):
        self.write('train.trg', ['ein Hund'])
        with self.assertRaisesRegex(UserError, r'train\.src, line 2: has no counterpart'):
            self.vocabs()
        self.assertFalse(os.path.exists(self.saved))

    def test_a_saved_vocabulary_of_another_config_is_refused(self):
        self.vocabs(size=50)
        with self.assertRaisesRegex(UserError, r'vocab/src: .*size=50, .*size=60'):
            self.vocabs(size=60)

    def test_one_vocabulary_from_given_files(self):
        path = os.path.join(self.folder, 'train.trg')
        vocab = build_vocab(VocabConfig('characters', size=90), [path], self.saved, 'letters')
        self.assertEqual(vocab.decode(vocab.encode('den Katzen')), 'den Katzen'.replace('z', 'z'))
        self.assertEqual(Vocab.load(self.saved, 'letters').tokens, vocab.tokens)

    def test_paths_are_filled_in(self):
        os.environ['SEQUENCING_TEST_FOLDER'] = self.folder
        self.addCleanup(os.environ.pop, 'SEQUENCING_TEST_FOLDER')
        config = Config(data=DataConfig(folder='$SEQUENCING_TEST_FOLDER'))
        self.assertEqual(build_inputs.data_path(config, 'x'), os.path.join(self.folder, 'x'))
        self.assertEqual(build_inputs.data_path(config, '/x'), '/x')


if __name__ == '__main__':
    unittest.main()
