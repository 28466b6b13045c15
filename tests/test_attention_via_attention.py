"""Attention via attention: words as Python finds them, weights of plain loops, whole targets against steps."""

import numpy as np
import tensorflow as tf

from build_model import build_model
from sequencing.attention_via_attention import AvAttention, AvEncoder, find_words
from sequencing.config import AvEncoderConfig, Config, RNNDecoderConfig, RNNEncoderConfig, Seq2SeqConfig
from sequencing.options import ConfigError
from sequencing.rnn_decoder import AttentionRNNDecoder
from sequencing.vocab import Vocab
from sequencing_np import attention_via_attention as in_numpy
from tests.decoder_support import check_attention_gradients, floats, linear, randomise
from tests.families import make_translator
from tests.support import seeds

SPACE, EOS = 9, 3
V, Q, K = 6, 7, 5  # sizes of outputs, queries and keys


class AttentionViaAttentionTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.draw = seeds(self)

    def text(self, sentences=4):
        """Character ids of random sentences, their mask, and the places of each word's characters."""
        rows, places = [], []
        for _ in range(sentences):
            words = [self.draw.choices(range(4, 9), k=self.draw.randint(1, 4)) for _ in range(self.draw.randint(1, 4))]
            row, spans = [], []
            for word in words:
                spans.append(range(len(row), len(row) + len(word) + 1))  # with the space or EOS behind it
                row += [*word, SPACE]
            rows.append([*row[:-1], EOS])
            places.append(spans)
        longest = max(map(len, rows)) + 2  # padding is full of spaces, which are none
        ids = np.array([row + [SPACE] * (longest - len(row)) for row in rows], np.int32)
        return ids, np.array([[i < len(row) for i in range(longest)] for row in rows]), places

    def test_words_are_what_stands_between_spaces(self):
        ids, mask, places = self.text()
        specs = [tf.TensorSpec([None, None], dtype) for dtype in (tf.int32, tf.bool)]
        words = tf.function(lambda i, m: find_words(i, m, SPACE), input_signature=specs, autograph=False)(ids, mask)
        others = in_numpy.find_words(ids, mask, SPACE)
        self.assertAllEqual(words.mask, others.mask)
        for row, spans in enumerate(places):
            self.assertEqual(int(tf.math.count_nonzero(words.mask[row])), len(spans))
            for number, span in enumerate(spans):
                for found in (words, others):
                    self.assertEqual((found.first[row, number], found.last[row, number]), (span[0], span[-1]))
                self.assertAllEqual(np.flatnonzero(words.word_of[row] == number), list(span))
                self.assertAllEqual(np.flatnonzero(others.members[row, :, number]), list(span))

    def encoded(self, cell='gru'):
        ids, mask, places = self.text()
        encoder = AvEncoder(cell, 5, V)
        return encoder, encoder(floats(self.draw, *ids.shape, 5), mask, find_words(ids, mask, SPACE)), places

    def test_a_word_is_read_from_its_ends_and_nothing_of_padding(self):
        ids, mask, _ = self.text()
        encoder, embedded = AvEncoder('lstm', 5, V, layers=2), floats(self.draw, *ids.shape, 5)
        together = encoder(embedded, mask, find_words(ids, mask, SPACE))
        for row, count in enumerate(mask.sum(axis=1)):
            words = find_words(ids[row : row + 1, :count], mask[row : row + 1, :count], SPACE)
            alone = encoder(embedded[row : row + 1, :count], mask[row : row + 1, :count], words)
            number = alone.outputs.shape[1]
            self.assertAllClose(alone.outputs[0], together.outputs[row, :number], atol=1e-5)
            self.assertAllEqual(together.outputs[row, number:], tf.zeros_like(together.outputs[row, number:]))

    def test_weights_are_those_of_plain_loops(self):
        _, encoded, places = self.encoded()
        attention = AvAttention(Q, V, K)
        randomise(self.draw, attention)
        queries = floats(self.draw, 4, 2, Q)
        memory = attention.memory(encoded)
        contexts, shown = attention(queries, memory)
        softmax = lambda x: np.exp(x) / np.exp(x).sum()
        characters = encoded.final_state.outputs.numpy()
        keys = linear(encoded.outputs, attention.key_projection)
        character_keys = linear(characters, attention.character_key_projection)
        for row, spans in enumerate(places):
            for w in range(2):
                query = queries[row, w].numpy() @ attention.query_kernel.numpy()
                energy = lambda key, query, part: np.tanh(key + query) @ part.numpy()
                words = softmax([energy(keys[row, n], query[:K], attention.energy) for n in range(len(spans))])
                wanted = np.zeros(characters.shape[1])
                for word, span in zip(words, spans):
                    inside = [energy(character_keys[row, c], query[K:], attention.character_energy) for c in span]
                    wanted[list(span)] = word * softmax(inside)
                self.assertAllClose(shown[row, w], wanted, atol=1e-5)
                want = [words @ encoded.outputs[row, : len(spans)].numpy(), wanted @ characters[row]]
                self.assertAllClose(contexts[row, w], np.concatenate(want), atol=1e-5)

    def test_steps_are_the_whole_target_and_so_are_their_gradients(self):
        encoder, _, _ = self.encoded()
        ids, mask, _ = self.text()
        source, target = floats(self.draw, *ids.shape, 5), floats(self.draw, 4, 3, 5)
        decoder = AttentionRNNDecoder('gru', 5, V, Q, 'via', K, 8, layers=2, recompute=True)
        upstream = floats(self.draw, 4, 3, 8), floats(self.draw, 4, 3, ids.shape[1])

        def encode():
            return encoder(source, mask, find_words(ids, mask, SPACE))

        def by_steps():
            encoded = encode()
            memory, state = decoder.memory(encoded), decoder.initial_state(encoded, 1)
            steps = []
            for t in range(3):
                features, state, weights = decoder.step(target[:, t : t + 1], state, memory, t)
                steps.append((features, weights))
            return [tf.concat(parts, axis=1) for parts in zip(*steps)]

        variables = [source, target, *encoder.trainable_variables, *decoder.trainable_variables]
        results = []
        for run in (by_steps, lambda: decoder(target, encode(), tf.ones([4, 3], tf.bool))):
            with tf.GradientTape() as tape:
                tape.watch([source, target])
                features, weights = run()
                loss = tf.reduce_sum(features * upstream[0]) + tf.reduce_sum(weights * upstream[1])
            results.append([features, weights, *tape.gradient(loss, variables)])
        for got, want in zip(*results):
            self.assertAllClose(got, want, atol=1e-4)

    def test_gradients_by_hand_are_those_of_the_tape(self):
        _, encoded, _ = self.encoded()
        attention = AvAttention(Q, V, K)
        memory = attention.memory(encoded)
        check_attention_gradients(self, attention, 2 * K, memory.keys.shape[1], memory.mask)

    def test_energies_far_apart_leave_every_weight_a_number(self):
        _, encoded, _ = self.encoded()
        attention = AvAttention(Q, V, K)
        attention.character_energy.assign(tf.fill([K], 40.0))
        contexts, shown = attention(9 * floats(self.draw, 4, 2, Q), attention.memory(encoded))
        self.assertAllInRange(shown, 0, 1 + 1e-5)
        self.assertAllEqual(tf.math.is_finite(contexts), tf.ones_like(contexts, tf.bool))

    def test_words_far_below_the_best_leave_every_gradient_a_number(self):
        """Below what float32 holds beside the best: all of a word's powers are zero then."""
        _, encoded, _ = self.encoded()
        attention, decoder = AvAttention(Q, V, K), AttentionRNNDecoder('gru', 5, V, Q, 'via', K, 8)
        for part in (attention, decoder.attention):
            part.character_energy.assign(tf.fill([K], 400.0))
            part.character_key_projection.kernel.assign(50 * part.character_key_projection.kernel)
        queries, target = floats(self.draw, 4, 2, Q), floats(self.draw, 4, 3, 5)
        with tf.GradientTape() as tape:
            tape.watch(queries)
            contexts, shown = attention(queries, attention.memory(encoded))
            loss = tf.reduce_sum(contexts**2) + tf.reduce_sum(shown**2)
        gradients = tape.gradient(loss, [queries, *attention.trainable_variables], unconnected_gradients='zero')
        with tf.GradientTape() as tape:
            features, _ = decoder(target, encoded, tf.ones([4, 3], tf.bool))
            loss = tf.reduce_sum(features**2)
        gradients += tape.gradient(loss, decoder.trainable_variables, unconnected_gradients='zero')
        for gradient in gradients:
            self.assertAllEqual(tf.math.is_finite(gradient), tf.ones_like(gradient, tf.bool))

    def test_parts_that_do_not_go_together_are_refused(self):
        for encoder, attention in ((RNNEncoderConfig(), 'via'), (AvEncoderConfig(), 'dot')):
            with self.assertRaisesRegex(ConfigError, 'model.decoder of kind'):
                Config(model=Seq2SeqConfig(encoder=encoder, decoder=RNNDecoderConfig(attention=attention)))
        words = Vocab(['a', 'b'])
        with self.assertRaisesRegex(ConfigError, 'no token for them'):
            build_model(make_translator('ava', 1).config, words, words)

    def test_attention_of_a_translation_is_over_the_characters(self):
        translator = make_translator('ava', self.draw.randrange(1000), sharpen=2.0)
        (result,) = translator.stream(['ab cad e'], decode='beam', beam_size=3, attention=True, max_length=5)
        weights = np.asarray(result.outputs[0].attention)
        self.assertEqual(weights.shape, (len(result.outputs[0].tokens), 9))
        self.assertAllClose(weights.sum(axis=1), np.ones(len(weights)), atol=1e-4)


if __name__ == '__main__':
    tf.test.main()
