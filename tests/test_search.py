"""Search promises, on a scripted model whose every probability is known."""

import itertools
import math

import numpy as np
import tensorflow as tf

from sequencing import noise
from sequencing.config import DecodeConfig
from sequencing.dynamic_decode import dynamic_decode
from sequencing.feedback import BeamFeedBack, GreedyFeedBack, SampleFeedBack, sampling_distribution, top_tokens
from tests.families import make_translator
from tests.support import seeds

BOS, EOS = 2, 3


class MarkovModel:
    """log p(next | last, how many came before): a table [B, T, N, N], so any sequence can be scored by hand."""

    def __init__(self, table):
        self.table = tf.constant(table, tf.float32)

    def start(self, width):
        batch = self.table.shape[0]
        return tf.zeros([batch, width], tf.int32), self.table

    def step(self, ids, state, memory, time):
        # Logits may have any offset: what counts is their log-softmax.
        logits = tf.gather(memory[:, time], ids, batch_dims=1) + 3.0
        weights = tf.one_hot(time + ids, self.table.shape[1])
        return logits, ids, weights

    def reorder(self, state, parents):
        return tf.gather(state, parents, batch_dims=1)

    def score(self, sentence, ids):
        """Sum of log-probabilities of `ids` and EOS."""
        total, last = 0.0, BOS
        for time, token in enumerate([*ids, EOS]):
            total += float(self.table[sentence, time, last, token])
            last = token
        return total


