"""Text in, text out: a trained model as an object that translates lines.

    import sequencing
    model = sequencing.load('runs/demo')
    print(model.translate(['The old house is small.']))

Lines go in raw and come out raw, in order; `Translator.stream` also tells scores, pieces and attention, and `score`
tells the log-probability of given translations.
"""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from queue import LifoQueue

import numpy as np
import tensorflow as tf

from sequencing import reranking
from sequencing.cli import note
from sequencing.decode_options import options_for
from sequencing.errors import UserError
from sequencing.layers import blank_weights, store_for_decoding
from sequencing.line_batches import (
    Translation,
    batches_by_length,
    blank,
    different,
    lines_of,
    outputs_of,
    pad,
    slow,
    windows,
)
from sequencing.model_folder import checkpoint_path, read_config, restore_weights
from sequencing.structures import AllowedTokens, Batch
from sequencing.training import BATCH_SIGNATURE, exchange_with_averages
from sequencing.vocab import Vocab

SIGNATURE = (  # of a batch to decode: source ids and mask, limits, seed
    tf.TensorSpec([None, None], tf.int32),
    tf.TensorSpec([None, None], tf.bool),
    tf.TensorSpec([None], tf.int32),
    tf.TensorSpec([], tf.int32),
)
CONSTRAINTS = {
    'prefix': tf.TensorSpec([None, None], tf.int32),
    'shortlist': AllowedTokens(tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, None], tf.bool)),
}


