"""The order of training examples: a function of (seed, epoch), computed where it is needed, with nothing to remember.

A pseudo-random permutation gives the example at any place of an epoch at once, so a run resumes in the middle of an
epoch without walking there, and a corpus of any size is shuffled as a whole without a list of its examples.
"""

import numpy as np

_ROUNDS = 5


def mix64(values, key):
    """Hashes uint64 `values` with an integer key (the finaliser of SplitMix64, Steele et al., 2014)."""
    mixed = np.asarray(values, np.uint64) + np.uint64((key + 0x9E3779B97F4A7C15) % (1 << 64))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def key_of(*parts):
    """One integer key from several integers, their order mattering."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix64(key, int(part) + 1)
    return int(key[0])


def permute(places, size, key):
    """Where a pseudo-random permutation of `range(size)` takes each place.

    A Feistel network (Luby and Rackoff, 1988) permutes the numbers of an even count of bits; numbers that come out at
    `size` or above are sent through again until they fall inside (cycle walking), which keeps it a permutation.

    Args:
      places: `[n]` int64 in `[0, size)`.
      size: number of things that are permuted.
      key: integer that chooses the permutation.
    Returns:
      `[n]` int64 in `[0, size)`.
    """
    half = np.uint64(max(4, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = [key_of(key, i) for i in range(_ROUNDS)]
    found = np.array(places, np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        left, right = found[outside] >> half, found[outside] & low
        for round_key in keys:
            left, right = right, left ^ (mix64(right, round_key) & low)
        found[outside] = (left << half) | right
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def shuffled(count, key):
    """`range(count)` in a random order, `[count]` int64, all of it at once."""
    return np.argsort(mix64(np.arange(count), key), kind='stable')


def cut_into_batches(src_lengths, trg_lengths, unit, limit, by_length=True):
    """Cuts a window of examples into batches of like lengths, or as they come.

    Examples are sorted by the longer side, then target, then source, and cut where a batch is full. As many batches
    as that takes are then made equally full, so that no small one is left over at the end.

    Args:
      src_lengths, trg_lengths: `[n]` int, as they will stand in the batch.
      unit: 'sentences', or 'tokens' for sentences x longest side, padding included.
      limit: the most that a batch may hold, in `unit`; a single example that is larger is a batch of its own.
      by_length: whether to sort; false for unit 'sentences' only.
    Returns:
      A list of `[k]` int64 places in the window, which together hold every place once.
    """
    longest = np.maximum(src_lengths, trg_lengths)
    order = np.lexsort((src_lengths, trg_lengths, longest)) if by_length else np.arange(len(longest))
    if unit == 'sentences':
        return np.array_split(order, -(-len(order) // limit))
    longest = longest[order].tolist()  # rises, so the cost of places a to b is (b - a) * longest[b - 1]
    cuts = _cut(longest, limit)
    low, high = limit // 2, limit  # halving the interval: the smallest limit that needs no more batches
    while high - low > max(1, limit // 200):
        middle = (low + high) // 2
        fewer = _cut(longest, middle)
        if len(fewer) <= len(cuts):
            cuts, high = fewer, middle
        else:
            low = middle
    return np.split(order, cuts[:-1])


def _cut(longest, limit):
    """Ends of batches: each takes places while (number of places) x (length of the last) stays within `limit`."""
    ends, start, size = [], 0, len(longest)
    while start < size:
        # the cost rises with the end, so the last end within the limit is found by halving
        low, high = start + 1, min(size, start + max(1, limit // longest[start]))
        while low < high:
            middle = (low + high + 1) // 2
            if (middle - start) * longest[middle - 1] <= limit:
                low = middle
            else:
                high = middle - 1
        ends.append(low)
        start = low
    return ends