def random_model(random, batch, longest, size):
    logits = np.random.default_rng(random.randrange(2**31)).normal(size=[batch, longest + 1, size, size]) * 2
    logits[..., [0, BOS]] = -1e9  # PAD and BOS are never written
    return MarkovModel(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def decode(model, feedback):
    @tf.function(autograph=False)
    def run():
        return dynamic_decode(model, feedback, *model.start(feedback.width))

    return tf.nest.map_structure(lambda x: x.numpy(), run())


class SearchTest(tf.test.TestCase):
    def test_a_wide_beam_finds_what_brute_force_finds(self):
        random = seeds(self)
        for alpha in (0.0, 0.7):
            limits = [3, 2]
            model = random_model(random, batch=2, longest=3, size=6)
            words = [1, 4, 5]
            for sentence, limit in enumerate(limits):
                every = [list(ids) for n in range(limit + 1) for ids in itertools.product(words, repeat=n)]
                ranked = sorted(
                    ((model.score(sentence, ids) / ((5 + len(ids)) / 6) ** alpha, ids) for ids in every), reverse=True
                )
                found = decode(model, BeamFeedBack(BOS, EOS, tf.constant(limits), 40, alpha, nbest=5))
                for place in range(5):
                    got = found.ids[sentence, place, : found.lengths[sentence, place]].tolist()
                    self.assertEqual(got, ranked[place][1])
                    self.assertAllClose(found.rank_scores[sentence, place], ranked[place][0], rtol=1e-5)
                    self.assertAllClose(found.scores[sentence, place], model.score(sentence, got), rtol=1e-5)

    def test_under_a_prefix_a_wide_beam_finds_the_best_of_what_begins_with_it(self):
        random = seeds(self)
        for alpha in (0.0, 0.7):
            limits, prefixes = [4, 3, 2], [[5], [], [4, 1, 5]]
            model = random_model(random, batch=3, longest=4, size=6)
            given = tf.constant([[5, -1, -1], [-1, -1, -1], [4, 1, 5]])
            found = decode(model, BeamFeedBack(BOS, EOS, tf.constant(limits), 60, alpha, nbest=4, prefix=given))
            for sentence, (limit, prefix) in enumerate(zip(limits, prefixes)):
                every = [list(ids) for n in range(limit + 1) for ids in itertools.product([1, 4, 5], repeat=n)]
                begun = prefix[:limit]  # one that is too long is cut
                every = [ids for ids in every if ids[: len(begun)] == begun]
                ranked = sorted(
                    ((model.score(sentence, ids) / ((5 + len(ids)) / 6) ** alpha, ids) for ids in every), reverse=True
                )
                for place in range(min(4, len(ranked))):
                    got = found.ids[sentence, place, : found.lengths[sentence, place]].tolist()
                    self.assertEqual(got, ranked[place][1])
                    self.assertAllClose(found.rank_scores[sentence, place], ranked[place][0], rtol=1e-5)
                    self.assertAllClose(found.scores[sentence, place], model.score(sentence, got), rtol=1e-5)
                if len(prefix) > limit:
                    self.assertTrue(found.truncated[sentence, 0])
                    self.assertEqual(found.scores[sentence, 1], -np.inf)

    def test_what_follows_a_prefix_is_what_greedy_search_and_sampling_make_of_it(self):
        random = seeds(self)
        model, limits = random_model(random, batch=5, longest=7, size=8), [7, 6, 7, 2, 4]
        given = np.full([5, 3], -1)
        for row, length in zip(given, (2, 0, 3, 1, 3)):
            row[:length] = [random.choice([4, 5, 6, 7]) for _ in range(length)]
        source = tf.constant([3, 1, 4, 1, 5], tf.uint32)
        common = {'limits': tf.constant(limits), 'prefix': tf.constant(given, tf.int32)}
        greedy = decode(model, GreedyFeedBack(BOS, EOS, **common))
        sampled = decode(
            model, SampleFeedBack(BOS, EOS, seed=random.randrange(2**31), source=source, width=6, **common)
        )
        for sentence, (prefix, limit) in enumerate(zip(given, limits)):
            prefix = [token for token in prefix if token >= 0]
            ids, last = [], BOS
            for time in range(limit):  # by hand: the prefix, then the likeliest token
                token = prefix[time] if time < len(prefix) else int(model.table[sentence, time, last].numpy().argmax())
                if token == EOS:
                    break
                ids.append(token)
                last = token
            self.assertEqual(greedy.ids[sentence, 0, : greedy.lengths[sentence, 0]].tolist(), ids)
            for place in range(6):
                got = sampled.ids[sentence, place, : sampled.lengths[sentence, place]].tolist()
                self.assertEqual(got[: len(prefix)], prefix[:limit])
                self.assertAllClose(sampled.scores[sentence, place], model.score(sentence, got), rtol=1e-5)

    def test_a_beam_of_one_is_greedy_search(self):
        random = seeds(self)
        for alpha in (0.0, 1.0):
            model = random_model(random, batch=7, longest=9, size=11)
            limits = tf.constant([9, 8, 7, 3, 0, 9, 5])
            greedy = decode(model, GreedyFeedBack(BOS, EOS, limits, alpha, attention=True))
            beam = decode(model, BeamFeedBack(BOS, EOS, limits, 1, alpha, attention=True))
            for got, want in zip(beam, greedy):
                self.assertAllEqual(got, want)
            for sentence in range(7):
                ids = greedy.ids[sentence, 0, : greedy.lengths[sentence, 0]]
                self.assertAllClose(greedy.scores[sentence, 0], model.score(sentence, ids), rtol=1e-5)

    def test_a_sentence_gets_the_same_in_any_batch(self):
        random = seeds(self)
        model = random_model(random, batch=5, longest=8, size=9)
        limits = [8, 2, 6, 8, 4]
        together = decode(model, BeamFeedBack(BOS, EOS, tf.constant(limits), 3, 0.6, nbest=2))
        for sentence, limit in enumerate(limits):
            alone = decode(
                MarkovModel(model.table[sentence : sentence + 1]),
                BeamFeedBack(BOS, EOS, tf.constant([limit]), 3, 0.6, nbest=2),
            )
            for place in range(2):
                length = alone.lengths[0, place]
                self.assertEqual(length, together.lengths[sentence, place])
                self.assertAllEqual(alone.ids[0, place, :length], together.ids[sentence, place, :length])
                self.assertAllClose(alone.scores[0, place], together.scores[sentence, place])

    def test_attention_belongs_to_the_tokens_of_its_hypothesis(self):
        # Step t of the scripted model attends to t plus the token just fed: each row tells what came before it.
        random = seeds(self)
        model = random_model(random, batch=3, longest=12, size=6)
        found = decode(model, BeamFeedBack(BOS, EOS, tf.constant([6, 6, 6]), 4, nbest=4, attention=True))
        for sentence, place in itertools.product(range(3), range(4)):
            last = BOS
            for time in range(found.lengths[sentence, place]):
                self.assertEqual(found.attention[sentence, place, time].argmax(), time + last)
                last = found.ids[sentence, place, time]

    def test_only_a_forced_end_counts_as_truncated(self):
        never = np.full([1, 4, 6, 6], -1e9)
        never[..., 4] = math.log(0.9)
        never[..., EOS] = math.log(0.1)
        ends = never.copy()
        ends[:, 2, :, EOS], ends[:, 2, :, 4] = math.log(0.9), math.log(0.1)
        for table, truncated in ((never, True), (ends, False)):
            found = decode(MarkovModel(table), GreedyFeedBack(BOS, EOS, tf.constant([2])))
            self.assertEqual(found.lengths[0, 0], 2)
            self.assertEqual(bool(found.truncated[0, 0]), truncated)

    def test_samples_are_drawn_as_often_as_their_probability_says(self):
        random = seeds(self)
        model = random_model(random, batch=1, longest=1, size=7)
        count = 20_000
        source = noise.source_hash(tf.constant([[5, 3]]), tf.constant([[True, True]]))
        feedback = SampleFeedBack(BOS, EOS, tf.constant([1]), random.randrange(2**31), source, width=count)
        found = decode(model, feedback)
        first = np.where(found.lengths[0] > 0, found.ids[0, :, 0], EOS)
        expected = np.exp(model.table[0, 0, BOS].numpy())
        drawn = np.bincount(first, minlength=7) / count
        # Six standard deviations: fails once in 10^8 runs.
        self.assertAllLess(np.abs(drawn - expected) - 6 * np.sqrt(expected * (1 - expected) / count), 1e-6)

    def test_a_sample_is_the_same_in_any_batch(self):
        random = seeds(self)
        model = random_model(random, batch=4, longest=6, size=8)
        seed = random.randrange(2**31)
        source = tf.constant([9, 8, 7, 6], tf.uint32)
        limits = tf.constant([6, 6, 6, 6])
        together = decode(model, SampleFeedBack(BOS, EOS, limits, seed, source, width=3, temperature=0.8, top_k=4))
        turned = decode(
            MarkovModel(model.table[::-1]),
            SampleFeedBack(BOS, EOS, limits, seed, source[::-1], width=3, temperature=0.8, top_k=4),
        )
        self.assertAllClose(together.scores, turned.scores[::-1])
        self.assertNotAllClose(together.scores[0], together.scores[1])

    def test_the_largest_by_blocks_are_the_largest(self):
        random = np.random.default_rng(seeds(self).randrange(2**31))
        for size in (7, 640, 1000, 3001):
            # Few different values, so that there are ties, which go to the lowest id.
            logits = tf.constant(random.integers(0, size, [2, 3, size]), tf.float32)
            values, tokens = top_tokens(logits, 5)
            order = np.argsort(-logits.numpy(), axis=-1, kind='stable')[..., :5]
            self.assertAllEqual(tokens, order)
            self.assertAllEqual(values, np.take_along_axis(logits.numpy(), order, -1))

    def test_top_k_and_top_p_keep_the_likeliest(self):
        random = seeds(self)
        probs = np.random.default_rng(random.randrange(2**31)).dirichlet(np.ones(9), size=4).astype('float32')
        for top_k, top_p in ((3, 1.0), (0, 0.6), (4, 0.7)):
            got = sampling_distribution(tf.math.log(probs), 1.0, top_k, top_p).numpy()
            for row, result in zip(probs.astype('float64'), got):
                kept = list(np.argsort(-row))[: top_k or 9]
                inside = row[kept] / row[kept].sum()
                if top_p < 1:
                    fewest = next(n for n in range(1, len(kept) + 1) if inside[:n].sum() >= top_p - 1e-9)
                    kept = kept[:fewest]
                want = np.zeros(9)
                want[kept] = row[kept] / row[kept].sum()
                self.assertAllClose(result, want, atol=1e-5)

    def test_a_sentence_without_numbers_ends_empty_and_leaves_the_others_alone(self):
        random = seeds(self)
        model, limits = random_model(random, batch=3, longest=6, size=5), tf.constant([4, 6, 5])
        for make in (GreedyFeedBack, lambda *args: BeamFeedBack(*args, 2)):
            whole = decode(model, make(BOS, EOS, limits))
            broken = MarkovModel(tf.where(tf.range(3)[:, None, None, None] == 1, float('nan'), model.table))
            found = decode(broken, make(BOS, EOS, limits))
            self.assertAllEqual(found.lengths[1], tf.zeros_like(found.lengths[1]))
            self.assertAllEqual(found.scores[1], tf.fill([found.scores.shape[1]], float('-inf')))
            for row in (0, 2):
                self.assertAllEqual(found.scores[row], whole.scores[row])
                for place, length in enumerate(found.lengths[row]):
                    self.assertAllEqual(found.ids[row, place, :length], whole.ids[row, place, :length])

    def test_sentences_that_have_ended_are_walked_no_more(self):
        random = seeds(self)
        limits = [random.randint(1, 12) for _ in range(23)]
        endless = random_model(random, len(limits), max(limits), size=7)
        endless.table = tf.where(tf.range(7) == EOS, -1e9, endless.table)
        walked = []

        class Counting(MarkovModel):
            def step(self, ids, state, memory, time):
                walked.append(int(tf.shape(ids)[0]))
                return super().step(ids, state, memory, time)

        model = Counting(endless.table)
        for feedback in (GreedyFeedBack(BOS, EOS, tf.constant(limits)), BeamFeedBack(BOS, EOS, tf.constant(limits), 3)):
            walked.clear()
            found = dynamic_decode(model, feedback, *model.start(feedback.width))  # eagerly
            self.assertAllEqual(found.lengths[:, 0], limits)
            growing = [sum(limit >= time for limit in limits) for time in range(max(limits) + 1)]
            self.assertLen(walked, len(growing))
            for rows, needed in zip(walked, growing):
                self.assertBetween(needed, rows * 7 // 8 + 1, rows)  # no more than an eighth for nothing


class LimitTest(tf.test.TestCase):
    def test_outputs_that_never_end_are_as_long_as_the_ratio_allows(self):
        for ratio, words in ((0.5, 7), (3.0, 4)):
            translator = make_translator('rnn', 1, decode=DecodeConfig(length_ratio=ratio))
            translator.model.output.bias.assign_add(-99.0 * tf.one_hot(translator.trg_vocab.eos_id, 12))
            for options, want in (({}, int(ratio * words) + 20), ({'max_length': 5}, 5)):
                (result,) = translator.stream([' '.join(['a'] * words)], decode='greedy', **options)
                self.assertLen(result.outputs[0].tokens, want)


if __name__ == '__main__':
    tf.test.main()
