"""Attention of recurrent decoders: which source steps matter to a state, and what they say.

Queries are `[B, W, Q]`: W hypotheses of a sentence, or all T steps of a target, look at one source whose keys were
projected once. Nothing of a batch is kept on the parts.
"""

import tensorflow as tf

from sequencing.layers import LinearOp, glorot_uniform, matmul
from sequencing.structures import AttentionMemory


class Attention(tf.Module):
    """Additive attention.

        energy[b, w, s] = sum(v * tanh(keys[b, s] + queries[b, w] @ kernel + bias))
        weights[b, w]   = softmax(energy[b, w]) over real steps, exactly 0 on padding
        context[b, w]   = sum(weights[b, w, s] * values[b, s] for s)

    Args:
      query_size, value_size: sizes of decoder states and encoder outputs.
      attention_size: size K in which the two are compared.

    `match`, `query_gradient` and `source_gradients` belong together: who overrides one writes all three. Training walks
    over targets with the last two, step by step, in `attention_scan`.

    Reference: Bahdanau et al., 2015, appendix A.1.2, https://arxiv.org/abs/1409.0473
    """

    has_compared = True  # whether gradients need what `match` made of every pair of query and key

    def __init__(self, query_size, value_size, attention_size, name='attention'):
        super().__init__(name=name)
        self.query_size, self.attention_size = query_size, attention_size
        self.context_size = value_size
        with self.name_scope:
            self.key_projection = LinearOp(value_size, attention_size, name='key_projection')
            self.query_kernel = tf.Variable(glorot_uniform([query_size, attention_size]), name='query_kernel')
            self.energy = tf.Variable(glorot_uniform([attention_size]), name='energy')

    def memory(self, encoded):
        """Projects an `EncoderOutput`'s outputs to keys, once a batch."""
        return AttentionMemory(self.key_projection(encoded.outputs), encoded.outputs, encoded.mask)

    def weights(self, dtype):
        """Everything learnt that `match` needs, in `dtype`: the query projection `[Q, K]`, and its own."""
        return tf.cast(self.query_kernel, dtype), tf.cast(self.energy, dtype)

    @staticmethod
    def match(queries, keys, mask, energy):
        """Energies of projected queries.

        Args:
          queries: `[B, W, K]` float; keys: `[B, S, K]` float; energy: `[K]`.
          mask: that of the memory, here and below: it tells where the parts of one in several parts are.
        Returns:
          energies `[B, W, S]` of the queries' dtype, and what was compared, `[B, W, S, K]`, or None.
        """
        compared = tf.tanh(tf.expand_dims(queries, 2) + tf.expand_dims(keys, 1))
        return tf.squeeze(matmul(compared, tf.expand_dims(energy, 1)), axis=-1), compared

    @staticmethod
    def query_gradient(upstream, compared, keys, mask, energy):
        """The gradient of one query a sentence, `[B, K]`.

        Args:
          upstream: `[B, S]`, that of its energies; compared: `[B, S, K]`; the others as in `match`.
        """
        lost = tf.matmul(tf.expand_dims(upstream, 1), tf.square(compared))  # the derivative of tanh(x) is 1 - tanh(x)^2
        return energy * (tf.reduce_sum(upstream, axis=1, keepdims=True) - tf.squeeze(lost, axis=1))

    @staticmethod
    def source_gradients(upstream, compared, queries, mask, energy):
        """What energies of T queries a sentence mean for the source.

        Args:
          upstream: `[T, B, S]`, the gradients of energies; compared: `[T, B, S, K]`; queries: `[T, B, K]`.
        Returns:
          the gradient of keys, `[B, S, K]`, and a list of those of what the attention has learnt besides.
        """
        lost = tf.reduce_sum(tf.expand_dims(upstream, 3) * tf.square(compared), axis=0)
        d_keys = energy * (tf.expand_dims(tf.reduce_sum(upstream, axis=0), 2) - lost)
        rows = tf.reshape(compared, [-1, compared.shape[-1]])
        return d_keys, [tf.squeeze(tf.matmul(tf.reshape(upstream, [1, -1]), rows), axis=0)]

    @staticmethod
    def normalise(energies, mask):
        """Energies `[B, W, S]` to weights: a row sums to 1, or to 0 where the source is empty."""
        return masked_softmax(energies, tf.expand_dims(mask, 1))

    def __call__(self, queries, memory):
        """Attends.

        Args:
          queries: `[B, W, Q]` float, decoder states.
          memory: `AttentionMemory` from `self.memory`.
        Returns:
          contexts `[B, W, V]` and weights `[B, W, S]`.
        Raises:
          ValueError: sizes known before running disagree.
        """
        if queries.shape[-1] != self.query_size or memory.keys.shape[-1] != self.attention_size:
            raise ValueError(
                f'{self.name}: takes queries [B, W, {self.query_size}] and keys [B, S, {self.attention_size}]; '
                f'got {queries.shape} and {memory.keys.shape}. Use memory() to make the keys.'
            )
        kernel, *own = self.weights(queries.dtype)
        energies, _ = self.match(matmul(queries, kernel), memory.keys, memory.mask, *own)
        weights = self.normalise(energies, memory.mask)
        return tf.matmul(weights, memory.values), self.shown(weights, memory)

    @staticmethod
    def shown(weights, memory):
        """What of the weights tells about source tokens: `[B, W, S]`."""
        return weights


