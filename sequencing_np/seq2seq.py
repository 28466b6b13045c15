"""The autoregressive model: any encoder with any decoder, between two embeddings and an output layer."""

import numpy as np

from sequencing.errors import UserError
from sequencing_np import search
from sequencing_np.attention_via_attention import AvDecoder, AvEncoder, find_words
from sequencing_np.conv import ConvDecoder, ConvEncoder
from sequencing_np.rnn import RNNDecoder, RNNEncoder
from sequencing_np.transformer import TransformerDecoder, TransformerEncoder

ENCODERS = {'rnn': RNNEncoder, 'transformer': TransformerEncoder, 'conv': ConvEncoder, 'ava': AvEncoder}
DECODERS = {'rnn': RNNDecoder, 'transformer': TransformerDecoder, 'conv': ConvDecoder}


def _part(kinds, part, name, weights, embedding_size):
    if part.kind not in kinds:
        raise UserError(f'model.{name}.kind is {part.kind!r}, which sequencing_np does not have: translate with '
                        'nmt_infer.py.')  # fmt: skip
    return kinds[part.kind](weights.below(name), part, embedding_size)


class Seq2Seq:
    """See `sequencing.seq2seq`.

    Args:
      config: `Config`; weights: `Weights`; src_vocab, trg_vocab: `Vocab`s.
    """

    decoding_modes = ('beam', 'greedy')  # the default first

    def __init__(self, config, weights, src_vocab, trg_vocab):
        model = config.model
        self.xp, self.bos_id, self.eos_id = weights.xp, trg_vocab.bos_id, trg_vocab.eos_id
        self.trg_table = weights['trg_embedding/table']
        self.src_table = self.trg_table if model.share_embeddings else weights['src_embedding/table']
        self.encoder = _part(ENCODERS, model.encoder, 'encoder', weights, model.embedding_size)
        self.space_id = src_vocab.tokens.index(' ') if model.encoder.kind == 'ava' else None
        decoders = DECODERS if self.space_id is None else {'rnn': AvDecoder}
        self.decoder = _part(decoders, model.decoder, 'decoder', weights, model.embedding_size)
        if model.tie_output:
            self.output, self.output_bias = self.trg_table, weights['output_bias']
        else:
            self.output, self.output_bias = weights['output/kernel'].T.copy(), weights['output/bias']

    def start(self, src_ids, src_mask, width):
        """Encodes `[B, S]` ids: the walk of `width` hypotheses a sentence that search takes."""
        mask = self.xp.asarray(src_mask)
        embedded = self.src_table[self.xp.asarray(src_ids).reshape(-1)]
        if self.space_id is not None:
            return self.decoder.start(
                *self.encoder(embedded, mask, find_words(src_ids, src_mask, self.space_id)), width
            )
        return self.decoder.start(self.encoder(embedded, mask), mask, width)

    def logits(self, walk, ids, time):
        """Scores `[R, N]` of the tokens that follow `ids` `[R]`, the ones just chosen."""
        features = walk.step(self.trg_table[self.xp.asarray(ids)], time)
        # The table stands first: BLAS multiplies a tall matrix with a few columns two to three times as fast as a few
        # rows with a wide one.
        scores = self.output @ features.T
        scores += self.output_bias[:, np.newaxis]
        return scores.T.copy()

    def translate(self, src_ids, src_mask, limits, options):
        """Decodes a batch; arguments as in `sequencing.seq2seq`, arrays of NumPy. Returns `Hypotheses`."""
        if options.decode == 'greedy':
            return search.greedy(self, src_ids, src_mask, limits, options)
        return search.beam(self, src_ids, src_mask, limits, options)
