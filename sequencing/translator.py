"""Text in, text out: a trained model as an object that translates lines.

    import sequencing
    model = sequencing.load('runs/demo')
    print(model.translate(['The old house is small.']))

Lines go in raw and come out raw, in order; `Translator.stream` also tells scores, pieces and attention.
"""

import os
import threading
from queue import Queue
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sequencing.decode_options import options_for
from sequencing.layers import store_for_decoding
from sequencing.model_folder import checkpoint_path, read_config, restore_weights
from sequencing.structures import Batch
from sequencing.training import BATCH_SIGNATURE, exchange_with_averages
from sequencing.vocab import Vocab

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


class Translation(NamedTuple):
    """All outputs of one line, best first."""

    outputs: list  # of Output; a blank line has one, empty
    source_tokens: list  # pieces that the model read, EOS not counted
    source_truncated: bool  # the source was longer than the model reads, and was cut


class Translator:
    """A model with its vocabularies.

    Args:
      model: has `decoding_modes` and `translate(src_ids, src_mask, limits, options) -> Hypotheses`.
      config: `Config`; src_vocab, trg_vocab: `Vocab`s.
    """

    def __init__(self, model, config, src_vocab, trg_vocab):
        self.model, self.config = model, config
        self.src_vocab, self.trg_vocab = src_vocab, trg_vocab
        self._functions = {}
        self._score = tf.function(
            lambda *batch: model.score(Batch(*batch))[0], input_signature=list(BATCH_SIGNATURE), autograph=False
        )

    def translate(self, lines, **options):
        """Translates a list of lines to a list of lines, in order; `options` are fields of `DecodeOptions`."""
        return [result.outputs[0].translation for result in self.stream(lines, **options)]

    def stream(self, lines, **options):
        """Translates an iterable of lines of any length, in order and in bounded memory.

        Lines are taken as they come: while one batch is decoded the next lines are read, and a lone line is answered
        without waiting for more.

        Args:
          lines: iterable of str.
          options: fields of `DecodeOptions`.
        Yields:
          a `Translation` for each line.
        """
        options = options_for(self.model, self.config, **options)
        for window in _windows(lines, WINDOW_LINES):
            yield from self._translate_window(window, options)

    def score(self, sources, targets):
        """log p(target | source) in nats, EOS included.

        Args:
          sources: list of lines.
          targets: list of lines, or of lists of pieces as `Output.tokens` holds them.
        Returns:
          a list of floats.
        """
        limit = self.config.decode.max_src_length
        src = [ids[:limit] for ids in self.src_vocab.encode_lines(sources)]
        trg = [self.trg_vocab.encode(t) if isinstance(t, str) else self.trg_vocab.ids_of(t) for t in targets]
        src = [np.append(ids, self.src_vocab.eos_id) for ids in src]
        trg = [np.append(ids, self.trg_vocab.eos_id) for ids in trg]
        scores = [0.0] * len(src)
        lengths = [max(len(s), len(t)) for s, t in zip(src, trg)]
        for batch in batches_by_length(range(len(src)), lengths, self.config.decode.batch_tokens):
            src_ids, src_mask = pad([src[i] for i in batch], self.src_vocab.pad_id)
            trg_ids, trg_mask = pad([trg[i] for i in batch], self.trg_vocab.pad_id)
            found = self._score(src_ids, src_mask, trg_ids, trg_mask, np.array(batch, np.int64))
            for i, score in zip(batch, found.numpy()):
                scores[i] = float(score)
        return scores

    def _translate_window(self, lines, options):
        encoded = self.src_vocab.encode_lines(lines)
        cut = [len(ids) > options.max_src_length for ids in encoded]
        encoded = [ids[: options.max_src_length] for ids in encoded]
        results = [_blank(too_long) if not len(ids) else None for ids, too_long in zip(encoded, cut)]
        waiting = [i for i, ids in enumerate(encoded) if len(ids)]
        for batch in batches_by_length(waiting, [len(ids) + 1 for ids in encoded], options.batch_tokens):
            found = self._decode([encoded[i] for i in batch], options)
            for row, i in enumerate(batch):
                pieces = self.src_vocab.pieces(encoded[i])
                results[i] = Translation(self._outputs(found, row, len(encoded[i]) + 1, options), pieces, cut[i])
        return results

    def _decode(self, sources, options):
        """Decodes id arrays of similar length, and returns `Hypotheses` of NumPy arrays."""
        src_ids, mask = pad([np.append(ids, self.src_vocab.eos_id) for ids in sources], self.src_vocab.pad_id)
        lengths = mask.sum(axis=1)
        limits = np.full([len(sources)], options.max_length) if options.max_length else 2 * lengths + 18
        found = self._function(options)(src_ids, mask, limits.astype(np.int32))
        return type(found)(*[field.numpy() for field in found])

    def _function(self, options):
        if options not in self._functions:
            signature = [
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None, None], tf.bool),
                tf.TensorSpec([None], tf.int32),
            ]
            self._functions[options] = tf.function(
                lambda ids, mask, limits: self.model.translate(ids, mask, limits, options),
                input_signature=signature,
                autograph=False,
            )
        return self._functions[options]

    def _outputs(self, found, row, src_length, options):
        outputs = []
        for place in range(min(options.nbest, found.ids.shape[1])):
            if not np.isfinite(found.scores[row, place]) and outputs:
                break
            length = int(found.lengths[row, place])
            ids = found.ids[row, place, :length]
            attention = found.attention[row, place, :length, :src_length] if options.attention else None
            outputs.append(
                Output(
                    translation=self.trg_vocab.decode(ids),
                    tokens=self.trg_vocab.pieces(ids),
                    length=length,
                    score=float(found.scores[row, place]),
                    rank_score=float(found.rank_scores[row, place]),
                    output_truncated=bool(found.truncated[row, place]),
                    attention=attention,
                )
            )
        return outputs