class Translator:
    """A model with its vocabularies.

    Args:
      model: has `decoding_modes` and `translate(src_ids, src_mask, limits, options) -> Hypotheses`.
      config: `Config`; src_vocab, trg_vocab: `Vocab`s.
      device: where it computes, such as GPU:0; None for where TensorFlow likes.
      load_copies: called without arguments when there is first work for them, gives `Translator`s of the same model on
        other devices.
    """

    def __init__(self, model, config, src_vocab, trg_vocab, device=None, load_copies=list):
        self.device, self._load_copies, self._copies = device, load_copies, None
        self.model, self.config = model, config
        self.src_vocab, self.trg_vocab = src_vocab, trg_vocab
        self.is_flow = config.model.kind == 'flowseq'
        self._functions, self._scorers, self._rescorers = {}, {}, {}

    def translate(self, lines, prefixes=None, shortlist=None, **options):
        """Translates a list of lines to a list of lines, in order; the others as in `stream`."""
        return [result.outputs[0].translation for result in self.stream(lines, prefixes, shortlist, **options)]

    def stream(self, lines, prefixes=None, shortlist=None, **options):
        """Translates an iterable of lines of any length, in order and in bounded memory.

        Lines are taken as they come: while one batch is decoded the next lines are read, and a lone line is answered
        without waiting for more.

        Args:
          lines: iterable of str.
          prefixes: iterable of as many str, what each translation begins with ('' for nothing); autoregressive models
            only. Scores count it. One that is longer than `max_length` is cut.
          shortlist: `shortlist.Shortlist`, the only tokens that a translation may hold; autoregressive models only.
            Scores are those of the model restricted to them.
          options: fields of `DecodeOptions`.
        Yields:
          a `Translation` for each line.
        Raises:
          UserError: an option that the model does not have; more lines or more prefixes than of the other.
        """
        options = options_for(self.model, self.config, **options)
        if (prefixes is not None or shortlist is not None) and self.config.model.kind != 'seq2seq':
            raise UserError('a prefix and a shortlist steer autoregressive models only; this one writes all its tokens '
                            f'at once ({self.config.model.kind}).')  # fmt: skip
        rescorer = self._rescorer(options)
        items = ((line, '') for line in lines_of(lines)) if prefixes is None else _paired(lines, prefixes)
        for window in windows(items, slow(lines)):
            some, begun = map(list, zip(*window))
            yield from self._translate_window(some, None if prefixes is None else begun, shortlist, options, rescorer)

    def score(self, sources, targets, spans=None, samples=None, **options):
        """log p(target | source) in nats, EOS included: what decoding with the same options reports as `score`.

        For flow models that is log p(y | z, x), with `decode='iw'` the importance-weighted estimate, -inf for a length
        that cannot be told, which is said. With `rescore_model` and a mode that asks it, that model scores the text.

        Args:
          sources: list of lines.
          targets: list of lines, or of lists of pieces as `Output.tokens` holds them.
          spans: for flow models, lengths with EOS filling as `Output.span` tells them; by default the shortest.
          samples: for flow models, which latent each target came from, as `Output.sample` tells it; needed where `tau`
            is above 0 and the score is that of a latent.
          options: fields of `DecodeOptions`.
        Returns:
          a list of floats; 0 for an empty target of a blank source, which is its sure translation.
        Raises:
          UserError: an option that the model does not have, no `samples` where they are needed, or a piece that the
            target vocabulary does not hold.
        """
        options = options_for(self.model, self.config, **options)
        rescorer = self._rescorer(options)
        if rescorer is not None:
            texts = [t if isinstance(t, str) else self._text_of(t) for t in targets]
            return rescorer.score(sources, texts, batch_tokens=options.batch_tokens)
        scores, cut, beyond_reach = self.scores_and_cuts(sources, targets, options, spans, samples)
        if any(cut):
            note(f'{sum(cut)} sources are longer than the model reads; only their beginning counts in the scores.')
        if beyond_reach:
            reach = self.config.model.length.reach
            note(f'{beyond_reach} of {len(scores)} targets have a length that the length predictor cannot tell: it '
                 f'tells lengths up to {reach} tokens from that of the source.')  # fmt: skip
        return scores

    def scores_and_cuts(self, sources, targets, options, spans=None, samples=None):
        """As `score`, without another model and without notes: the scores, which sources were cut, and how many
        targets have a length that cannot be told."""
        if self.is_flow and options.tau and options.decode != 'iw' and samples is None:
            raise UserError('with --tau above 0 a score belongs to the latent that an output came from: give what '
                            'nmt_infer.py --format jsonl wrote, which tells it.')  # fmt: skip
        src = self.src_vocab.encode_lines(sources)
        trg = [self.trg_vocab.encode(t) if isinstance(t, str) else self._ids_of(t) for t in targets]
        cut = [len(ids) > options.max_src_length for ids in src]
        asked = [i for i, (s, t) in enumerate(zip(src, trg)) if len(s) or len(t)]
        src = [np.append(ids[: options.max_src_length], self.src_vocab.eos_id) for ids in src]
        trg = [self._ended(ids, span) for ids, span in zip(trg, spans or [0] * len(trg))]
        samples = np.array(samples or [0] * len(trg), np.int32)
        scores, beyond_reach = [0.0] * len(src), 0
        lengths = [max(len(s), len(t)) for s, t in zip(src, trg)]
        most = options.batch_tokens // (options.iw_k if options.decode == 'iw' else 1)
        for batch in batches_by_length(asked, lengths, most):
            rows, places = [src[i] for i in batch], np.arange(len(batch), dtype=np.int32)
            if not self.is_flow:  # candidates of one source, which is then read once
                rows, places = different(rows)
            src_ids, src_mask = pad(rows, self.src_vocab.pad_id)
            trg_ids, trg_mask = pad([trg[i] for i in batch], self.trg_vocab.pad_id)
            arrays = src_ids, src_mask, trg_ids, trg_mask, np.array(batch, np.int64)
            found, more = self._scorer(options)(np.int32(options.seed), samples[batch], places, *arrays)
            for i, score in zip(batch, found.numpy()):
                scores[i] = float(score)
            beyond_reach += int(np.isneginf(more).sum()) if self.is_flow else 0
        return scores, cut, beyond_reach

    def _text_of(self, pieces):
        return self.trg_vocab.decode(self._ids_of(pieces), keep_pad=self.is_flow)

    def _ids_of(self, pieces):
        ids = self.trg_vocab.ids_of(pieces)
        foreign = [piece for piece, known in zip(pieces, self.trg_vocab.pieces(ids)) if piece != known]
        if foreign:
            raise UserError(f'{foreign[0]!r} is no piece of the target vocabulary of this model: pieces are scored by '
                            'the model that wrote them; give another model the text.')  # fmt: skip
        return ids

    def _ended(self, ids, span):
        """Target ids with EOS: one; for flow models up to `span`, or else to the length unit."""
        if not self.is_flow:
            return np.append(ids, self.trg_vocab.eos_id)
        unit = self.config.model.length_unit
        length = max(span, unit, -(-len(ids) // unit) * unit)
        return np.pad(ids, [0, length - len(ids)], constant_values=self.trg_vocab.eos_id)

    def _scorer(self, options):
        key = (options.decode, options.iw_k, options.tau) if self.is_flow else ()  # all that it depends on
        if key not in self._scorers:

            def score(seed, samples, places, *batch):
                known = dict(seed=seed, numbers=samples) if self.is_flow else dict(sources=places)
                return self.model.score(Batch(*batch), options, **known)

            signature = [tf.TensorSpec([], tf.int32), *[tf.TensorSpec([None], tf.int32)] * 2, *BATCH_SIGNATURE]
            self._scorers[key] = tf.function(score, input_signature=signature, autograph=False)
        return self._scorers[key]

    def _rescorer(self, options):
        """The `Translator` of `options.rescore_model`, or None where nothing is rescored."""
        folder = options.rescore_model
        if options.decode not in reranking.MODES or not folder:
            return None
        if folder not in self._rescorers:
            rescorer = load(folder)
            if rescorer.is_flow:
                raise UserError(f'--rescore_model {folder} is a flow model; candidates are scored by an autoregressive '
                                'one.')  # fmt: skip
            self._rescorers[folder] = rescorer
        return self._rescorers[folder]

    def _translate_window(self, lines, prefixes, shortlist, options, rescorer):
        encoded = self.src_vocab.encode_lines(lines)
        cut = [len(ids) > options.max_src_length for ids in encoded]
        encoded = [ids[: options.max_src_length] for ids in encoded]
        results = [blank(too_long, self.is_flow) if not len(ids) else None for ids, too_long in zip(encoded, cut)]
        waiting = [i for i, ids in enumerate(encoded) if len(ids)]
        begun = None if prefixes is None else self.trg_vocab.encode_lines(prefixes)
        most = options.batch_tokens // self.model.rows_per_source(options)
        batches = list(batches_by_length(waiting, [len(ids) + 1 for ids in encoded], most))

        def decode(translator, batch):
            starts = begun and [begun[i] for i in batch]
            return translator._decode([encoded[i] for i in batch], starts, shortlist, options)

        for batch, found in zip(batches, self._on_all_devices(decode, batches)):
            ranked_anew = options.decode in reranking.MODES
            most_outputs = found.ids.shape[1] if ranked_anew else options.nbest
            outputs = [
                outputs_of(found, row, self.trg_vocab, most_outputs, options.attention and len(encoded[i]) + 1)
                for row, i in enumerate(batch)
            ]
            rescoring_cut = [False] * len(batch)
            if ranked_anew:
                sources = [lines[i] for i in batch]
                language = self.config.data.trg_lang
                outputs, rescoring_cut = reranking.rerank(sources, outputs, options, language, rescorer)
            for row, i in enumerate(batch):
                pieces = self.src_vocab.pieces(encoded[i])
                too_long = bool(begun and options.max_length and len(begun[i]) > options.max_length)
                told = cut[i], too_long, rescoring_cut[row]
                counts = self._candidates(found, row, options)
                results[i] = Translation(outputs[row][: options.nbest], pieces, *told, *counts)
        return results

    def _on_all_devices(self, decode, batches):
        """What `decode(translator, batch)` gives for each batch, in order; on several devices side by side."""
        idle = LifoQueue()  # whoever has worked already comes first: the others may never have to trace their graphs
        if len(batches) > 1 and self._copies is None:
            self._copies = self._load_copies()
        for copy in [*(self._copies or ()), self]:
            idle.put(copy)

        def decode_somewhere(batch):
            copy = idle.get()
            try:
                with tf.device(copy.device):
                    return decode(copy, batch)
            finally:
                idle.put(copy)

        if not self._copies or len(batches) < 2:
            yield from map(decode_somewhere, batches)
            return
        with ThreadPoolExecutor(idle.qsize()) as pool:
            yield from pool.map(decode_somewhere, batches)

    def _candidates(self, found, row, options):
        """How many candidates a line had, and how many more were asked for."""
        if self.is_flow:
            count = int(found.candidates[row])
            return count, options.flow_candidates() - count
        return (options.ntr if options.decode == 'mbr' else None), 0

    def _decode(self, sources, prefixes, shortlist, options):
        """Decodes id arrays of similar length, and returns `Hypotheses` of NumPy arrays."""
        src_ids, mask = pad([np.append(ids, self.src_vocab.eos_id) for ids in sources], self.src_vocab.pad_id)
        limits = options.limits(mask.sum(axis=1) - 1)
        constraints = {}
        if prefixes is not None:
            prefix, given = pad(prefixes, -1)
            constraints['prefix'] = prefix
            limits = limits if options.max_length else limits + given.sum(axis=1)
        if shortlist is not None:
            constraints['shortlist'] = shortlist(sources, prefixes)
        translate = self._function(options, constraints)
        found = translate(src_ids, mask, limits.astype(np.int32), np.int32(options.seed), constraints)
        return type(found)(*[field.numpy() for field in found])

    def _function(self, options, constraints):
        options = options.of_the_graph()
        key = options, *constraints
        if key not in self._functions:
            signature = [*SIGNATURE, {name: CONSTRAINTS[name] for name in constraints}]
            self._functions[key] = tf.function(
                lambda ids, mask, limits, seed, constraints: self.model.translate(
                    ids, mask, limits, options, seed=seed, **constraints
                ),
                input_signature=signature,
                autograph=False,
            )
        return self._functions[key]


def _paired(lines, prefixes):
    """Pairs of a line and its prefix, as they come."""
    counts, end = [0, 0], object()
    for pair in itertools.zip_longest(lines, prefixes, fillvalue=end):
        counts = [count + (item is not end) for count, item in zip(counts, pair)]
        if counts[0] == counts[1]:
            yield pair
    if counts[0] != counts[1]:
        raise UserError(f'there are {counts[0]} lines to translate and {counts[1]} prefixes: give a prefix a line, '
                        'an empty one for none.')  # fmt: skip


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


def folders_of(model_dir):
    """The list of model folders that `model_dir` means: one, a list, or names parted by commas."""
    if not isinstance(model_dir, (str, os.PathLike)):
        return [os.fspath(folder) for folder in model_dir]
    model_dir = os.fspath(model_dir)
    return [model_dir] if os.path.isdir(model_dir) else [name for name in model_dir.split(',') if name] or ['']


def load(model_dir, checkpoint='best', precision=None):
    """Loads a trained model, or several as an ensemble.

    Args:
      model_dir: the model folder; a list of folders, or their names parted by commas, for an ensemble.
      checkpoint: 'best', 'last', or the path of one, of a single model.
      precision: 'float32', 'mixed_bfloat16' or 'mixed_float16'; by default what the model was trained in.
    Returns:
      `Translator`.
    Raises:
      UserError: there is no model, or it cannot be read; or models that cannot be joined.
    """
    folders = folders_of(model_dir)
    if len(folders) == 1:
        return load_one(folders[0], checkpoint, precision)
    if checkpoint not in ('best', 'last'):
        raise UserError(f"--checkpoint takes 'best' or 'last' for several model folders; got {checkpoint!r}.")
    return join(folders, [load_one(folder, checkpoint, precision) for folder in folders])


def load_on(devices, model_dir, checkpoint='best', precision=None):
    """As `load`, on several devices, such as GPU:0: what is translated is divided among them, and stays in order."""
    if isinstance(model_dir, (str, os.PathLike)) and os.path.isdir(model_dir):
        checkpoint = checkpoint_path(model_dir, checkpoint)  # the same for all, though a training may write another one

    def load_copy(device, load_copies=list):
        with tf.device(device):
            found = load(model_dir, checkpoint, precision)
        return Translator(found.model, found.config, found.src_vocab, found.trg_vocab, device, load_copies)

    return load_copy(devices[0], lambda: [load_copy(device) for device in devices[1:]])


def join(folders, translators):
    """One `Translator` for an ensemble; `folders` are for messages."""
    from sequencing.ensemble import Ensemble

    first = translators[0]
    for folder, other in zip(folders, translators):
        if other.config.model.kind != 'seq2seq':
            raise UserError(f'{folder} is a model of kind {other.config.model.kind}: an ensemble joins autoregressive '
                            'models (seq2seq) only.')  # fmt: skip
        differ = [
            side
            for side, one, two in (
                ('source', first.src_vocab, other.src_vocab),
                ('target', first.trg_vocab, other.trg_vocab),
            )
            if one.content_key() != two.content_key()
        ]
        if differ:
            raise UserError(f'{folder} and {folders[0]} differ in their {" and ".join(differ)} vocabulary: an ensemble '
                            'needs models that were trained with the same ones.')  # fmt: skip
    return Translator(Ensemble([t.model for t in translators]), first.config, first.src_vocab, first.trg_vocab)


def load_one(model_dir, checkpoint, precision):
    """The `Translator` of one model folder; see `load`."""
    model, config, src_vocab, trg_vocab = load_model(model_dir, checkpoint, precision)
    if config.model.kind == 'seq2seq':
        store_for_decoding(model, model.dtype)
    elif config.model.kind == 'flowseq':
        model = model.for_decoding()
    return Translator(model, config, src_vocab, trg_vocab)


def load_model(model_dir, checkpoint='best', precision=None):
    """A trained model as it was trained, its `Config` and its two vocabularies; arguments and errors as in `load`."""
    from build_model import build_model  # joins the parts, so it stands above this package

    config = read_config(model_dir)
    path = checkpoint_path(model_dir, checkpoint)
    src_vocab, trg_vocab = load_vocabs(config, model_dir)
    with blank_weights():
        model = build_model(config, src_vocab, trg_vocab, precision)
    restore_weights(model, path)
    if config.train.ema and os.path.basename(os.path.dirname(path)) != 'best':  # `best` holds the averages already
        restore_averages(model, path, config.train)
    return model, config, src_vocab, trg_vocab
