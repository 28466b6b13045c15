"""The baseline of MIXER, which lowers the variance of its gradients."""

import tensorflow as tf

from sequencing.layers import LinearOp


class Baseline(tf.Module):
    """Expects the reward that is still to come, from the decoder's features before a token is chosen.

    Nothing flows back into the decoder.
    """

    def __init__(self, size, name='baseline'):
        super().__init__(name=name)
        with self.name_scope:
            self.hidden = LinearOp(size, size, name='hidden')
            self.output = LinearOp(size, 1, name='output')

    def __call__(self, features):
        """`[..., size]` float of any dtype to `[...]` float32."""
        features = tf.cast(tf.stop_gradient(features), tf.float32)
        return tf.squeeze(self.output(tf.nn.relu(self.hidden(features))), axis=-1)
