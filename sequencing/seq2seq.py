"""The autoregressive model: any encoder with any decoder, between two embeddings and an output layer."""

from typing import NamedTuple

import tensorflow as tf

from sequencing.attention_via_attention import find_words
from sequencing.layers import LinearOp, matmul
from sequencing.losses import cross_entropy
from sequencing.search import MODES, rows_per_source, search
from sequencing.structures import LossParts


class OutputRows(NamedTuple):
    """The output layer of U tokens out of all."""

    kernel: tf.Tensor  # [U, R] float
    bias: tf.Tensor  # [U] float32


class Seq2Seq(tf.Module):
    """p(y | x) = product over t of p(y[t] | y[<t], x).

    Args:
      src_embedding, trg_embedding: `LookUpOp`s, which may be one and the same.
      encoder: `(embedded [B, S, E], mask [B, S], seed) -> EncoderOutput`.
      decoder: has `memory`, `initial_state`, `step`, `reorder`, and reads whole targets when called.
      vocab_size: N; bos_id, eos_id: of the target.
      tie_output: score tokens with the target embedding instead of a matrix of their own.
      dtype: of the arithmetic.
      label_smoothing: of the training loss.
      baseline: `Baseline`, which MIXER trains and nothing else reads.
    """

    def __init__(self, src_embedding, trg_embedding, encoder, decoder, vocab_size, bos_id, eos_id, tie_output=False,
                 dtype=tf.float32, label_smoothing=0.0, baseline=None, name='seq2seq'):  # fmt: skip
        super().__init__(name=name)
        self.vocab_size, self.bos_id, self.eos_id = vocab_size, bos_id, eos_id
        self.dtype, self.label_smoothing = dtype, label_smoothing
        self.src_embedding, self.trg_embedding = src_embedding, trg_embedding
        self.encoder, self.decoder, self.baseline = encoder, decoder, baseline
        self.tie_output = tie_output
        with self.name_scope:
            if tie_output:
                self.output_bias = tf.Variable(tf.zeros([vocab_size]), name='output_bias')
            else:
                self.output = LinearOp(decoder.output_size, vocab_size, name='output')

    decoding_modes = MODES
    validation_mode = 'greedy'
    rows_per_source = staticmethod(rows_per_source)

    def encode(self, src_ids, src_mask, seed=None):
        """`[B, S]` ids and mask to an `EncoderOutput`; `seed` as in `loss`."""
        return self.encoder(self.src_embedding(src_ids, self.dtype), src_mask, seed)

    def logits(self, features, rows=None, allowed=None):
        """Features of the decoder to float32 logits: `[..., R]` to `[..., N]`, or, where `OutputRows` of U tokens are
        given, `[B, W, R]` to `[B, W, U]`, -inf for those that the sentence is not `allowed`, `[B, U]` bool."""
        if rows is not None:
            flat = tf.matmul(tf.reshape(features, [-1, features.shape[-1]]), rows.kernel, transpose_b=True)
            flat = tf.cast(flat, tf.float32) + rows.bias
            some = tf.reshape(flat, [-1, features.shape[1], tf.shape(rows.kernel)[0]])
            return tf.where(allowed[:, tf.newaxis], some, float('-inf'))
        product, bias = self.output_parts(features)
        return tf.cast(product, tf.float32) if bias is None else tf.cast(product, tf.float32) + bias

    def output_parts(self, features):
        """Logits before they are widened, and the float32 bias that is to be added then, or None."""
        if not self.tie_output:
            return self.output(features), None
        return matmul(features, tf.cast(self.trg_embedding.table, features.dtype), transposed=True), self.output_bias

    def output_rows(self, tokens):
        """What `logits` needs for `[U]` int32 tokens alone; made once a batch."""
        if self.tie_output:
            kernel, bias = tf.gather(self.trg_embedding.table, tokens), self.output_bias
        else:
            kernel, bias = self.output.rows(tokens), self.output.bias
        bias = tf.gather(tf.cast(bias, tf.float32), tokens)
        return OutputRows(tf.cast(kernel, self.dtype), bias)

    def inputs(self, trg_ids):
        """What teacher forcing feeds the decoder, `[B, T]`: BOS, then all targets but the last."""
        bos = tf.fill([tf.shape(trg_ids)[0], 1], self.bos_id)
        return tf.concat([bos, trg_ids[:, :-1]], axis=1)

    def read(self, encoded, fed, mask, seed=None):
        """Reads whole targets: `[B, T]` ids as the decoder is fed them, and the mask, to features `[B, T, R]` and
        attention weights `[B, T, S]`."""
        return self.decoder(self.trg_embedding(fed, self.dtype), encoded, mask, seed)

    def features(self, batch, seed=None):
        """Reads whole targets (teacher forcing): features `[B, T, R]` and attention weights `[B, T, S]`."""
        encoded = self.encode(batch.src_ids, batch.src_mask, seed)
        return self.read(encoded, self.inputs(batch.trg_ids), batch.trg_mask, seed)

    def loss(self, batch, seed=None, mix=None):
        """The training loss of a `Batch`.

        Args:
          batch: `Batch`.
          seed: `[2]` int32 that changes every step, for dropout; None reads without.
          mix: called with this model, the encoded source and the batch, gives what the decoder is fed, `[B, T]` ids;
            None for teacher forcing.
        Returns:
          `LossParts`, sums in nats. Logits are made for real tokens only.
        """
        encoded = self.encode(batch.src_ids, batch.src_mask, seed)
        fed = self.inputs(batch.trg_ids) if mix is None else mix(self, encoded, batch)
        features, _ = self.read(encoded, fed, batch.trg_mask, seed)
        logits, bias = self.output_parts(tf.boolean_mask(features, batch.trg_mask))
        targets = tf.boolean_mask(batch.trg_ids, batch.trg_mask)
        smoothed, nll = cross_entropy(logits, targets, self.label_smoothing, bias)
        return LossParts(
            loss=tf.reduce_sum(smoothed),
            nll=tf.reduce_sum(nll),
            tokens=tf.cast(tf.size(nll), tf.float32),
            sentences=tf.reduce_sum(tf.cast(tf.reduce_any(batch.trg_mask, axis=1), tf.float32)),
        )

    def score(self, batch, options=None, seed=None, sources=None):
        """log p(y | x) of each pair, `[B]` float32 in nats, EOS included, and of each token, `[B, T]`, 0 on padding;
        whatever the `DecodeOptions` and their seed. Where targets share sources, each of these is read once: `sources`,
        `[B]` int32, says which one of the batch a target has; None for one each."""
        encoded = self.encode(batch.src_ids, batch.src_mask)
        if sources is not None:
            encoded = tf.nest.map_structure(lambda x: tf.gather(x, sources), encoded)
        features, _ = self.read(encoded, self.inputs(batch.trg_ids), batch.trg_mask)
        nll = tf.nn.sparse_softmax_cross_entropy_with_logits(batch.trg_ids, self.logits(features))
        tokens = tf.where(batch.trg_mask, -nll, 0.0)
        return tf.reduce_sum(tokens, axis=1), tokens

    def start(self, src_ids, src_mask, width, max_steps):
        """Encodes and returns what search walks: the decoder's memory and first state for `width` hypotheses."""
        encoded = self.encode(src_ids, src_mask)
        return self.decoder.memory(encoded), self.decoder.initial_state(encoded, width, max_steps)

    def step(self, ids, state, memory, time, rows=None, allowed=None):
        """One step of search: `[B, W]` ids just chosen to logits `[B, W, N]` float32, the new state, and attention
        weights `[B, W, S]`; `rows` and `allowed` as in `logits`."""
        features, state, weights = self.decoder.step(self.trg_embedding(ids, self.dtype), state, memory, time)
        return self.logits(features, rows, allowed), state, weights

    def reorder(self, state, parents):
        """The state with hypothesis `parents[b, w]` in place `w`."""
        return self.decoder.reorder(state, parents)

    def translate(self, src_ids, src_mask, limits, options, prefix=None, shortlist=None, seed=None):
        """Decodes a batch: see `search.search`."""
        return search(self, src_ids, src_mask, limits, options, prefix, shortlist, seed)


class AvSeq2Seq(Seq2Seq):
    """`Seq2Seq` from characters, with an `AvEncoder` and an `AvAttention`.

    Args:
      space_id: of the source.
      the others: as in `Seq2Seq`.
    """

    def __init__(self, *parts, space_id, name='seq2seq', **options):
        super().__init__(*parts, name=name, **options)
        self.space_id = space_id

    def encode(self, src_ids, src_mask, seed=None):
        words = find_words(src_ids, src_mask, self.space_id)
        return self.encoder(self.src_embedding(src_ids, self.dtype), src_mask, words, seed)
