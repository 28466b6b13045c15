"""The recurrent encoder and decoder: attention against a plain loop, whole targets against single steps."""

import numpy as np
import tensorflow as tf

from sequencing.attention import ATTENTIONS
from sequencing.rnn_decoder import AttentionRNNDecoder
from sequencing.rnn_encoders import StackBidirectionalRNNEncoder, StackRNNEncoder
from sequencing.structures import EncoderOutput
from tests.decoder_support import check_attention_gradients
from tests.support import seeds

B, T, S, E, H, V, R = 3, 4, 7, 2, 6, 8, 11


class DecoderTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        random = seeds(self)
        tf.random.set_seed(random.randrange(2**31))
        self.random = np.random.default_rng(random.randrange(2**31))
        self.src_mask = tf.sequence_mask([S, 3, 0], S)

    def draw(self, *shape):
        return tf.constant(self.random.normal(size=shape), tf.float32)

    def test_attention_is_a_softmax_over_real_steps_in_plain_numpy(self):
        for kind, size in (('additive', 5), ('general', 5), ('dot', H)):
            attention = ATTENTIONS[kind](H, V, size)
            queries = self.draw(B, 2, H)
            memory = attention.memory(EncoderOutput(self.draw(B, S, V), self.src_mask, ()))
            contexts, weights = attention(queries, memory)
            for b, length in enumerate([S, 3, 0]):
                for w in range(2):
                    query = queries[b, w].numpy()
                    if kind != 'dot':
                        query = query @ attention.query_kernel.numpy()
                    keys, values = memory.keys[b, :length].numpy(), memory.values[b, :length].numpy()
                    if kind == 'additive':
                        energy = np.array([attention.energy.numpy() @ np.tanh(key + query) for key in keys])
                    else:
                        energy = keys @ query
                    powers = np.exp(energy - energy.max(initial=0))
                    want = powers / max(powers.sum(), 1e-30)
                    self.assertAllClose(weights[b, w, :length], want, atol=1e-5)
                    self.assertAllEqual(weights[b, w, length:], np.zeros(S - length))
                    self.assertAllClose(contexts[b, w], want @ values if length else np.zeros(V), atol=1e-5)

    def test_wrong_sizes_are_refused_by_name(self):
        attention = ATTENTIONS['additive'](H, V, 5, name='my_attention')
        memory = attention.memory(EncoderOutput(self.draw(B, S, V), self.src_mask, ()))
        with self.assertRaisesRegex(ValueError, 'my_attention: takes queries'):
            attention(self.draw(B, 2, H + 1), memory)

    def test_whole_targets_are_single_steps_and_so_are_their_gradients(self):
        for cell in ('lstm', 'gru', 'rnn'):
            for kind, size in (('additive', 5), ('general', 5), ('dot', H)):
                encoder_kind = StackBidirectionalRNNEncoder if cell != 'rnn' else StackRNNEncoder
                encoder = encoder_kind(cell, E, V, layers=2)
                decoder = AttentionRNNDecoder(cell, E, V, H, kind, size, R, layers=3, recompute=cell == 'gru')
                source, target = self.draw(B, S, E), self.draw(B, T, E)
                feature_weights, attention_weights = self.draw(B, T, R), self.draw(B, T, S)

                def by_steps():
                    encoded = encoder(source, self.src_mask)
                    memory, state = decoder.memory(encoded), decoder.initial_state(encoded, 1)
                    steps = []
                    for t in range(T):
                        features, state, weights = decoder.step(target[:, t : t + 1], state, memory, t)
                        steps.append((features, weights))
                    return tuple(tf.concat(parts, axis=1) for parts in zip(*steps))

                specs = [tf.TensorSpec([None, None, E]), tf.TensorSpec([None, None, E])]

                @tf.function(autograph=False, input_signature=specs)
                def whole(source, target):
                    mask = tf.ones(tf.shape(target)[:2], tf.bool)
                    return decoder(target, encoder(source, self.src_mask), mask)

                variables = [source, target, *encoder.trainable_variables, *decoder.trainable_variables]
                results = []
                for run in (by_steps, lambda: whole(source, target)):
                    with tf.GradientTape() as tape:
                        tape.watch([source, target])
                        features, weights = run()
                        loss = tf.reduce_sum(features * feature_weights) + tf.reduce_sum(weights * attention_weights)
                    results.append([features, weights, *tape.gradient(loss, variables)])
                for got, want in zip(*results):
                    self.assertAllClose(got, want, atol=1e-4)

    def test_gradients_by_hand_are_those_of_the_tape(self):
        for kind, size in (('additive', 5), ('general', 5), ('dot', H)):
            check_attention_gradients(self, ATTENTIONS[kind](H, V, size), size, S, self.src_mask)

    def test_bfloat16_has_the_gradients_of_float32_nearly(self):
        for kind, recompute in (('additive', False), ('additive', True), ('general', False)):
            encoder = StackBidirectionalRNNEncoder('lstm', E, V, layers=1)
            decoder = AttentionRNNDecoder('lstm', E, V, H, kind, 5, R, recompute=recompute)
            decoder.readout.bias.assign(self.draw(R))
            source, target, upstream = self.draw(B, S, E), self.draw(B, T, E), self.draw(B, T, R)
            variables = [*encoder.trainable_variables, *decoder.trainable_variables]
            results = []
            for dtype in (tf.float32, tf.bfloat16):
                with tf.GradientTape() as tape:
                    encoded = encoder(tf.cast(source, dtype), self.src_mask)
                    features, _ = decoder(tf.cast(target, dtype), encoded, tf.ones([B, T], tf.bool))
                    loss = tf.reduce_sum(tf.cast(features, tf.float32) * upstream)
                results.append(tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(loss, variables)], axis=0))
            self.assertLess(tf.norm(results[1] - results[0]), 0.03 * tf.norm(results[0]))

    def test_hypotheses_side_by_side_are_hypotheses_alone(self):
        width = 3
        encoder = StackBidirectionalRNNEncoder('lstm', E, V)
        decoder = AttentionRNNDecoder('lstm', E, V, H, 'additive', 5, R, layers=2)
        encoded = encoder(self.draw(B, S, E), self.src_mask)
        memory = decoder.memory(encoded)
        fed = self.draw(2, B, width, E)
        parents = tf.constant(self.random.integers(0, width, [B, width]), tf.int32)
        state = decoder.initial_state(encoded, width)
        _, state, _ = decoder.step(fed[0], state, memory, 0)
        together, _, _ = decoder.step(fed[1], decoder.reorder(state, parents), memory, 1)
        for w in range(width):
            alone = decoder.initial_state(encoded, 1)
            first = tf.gather(fed[0], parents[:, w : w + 1], batch_dims=1)
            _, alone, _ = decoder.step(first, alone, memory, 0)
            features, _, _ = decoder.step(fed[1][:, w : w + 1], alone, memory, 1)
            self.assertAllClose(together[:, w : w + 1], features, atol=1e-5)


if __name__ == '__main__':
    tf.test.main()
