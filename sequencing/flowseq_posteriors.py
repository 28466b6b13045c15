"""FlowSeq's posteriors q(z | x, y): a diagonal Gaussian for every target position, from both sentences.

A posterior maps flat embedded target tokens `[B * T, E]` to means and log-variances, flat `[B * T, latent_size]`, zero
at padding. `prepare` makes what it needs of the source once a batch; the target may hold several sentences a source.
"""

import math

import tensorflow as tf

from sequencing.blocks import Bidirectional, DecoderBlock, GlobalAttention, Rows, WeightNormLinear, uniform_linear
from sequencing.layers import Dropout

START_DEVIATION = 0.05  # of means and log-variances after initialisation from data


class Posterior(tf.Module):
    """What posteriors share: the two linears at the end, and their initialisation."""

    padding_is_zero = False  # where padding counts in that initialisation: whether its features are zeros there

    def __init__(self, features_size, size, word_dropout, name):
        super().__init__(name=name)
        with self.name_scope:
            self.word_dropout = Dropout(word_dropout, broadcast_axes=(-1,), name='word_dropout')
            self.mean = WeightNormLinear(features_size, size, name='mean')
            self.log_variance = WeightNormLinear(features_size, size, name='log_variance')

    def __call__(self, x, rows, source, seed=None):
        """Means and log-variances, float32.

        Args:
          x: `[B * T, E]` float, embedded target.
          rows: its `Rows`.
          source: what `prepare` gave.
          seed: for dropout.
        """
        features = self.features(x, rows, source, seed)
        return self._ends(features, rows)

    def _ends(self, features, rows):
        wide = tf.float64 if features.dtype == tf.float64 else tf.float32
        return [rows.only_real(tf.cast(end(features), wide)) for end in (self.mean, self.log_variance)]

    def initialise(self, x, rows, source, ends, over_padding=False):
        """Gives the named `ends` ('mean', 'log_variance') mean 0 and deviation 0.05 on these data."""
        features = self.features(x, rows, source)
        if self.padding_is_zero:
            features = rows.only_real(features)
        for end in ends:
            getattr(self, end).initialise(features, START_DEVIATION, None if over_padding else rows.real)
        return self._ends(features, rows)


class TransformerPosterior(Posterior):
    """Scaled embeddings plus positions, then Transformer layers over target and source. Sizes as in the encoder."""

    padding_is_zero = True

    def __init__(self, size, hidden_size, layers, heads, dropout=0.0, embedding_dropout=0.0, word_dropout=0.0,
                 name='posterior'):  # fmt: skip
        super().__init__(size, size, word_dropout, name)
        self.size = size
        with self.name_scope:
            self.dropout = Dropout(embedding_dropout)
            self.layers = [DecoderBlock(size, hidden_size, heads, dropout, name=f'layer_{i}') for i in range(layers)]

    def prepare(self, outputs, rows):
        """Flat source states `[B * S, D]` and their `Rows` to every layer's keys and values, and the key bias."""
        pairs = [layer.source_attention.keys_and_values(outputs, rows.batch) for layer in self.layers]
        return pairs, rows.key_bias(outputs.dtype)

    def features(self, x, rows, source, seed=None):
        pairs, bias = source
        x = self.word_dropout(x * tf.cast(self.size**0.5, x.dtype), seed)
        x = self.dropout(x + rows.positions(self.size, x.dtype), seed)  # the position outlives its word
        for layer, (keys, values) in zip(self.layers, pairs):
            x = layer(x, rows, keys, values, bias, seed)
        return x


class RecurrentPosterior(Posterior):
    """Bidirectional recurrent layers, attention to the source, and a projection with ELU.

    Args:
      embedding_size, state_size, size: as in `RecurrentEncoder`.
      source_size: width of the source states.
      layers, cell: as in `RecurrentEncoder`.
      attention: whether it looks at the source.
      bidirectional: whether half of the units read backwards.
      shifted: position t reads the forward state of t - 1 and the backward state of t + 1 (zeros outside), so that no
        latent sees its own token.
      dropout: of attention and in front of the last linears; word_dropout: of whole tokens.
    """

    def __init__(self, embedding_size, state_size, size, source_size, layers=1, cell='lstm', attention=True,
                 bidirectional=True, shifted=False, dropout=0.0, word_dropout=0.0, name='posterior'):  # fmt: skip
        super().__init__(state_size, size, word_dropout, name)
        self.shifted, self.bidirectional = shifted, bidirectional
        with self.name_scope:
            self.recurrent = Bidirectional(cell, embedding_size, state_size, layers, bidirectional)
            self.attention = (
                GlobalAttention(state_size, source_size, state_size, state_size, dropout) if attention else None
            )
            self.projection = uniform_linear(state_size * (2 if attention else 1), state_size, name='projection')
            self.dropout = Dropout(dropout)

    def prepare(self, outputs, rows):
        """As in `TransformerPosterior`."""
        if self.attention is None:
            return None
        return self.attention.keys_and_values(outputs, rows.batch), rows.key_bias(outputs.dtype)

    def features(self, x, rows, source, seed=None):
        states = self.recurrent(rows.padded(self.word_dropout(x, seed)), rows.mask)
        x = rows.flat(self._shifted(states) if self.shifted else states)
        if self.attention is not None:
            (keys, values), bias = source
            x = tf.concat([x, self.attention(x, keys, values, bias, seed)], axis=1)
        return self.dropout(tf.nn.elu(self.projection(x)), seed)

    def _shifted(self, states):
        units = states.shape[2] // (2 if self.bidirectional else 1)
        before = tf.pad(states[:, :-1, :units], [[0, 0], [1, 0], [0, 0]])
        after = tf.pad(states[:, 1:, units:], [[0, 0], [0, 1], [0, 0]])
        return tf.concat([before, after], axis=2)


def gaussian_log_prob(noise, log_variance, rows):
    """log q(z) of `z = mean + exp(log_variance / 2) * noise`, flat rows, zeros at padding; `[B]` in nats.

        log q = -1/2 * sum over real steps and channels of (log_variance + noise^2 + ln 2 pi)
    """  # fmt: skip
    return -0.5 * rows.sums(log_variance + tf.square(noise) + math.log(2.0 * math.pi))


def sample_posterior(mean, log_variance, rows, draws):
    """Latents from the posterior.

    Args:
      mean, log_variance: flat `[B * T, D]`.
      rows: their `Rows`.
      draws: `[B, k, T, D]` standard normal.
    Returns:
      `Rows` of `B * k` sentences, the k samples of one next to each other; z, flat `[B * k * T, D]`, zero at padding;
      and log q(z), `[B * k]`.
    """
    count = draws.shape[1] if draws.shape[1] is not None else tf.shape(draws)[1]
    many = rows if count == 1 else Rows(tf.repeat(rows.mask, count, axis=0))
    draws = many.only_real(tf.reshape(tf.cast(draws, mean.dtype), [-1, mean.shape[1]]))
    if count != 1:
        mean, log_variance = [many.flat(tf.repeat(rows.padded(x), count, axis=0)) for x in (mean, log_variance)]
    z = mean + tf.exp(0.5 * log_variance) * draws
    return many, z, gaussian_log_prob(draws, log_variance, many)