def _blank(too_long):
    return Translation([Output('', [], 0, 0.0, 0.0, False, None)], [], too_long)


def _windows(lines, size):
    """Cuts an iterable into lists: at least one line each, and whatever else has come meanwhile, up to `size`."""
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
        while len(window) < size and (queue.qsize() or not _slow(lines)) and not _is_last(window[-1], end):
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


def _slow(lines):
    """Whether lines may come one by one with pauses, as from a terminal or a pipe."""
    return getattr(lines, 'waits', False)


def pad(rows, pad_id):
    """A list of id arrays as `[B, T]` int32 and its mask."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, np.newaxis]
    ids = np.full(mask.shape, pad_id, np.int32)
    ids[mask] = np.concatenate(rows)
    return ids, mask


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


def load_vocabs(config, model_dir):
    """The source and target `Vocab` of a model folder."""
    folder = os.path.join(model_dir, 'vocab')
    if config.data.joint_vocab:
        return (Vocab.load(folder, 'joint'),) * 2
    return Vocab.load(folder, 'src'), Vocab.load(folder, 'trg')


def restore_averages(model, path, train):
    """Puts the moving averages of a training's checkpoint in place of the weights."""
    from sequencing.optimizers import build_optimizer  # imports Keras, which translating alone does not need

    optimizer = build_optimizer(train)
    optimizer.build(model.trainable_variables)
    tf.train.Checkpoint(model=model, optimizer=optimizer).restore(path).expect_partial()
    exchange_with_averages(optimizer, model.trainable_variables)


def load(model_dir, checkpoint='best', precision=None):
    """Loads a trained model.

    Args:
      model_dir: the model folder.
      checkpoint: 'best', 'last', or the path of one.
      precision: 'float32', 'mixed_bfloat16' or 'mixed_float16'; by default what the model was trained in.
    Returns:
      `Translator`.
    Raises:
      UserError: there is no model, or it cannot be read.
    """
    from build_model import build_model  # joins the parts, so it stands above this package

    config = read_config(model_dir)
    path = checkpoint_path(model_dir, checkpoint)
    src_vocab, trg_vocab = load_vocabs(config, model_dir)
    model = build_model(config, src_vocab, trg_vocab, precision)
    restore_weights(model, path)
    if config.train.ema and os.path.basename(os.path.dirname(path)) != 'best':  # `best` holds the averages already
        restore_averages(model, path, config.train)
    if config.model.kind == 'seq2seq':
        store_for_decoding(model, model.dtype)
    elif config.model.kind == 'flowseq':
        model = model.for_decoding()
    return Translator(model, config, src_vocab, trg_vocab)