class GeneralAttention(Attention):
    """Multiplicative attention: energy[b, w, s] = (queries[b, w] @ kernel) . keys[b, s].

    Reference: Luong et al., 2015, section 3.1 ("general"), https://arxiv.org/abs/1508.04025
    """

    has_compared = False

    def __init__(self, query_size, value_size, attention_size, name='attention'):
        super().__init__(query_size, value_size, attention_size, name=name)
        del self.energy

    def weights(self, dtype):
        return (tf.cast(self.query_kernel, dtype),)

    @staticmethod
    def match(queries, keys, mask):
        return tf.matmul(queries, keys, transpose_b=True), None

    @staticmethod
    def query_gradient(upstream, compared, keys, mask):
        return tf.squeeze(tf.matmul(tf.expand_dims(upstream, 1), keys), axis=1)

    @staticmethod
    def source_gradients(upstream, compared, queries, mask):
        return tf.einsum('tbs,tbk->bsk', upstream, queries), []


class DotAttention(GeneralAttention):
    """Multiplicative attention of the state itself: energy[b, w, s] = queries[b, w] . keys[b, s].

    Reference: Luong et al., 2015, section 3.1 ("dot"), https://arxiv.org/abs/1508.04025
    """

    def __init__(self, query_size, value_size, attention_size, name='attention'):
        if query_size != attention_size:
            raise ValueError(f'{name}: dot attention compares states of size {query_size} with keys of the same size; '
                             f'got attention_size {attention_size}.')  # fmt: skip
        super().__init__(query_size, value_size, attention_size, name=name)
        del self.query_kernel

    def weights(self, dtype):
        return (tf.eye(self.query_size, dtype=dtype),)


ATTENTIONS = {'additive': Attention, 'general': GeneralAttention, 'dot': DotAttention}


def masked_softmax(energies, mask):
    """Softmax over the last axis where `mask` (broadcast, bool) is True, 0 elsewhere; float32 inside.

    Written out, because oneDNN's softmax takes longer to set up than to compute on rows this short.
    """
    wide = tf.where(mask, tf.cast(energies, tf.float32), tf.float32.min)
    shifted = wide - tf.stop_gradient(tf.reduce_max(wide, axis=-1, keepdims=True))
    powers = tf.where(mask, tf.exp(shifted), 0.0)
    total = tf.reduce_sum(powers, axis=-1, keepdims=True)
    return tf.cast(powers / tf.maximum(total, 1e-30), energies.dtype)
