"""Text in, text out, as in `sequencing.translator`."""

import numpy as np

from sequencing.decode_options import options_for
from sequencing.errors import UserError
from sequencing.line_batches import Translation, batches_by_length, blank, lines_of, outputs_of, pad, slow, windows
from sequencing_np import arrays
from sequencing_np.model_file import Weights, read_model, vocabs


class Translator:
    """A model with its vocabularies.

    Args:
      model: has `decoding_modes` and `translate(src_ids, src_mask, limits, options)`, arrays of NumPy.
      config: `Config`; src_vocab, trg_vocab: `Vocab`s.
    """

    def __init__(self, model, config, src_vocab, trg_vocab):
        self.model, self.config = model, config
        self.src_vocab, self.trg_vocab = src_vocab, trg_vocab

    def translate(self, lines, **options):
        """Translates a list of lines to a list of lines, in order; `options` are fields of `DecodeOptions`."""
        return [result.outputs[0].translation for result in self.stream(lines, **options)]

    def stream(self, lines, **options):
        """Yields a `Translation` for each line of an iterable, in order and in bounded memory."""
        options = options_for(self.model, self.config, **options)
        for window in windows(lines_of(lines), slow(lines)):
            yield from self._translate_window(window, options)

    def _translate_window(self, lines, options):
        encoded = self.src_vocab.encode_lines(lines)
        cut = [len(ids) > options.max_src_length for ids in encoded]
        encoded = [ids[: options.max_src_length] for ids in encoded]
        is_flow = self.config.model.kind == 'flowseq'
        results = [blank(too_long, is_flow) if not len(ids) else None for ids, too_long in zip(encoded, cut)]
        waiting = [i for i, ids in enumerate(encoded) if len(ids)]
        most = options.batch_tokens // (self.model.rows_per_source(options) if is_flow else 1)
        for batch in batches_by_length(waiting, [len(ids) + 1 for ids in encoded], most):
            rows = [np.append(encoded[i], self.src_vocab.eos_id) for i in batch]
            src_ids, mask = pad(rows, self.src_vocab.pad_id)
            found = self.model.translate(src_ids, mask, options.limits(mask.sum(axis=1) - 1), options)
            for row, i in enumerate(batch):
                pieces = self.src_vocab.pieces(encoded[i])
                outputs = outputs_of(found, row, self.trg_vocab, options.nbest)
                count = int(found.candidates[row]) if is_flow else None
                missing = options.flow_candidates() - count if is_flow else 0
                results[i] = Translation(outputs, pieces, cut[i], candidates=count, candidates_missing=missing)
        return results


def load(path, array_module='numpy'):
    """Loads a model.

    Args:
      path: of the file that `tools/ckpt2npz.py` wrote.
      array_module: 'numpy' or 'cupy'.
    Returns:
      `Translator`.
    Raises:
      UserError: the file cannot be read, or there is no such module.
    """
    xp = arrays.array_module(array_module)
    file = read_model(path)
    return Translator(build_model(file, path, xp), file.config, *vocabs(file))


def build_model(file, path, xp=np):
    """The model of a `ModelFile`; `path` is for messages.

    Raises:
      UserError: it has parts that are not written for NumPy.
    """
    weights = Weights(file.weights, xp)
    if file.config.model.kind == 'seq2seq':
        from sequencing_np.seq2seq import Seq2Seq as model
    else:
        from sequencing_np.flowseq import FlowSeq as model
    try:
        built = model(file.config, weights, *vocabs(file))
        strange = sorted(set(file.weights) - weights.read)[:1]
    except (KeyError, IndexError, ValueError) as error:  # what reading in another order comes to
        strange = [str(error)]
    if strange:
        raise UserError(f'{path}: its weights are not those of the parts that sequencing_np has ({strange[0]}): '
                        'translate with nmt_infer.py.')  # fmt: skip
    return built
