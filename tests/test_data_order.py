"""The order of examples: permutations and cuts."""

import unittest

import numpy as np

from sequencing.data_order import cut_into_batches, key_of, permute, shuffled
from tests.support import seeds


class PermuteTest(unittest.TestCase):
    def test_every_size_and_key_gives_a_permutation(self):
        chance = seeds(self)
        for size in [1, 2, 3, 255, 256, 257, 1023, 1025] + [chance.randrange(4, 5000) for _ in range(20)]:
            found = permute(np.arange(size), size, chance.randrange(2**64))
            np.testing.assert_array_equal(np.sort(found), np.arange(size))

    def test_a_part_is_the_part_of_the_whole(self):
        chance = seeds(self)
        size, key = 12_345, chance.randrange(2**64)
        whole = permute(np.arange(size), size, key)
        places = np.array(chance.sample(range(size), 77))
        np.testing.assert_array_equal(permute(places, size, key), whole[places])

    def test_huge_sizes_stay_inside_and_distinct(self):
        size = 3_000_000_001
        found = permute(np.arange(size - 2000, size), size, seeds(self).randrange(2**64))
        self.assertEqual(len(set(found.tolist())), 2000)
        self.assertTrue((0 <= found).all() and (found < size).all())

    def test_keys_give_unlike_orders_that_look_random(self):
        chance = seeds(self)
        size = 20_000
        orders = [permute(np.arange(size), size, key_of(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
        orders.append(permute(np.arange(size), size, chance.randrange(2**64)))
        for i, order in enumerate(orders):
            # of independent random orders a correlation has a standard deviation of 1 / sqrt(size) = 0.007
            self.assertLess(abs(np.corrcoef(order, np.arange(size))[0, 1]), 0.05)
            self.assertLess(abs(np.corrcoef(order[1:], order[:-1])[0, 1]), 0.05)
            self.assertLess((order == np.arange(size)).sum(), 12)
            for other in orders[:i]:
                self.assertLess((order == other).sum(), 12)
        # where the first tenth goes: each tenth of the places gets a tenth of it, give or take
        counts = np.histogram(orders[-1][: size // 10], bins=10, range=(0, size))[0]
        self.assertTrue((abs(counts - 200) < 90).all(), counts)

    def test_shuffled_holds_all_and_depends_on_the_key(self):
        first, second = shuffled(500, key_of(1)), shuffled(500, key_of(2))
        np.testing.assert_array_equal(np.sort(first), np.arange(500))
        self.assertGreater((first != second).sum(), 450)
        np.testing.assert_array_equal(first, shuffled(500, key_of(1)))

    def test_the_order_is_the_same_in_every_version(self):
        """A change here changes the order in which a resumed training goes on."""
        self.assertEqual(permute(np.arange(8), 1000, key_of(1, 2)).tolist(), GOLDEN)


GOLDEN = [902, 474, 833, 693, 222, 897, 352, 532]


class CutTest(unittest.TestCase):
    def lengths(self, chance, count):
        src = np.array([1 + int(chance.expovariate(0.08)) for _ in range(count)])
        trg = np.maximum(1, src + np.array([chance.randrange(-4, 5) for _ in range(count)]))
        return src, trg

    def test_batches_hold_every_place_once_within_the_limit(self):
        chance = seeds(self)
        for count, unit, limit in ((1, 'tokens', 50), (700, 'tokens', 400), (3000, 'tokens', 3000),
                                   (1, 'sentences', 7), (701, 'sentences', 32), (64, 'sentences', 32)):  # fmt: skip
            src, trg = self.lengths(chance, count)
            batches = cut_into_batches(src, trg, unit, limit)
            np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(count))
            for batch in batches:
                longest = max(src[batch].max(), trg[batch].max())
                size = len(batch) * longest if unit == 'tokens' else len(batch)
                self.assertTrue(size <= limit or len(batch) == 1, (unit, limit, size))

    def test_no_more_batches_than_filling_one_after_another_takes(self):
        src, trg = self.lengths(seeds(self), 2000)
        batches = cut_into_batches(src, trg, 'tokens', 500)
        count = size = widest = 0
        for length in np.sort(np.maximum(src, trg)):
            widest = max(widest, length)
            if size == 0 or (size + 1) * widest > 500:
                count, size, widest = count + 1, 0, length
            size += 1
        self.assertLessEqual(len(batches), count)

    def test_neighbours_in_length_stand_together(self):
        src, trg = self.lengths(seeds(self), 5000)
        batches = cut_into_batches(src, trg, 'tokens', 1500)
        cells = sum(len(batch) * (src[batch].max() + trg[batch].max()) for batch in batches)
        self.assertLess(1 - (src.sum() + trg.sum()) / cells, 0.15)

    def test_batches_of_chance_are_neighbours_in_place_and_full(self):
        src, trg = self.lengths(seeds(self), 37 * 11)
        batches = cut_into_batches(src, trg, 'sentences', 37, by_length=False)
        np.testing.assert_array_equal(batches, np.arange(37 * 11).reshape(11, 37))


if __name__ == '__main__':
    unittest.main()
