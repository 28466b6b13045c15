"""Lines cut into batches, and what comes out for each; nothing here needs TensorFlow."""

import threading
from queue import Queue
from typing import NamedTuple

import numpy as np

from sequencing.errors import UserError

WINDOW_LINES = 10_000  # lines held at a time; their batches are cut from lines of similar length


class Output(NamedTuple):
    """One hypothesis of one line."""

    translation: str
    tokens: list  # pieces, EOS not counted
    length: int  # how many
    score: float  # log-probability in nats, EOS included
    rank_score: float  # what the mode ranks by
    output_truncated: bool  # the length limit came before EOS
    attention: np.ndarray  # [length, source length] float32, or None
    length_log_prob: float = None  # flow models: log p(span | source)
    span: int = None  # flow models: the length that was decoded, EOS filling included
    sample: int = None  # flow models: which latent of that length it came from, 0 for the first


class Translation(NamedTuple):
    """All outputs of one line, best first."""

    outputs: list  # of Output; a blank line has one, empty
    source_tokens: list  # pieces that the model read, EOS not counted
    source_truncated: bool  # the source was longer than the model reads, and was cut
    prefix_truncated: bool = False  # the prefix was longer than the output may be, and was cut
    rescoring_truncated: bool = False  # the source was longer than the model that scores candidates reads
    candidates: int = None  # flow models and mbr: how many outputs there were to choose from
    candidates_missing: int = 0  # flow models: how many more were asked for, of lengths that cannot be told


def blank(too_long, is_flow=False):
    """The `Translation` of a blank line, which no model is asked for."""
    length_log_prob, count = (0.0, 0) if is_flow else (None, None)
    output = Output('', [], 0, 0.0, 0.0, False, None, length_log_prob, count, count)
    return Translation([output], [], too_long, candidates=count)


def outputs_of(found, row, vocab, most, src_length=0):
    """The outputs of one line of a batch, best first.

    Args:
      found: what a model's `translate` gives, arrays of NumPy; row: the line's place in the batch.
      vocab: of the target; most: how many outputs at most; there is at least one.
      src_length: of the line, to keep its attention weights; 0 leaves them out.
    Returns:
      a list of `Output`.
    """
    outputs, is_flow = [], hasattr(found, 'spans')
    for place in range(min(most, found.ids.shape[1])):
        if not np.isfinite(found.scores[row, place]) and outputs:
            break
        length = int(found.lengths[row, place])
        ids = found.ids[row, place, :length]
        output = Output(
            translation=vocab.decode(ids, keep_pad=is_flow),  # a token like others there, with `any_token`
            tokens=vocab.pieces(ids),
            length=length,
            score=float(found.scores[row, place]),
            rank_score=float(found.rank_scores[row, place]),
            output_truncated=bool(found.truncated[row, place]),
            attention=found.attention[row, place, :length, :src_length] if src_length else None,
        )
        if is_flow:
            told = float(found.length_log_probs[row, place]), int(found.spans[row, place])
            output = output._replace(length_log_prob=told[0], span=told[1], sample=int(found.numbers[row, place]))
        outputs.append(output)
    return outputs


def windows(lines, slow, size=WINDOW_LINES):
    """Cuts an iterable into lists: at least one line each, and whatever else has come meanwhile, up to `size`; without
    waiting for more where they are `slow` to come."""
    queue, end = Queue(maxsize=2 * size), object()

    def read():
        try:
            for line in lines:
                queue.put(line)
            queue.put(end)
        except BaseException as error:  # handed over to the reader of the queue
            queue.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        window = [queue.get()]
        while len(window) < size and (queue.qsize() or not slow) and not _is_last(window[-1], end):
            window.append(queue.get())
        last = window.pop() if _is_last(window[-1], end) else None
        if window:
            yield window
        if isinstance(last, BaseException):
            raise last
        if last is end:
            return


def _is_last(item, end):
    return item is end or isinstance(item, BaseException)


def lines_of(lines):
    """`lines`, an iterable of them; a lone string, whose letters would be taken for lines, is refused."""
    if isinstance(lines, (str, bytes)):
        raise UserError(f'translate takes a list of lines; got one string: [{lines[:20]!r}] is a list of one.')
    return lines


def slow(lines):
    """Whether lines may come one by one with pauses, as from a terminal or a pipe."""
    return getattr(lines, 'waits', False)


def pad(rows, pad_id):
    """A list of id arrays as `[B, T]` int32 and its mask."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, np.newaxis]
    ids = np.full(mask.shape, pad_id, np.int32)
    ids[mask] = np.concatenate(rows)
    return ids, mask


def different(rows):
    """The different ones in a list of id arrays, and which of them each is, `[n]` int32."""
    keys = [row.tobytes() for row in rows]
    kept = dict(zip(keys, rows))
    places = {key: place for place, key in enumerate(kept)}
    return list(kept.values()), np.array([places[key] for key in keys], np.int32)


def batches_by_length(items, lengths, batch_tokens):
    """Cuts items into batches of similar length.

    Args:
      items: numbers of the lines to batch.
      lengths: length of every line, EOS included.
      batch_tokens: a batch's lines times its longest stay below this, unless it is one line.
    Yields:
      lists of items, longest first, so that running out of memory shows at once.
    """
    batch = []
    for item in sorted(items, key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
