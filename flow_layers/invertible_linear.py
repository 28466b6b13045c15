"""Linear maps that mix channels."""

import tensorflow as tf

from flow_layers.bijector import SequenceBijector
from sequencing.blocks import choose_rows


class InvertibleLinear(SequenceBijector):
    """Multiplies every real step by one square matrix, which starts orthogonal.

        forward: y[b, t] = W x[b, t]        inverse: x[b, t] = W^-1 y[b, t]        where mask[b, t]
        log-det: log|det J|[b] = (number of real steps in b) * log|det W|

    Args:
      depth: number of channels D.
      parametrisation: 'plain' for W itself; 'lu' for W = P L (U + diag(sign exp(log_diagonal))) with P and the signs
        fixed at the start, which cannot become singular and has its log-det for the asking.
    Reference: Kingma and Dhariwal, 2018, section 3.2, https://arxiv.org/abs/1807.03039
    """

    heads = 1

    def __init__(self, depth, parametrisation='plain', name='linear'):
        super().__init__(name)
        self.depth, self.size = depth, depth // self.heads
        start = tf.linalg.qr(tf.random.normal([self.size, self.size]))[0]
        if parametrisation not in ('plain', 'lu'):
            raise ValueError(f"parametrisation is 'plain' or 'lu'; got {parametrisation!r}")
        self.parametrisation = parametrisation
        with self.name_scope:
            if parametrisation == 'plain':
                self.matrix = tf.Variable(start, name='matrix')  # [out, in]
                return
            packed, rows = tf.linalg.lu(start)
            diagonal = tf.linalg.diag_part(packed)
            self.permutation = tf.Variable(tf.one_hot(tf.math.invert_permutation(rows), self.size), trainable=False,
                                           name='permutation')  # fmt: skip
            self.signs = tf.Variable(tf.sign(diagonal), trainable=False, name='signs')
            self.triangles = tf.Variable(tf.linalg.set_diag(packed, tf.zeros([self.size])), name='triangles')
            self.log_diagonal = tf.Variable(tf.math.log(tf.abs(diagonal)), name='log_diagonal')

    def weight(self, dtype):
        """W `[size, size]`."""
        if self.parametrisation == 'plain':
            return tf.cast(self.matrix, dtype)
        triangles = tf.cast(self.triangles, dtype)
        diagonal = tf.cast(self.signs, dtype) * tf.exp(tf.cast(self.log_diagonal, dtype))
        lower = tf.linalg.set_diag(tf.linalg.band_part(triangles, -1, 0), tf.ones([self.size], dtype))
        upper = tf.linalg.set_diag(tf.linalg.band_part(triangles, 0, -1), diagonal)
        return tf.cast(self.permutation, dtype) @ (lower @ upper)

    def log_abs_determinant(self, dtype):
        """log|det| of the whole map of one step."""
        if self.parametrisation == 'lu':
            return self.heads * tf.reduce_sum(tf.cast(self.log_diagonal, dtype))
        return self.heads * tf.linalg.slogdet(self.weight(dtype)).log_abs_determinant

    def forward_rows(self, x, at):
        y = choose_rows(at.rows.real, self._multiply(x, self.weight(x.dtype)), x)
        return y, self.log_abs_determinant(x.dtype) * at.rows.counts(x.dtype)

    def inverse_rows(self, y, at):
        x = choose_rows(at.rows.real, self._multiply(y, tf.linalg.inv(self.weight(y.dtype))), y)
        return x, -self.log_abs_determinant(y.dtype) * at.rows.counts(y.dtype)

    def _multiply(self, x, matrix):
        return tf.matmul(x, matrix, transpose_b=True)


class MultiHeadLinear(InvertibleLinear):
    """Cuts the channels into heads of at most 32 and multiplies each head by the same square matrix.

    Channels of a head: type 'a' takes neighbours (channel = head * size + i), type 'b' every heads-th one
    (channel = i * heads + head). The size is the first of 32, 16 and 8 that divides D; otherwise there is one head.

    Args:
      depth: number of channels D.
      kind: 'a' or 'b'.
      parametrisation: as in `InvertibleLinear`.
    Reference: Ma et al., 2019, section 3.3, https://arxiv.org/abs/1909.02480
    """

    def __init__(self, depth, kind, parametrisation='plain', name='multi_head_linear'):
        size = next((size for size in (32, 16, 8) if depth % size == 0), depth)
        self.heads = depth // size
        self.kind = kind
        super().__init__(depth, parametrisation, name)

    def _multiply(self, x, matrix):
        if self.heads == 1:
            return super()._multiply(x, matrix)
        if self.kind == 'a':
            y = tf.matmul(tf.reshape(x, [-1, self.size]), matrix, transpose_b=True)
        else:  # [N, size, heads] <- [size, size] @ [N, size, heads], as one plain product
            y = tf.matmul(x, _spread(matrix, self.heads), transpose_b=True)
        return tf.reshape(y, [-1, self.depth])


def _spread(matrix, heads):
    """`[n, n]` to `[n * heads, n * heads]`, the Kronecker product with the identity."""
    size = matrix.shape[0] * heads
    blocks = matrix[:, tf.newaxis, :, tf.newaxis] * tf.eye(heads, dtype=matrix.dtype)[tf.newaxis, :, tf.newaxis, :]
    return tf.reshape(blocks, [size, size])
