"""What every encoder and decoder promises, checked for one of them; slow answers that they are held against."""

import numpy as np
import tensorflow as tf

from sequencing.structures import EncoderOutput


def floats(random, *shape):
    """Normal random numbers, float32."""
    return tf.constant(np.random.default_rng(random.randrange(2**31)).normal(size=shape), tf.float32)


def ragged_mask(random, batch, count):
    """A `[batch, count]` bool mask whose first row is full and the others are of random length, at least 1."""
    lengths = [count] + [random.randint(1, count) for _ in range(batch - 1)]
    return tf.sequence_mask(lengths, count)


def source(random, batch, count, size):
    """An `EncoderOutput` of random numbers."""
    mask = ragged_mask(random, batch, count)
    return EncoderOutput(tf.where(mask[:, :, tf.newaxis], floats(random, batch, count, size), 0.0), mask, ())


def randomise(random, module):
    """Gives every variable of a module random values of its own scale, so that no bias is zero and no scale one."""
    for variable in module.trainable_variables:
        variable.assign_add(0.3 * floats(random, *variable.shape))


def attend_slowly(queries, keys, values, heads, seen):
    """Rows `[T, D]` attend to `[S, D]`; seen(t, s) says what is visible. Returns `[T, D]` and weights `[H, T, S]`."""
    count, size = queries.shape
    head = size // heads
    found, all_weights = np.zeros([count, size]), np.zeros([heads, count, len(keys)])
    for h in range(heads):
        part = slice(h * head, (h + 1) * head)
        for t in range(count):
            visible = [s for s in range(len(keys)) if seen(t, s)]
            scores = np.array([queries[t, part] @ keys[s, part] for s in visible]) / np.sqrt(head)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            for s, weight in zip(visible, weights):
                all_weights[h, t, s] = weight
                found[t, part] += weight * values[s, part]
    return found, all_weights


def linear(x, layer):
    """A `LinearOp` in NumPy, float64."""
    return np.asarray(x, np.float64) @ layer.kernel.numpy() + layer.bias.numpy()


def check_steps_equal_whole(test, random, decoder, embedding_size, encoded, width, steps=5, atol=2e-5):
    """Walks `steps` random tokens with random changes of order, in a loop, and reads each history again as a whole."""
    batch = encoded.mask.shape[0]
    tokens = floats(random, steps, batch, width, embedding_size)
    parents = tf.constant([[[random.randrange(width) for _ in range(width)] for _ in range(batch)]
                           for _ in range(steps)])  # fmt: skip

    @tf.function(autograph=False)
    def walk(tokens, parents):
        memory = decoder.memory(encoded)
        arrays = [tf.TensorArray(tf.float32, steps), tf.TensorArray(tf.float32, steps)]

        def body(time, state, arrays):
            features, state, weights = decoder.step(tokens[time], state, memory, time)
            if width > 1:
                state = decoder.reorder(state, parents[time])
            return time + 1, state, [array.write(time, x) for array, x in zip(arrays, (features, weights))]

        state = decoder.initial_state(encoded, width, steps)
        _, _, arrays = tf.while_loop(lambda time, *_: time < steps, body, (0, state, arrays))
        return [array.stack() for array in arrays]

    features, weights = walk(tokens, parents)
    repeated = EncoderOutput(tf.repeat(encoded.outputs, width, axis=0), tf.repeat(encoded.mask, width, axis=0), ())
    history = tf.zeros([batch, width, 0, embedding_size])
    for time in range(steps):
        history = tf.concat([history, tokens[time][:, :, tf.newaxis]], axis=2)
        whole, whole_weights = decoder(
            tf.reshape(history, [batch * width, time + 1, embedding_size]),
            repeated,
            tf.ones([batch * width, time + 1], tf.bool),
        )
        shape = [batch, width, -1]
        test.assertAllClose(features[time], tf.reshape(whole[:, -1], shape), atol=atol)
        test.assertAllClose(weights[time], tf.reshape(whole_weights[:, -1], shape), atol=atol)
        history = tf.gather(history, parents[time], batch_dims=1) if width > 1 else history


def check_causal(test, random, decoder, embedding_size, encoded, count=7):
    """What comes after a step changes nothing at it."""
    batch, change = encoded.mask.shape[0], random.randrange(1, count)
    embedded = floats(random, batch, count, embedding_size)
    other = tf.concat([embedded[:, :change], floats(random, batch, count - change, embedding_size)], axis=1)
    mask = tf.ones([batch, count], tf.bool)
    first, second = decoder(embedded, encoded, mask)[0], decoder(other, encoded, mask)[0]
    test.assertAllClose(first[:, :change], second[:, :change], atol=1e-5)
    test.assertGreater(float(tf.reduce_max(tf.abs(first[:, change] - second[:, change]))), 1e-3)


def check_source_padding(test, random, decoder, embedding_size, encoded, count=4):
    """More padding behind the source changes nothing, whatever it holds; weights fall on real steps alone."""
    batch = encoded.mask.shape[0]
    embedded, mask = floats(random, batch, count, embedding_size), tf.ones([batch, count], tf.bool)
    junk = 9 * floats(random, batch, 3, encoded.outputs.shape[-1])
    padded = EncoderOutput(tf.concat([encoded.outputs, junk], axis=1), tf.pad(encoded.mask, [[0, 0], [0, 3]]), ())
    features, weights = decoder(embedded, encoded, mask)
    again, again_weights = decoder(embedded, padded, mask)
    test.assertAllClose(features, again, atol=1e-5)
    test.assertAllClose(tf.pad(weights, [[0, 0], [0, 0], [0, 3]]), again_weights, atol=1e-6)
    test.assertAllClose(tf.reduce_sum(weights, axis=-1), np.ones([batch, count]), atol=1e-5)
    test.assertAllEqual(tf.boolean_mask(tf.transpose(weights, [0, 2, 1]), ~encoded.mask).numpy().any(), False)


def check_encoder_padding(test, random, encoder, embedding_size):
    """A sentence alone, without padding, is read as it is among longer ones; padding is zero."""
    mask = ragged_mask(random, 3, 7)
    embedded = floats(random, 3, 7, embedding_size)
    together = encoder(embedded, mask)
    for row in range(3):
        length = int(tf.math.count_nonzero(mask[row]))
        alone = encoder(embedded[row : row + 1, :length], tf.ones([1, length], tf.bool))
        test.assertAllClose(alone.outputs[0], together.outputs[row, :length], atol=1e-5)
    test.assertAllEqual(tf.boolean_mask(together.outputs, ~mask).numpy().any(), False)


def check_unknown_shapes(test, call, *tensors):
    """`call` gives in a tf.function that knows no sizes but the last what it gives eagerly, in one trace."""
    specs = [tf.TensorSpec([None] * (x.shape.rank - 1) + [x.shape[-1] if x.dtype.is_floating else None], x.dtype)
             for x in tensors]  # fmt: skip
    traced = tf.function(call, input_signature=specs, autograph=False)
    for arguments in (tensors, [x[1:] for x in tensors]):
        tf.nest.map_structure(lambda x, y: test.assertAllClose(x, y, atol=1e-5), call(*arguments), traced(*arguments))
    test.assertEqual(traced.experimental_get_tracing_count(), 1)


def check_attention_gradients(test, attention, query_size, places, mask):
    """The gradients that an attention writes out against those of `tf.GradientTape`, in float64.

    Args:
      test: a `tf.test.TestCase`; query_size: of projected queries.
      places: keys of a source; mask: that of the memory of a batch.
    """
    steps, batch = 4, tf.nest.flatten(mask)[0].shape[0]
    draw = lambda *shape: tf.random.normal(shape, dtype=tf.float64)
    queries, keys, upstream = (
        draw(steps, batch, query_size), draw(batch, places, attention.attention_size), draw(steps, batch, places)
    )  # fmt: skip
    own = [draw(*weight.shape) for weight in attention.weights(tf.float64)[1:]]
    with tf.GradientTape() as tape:
        tape.watch([queries, keys, *own])
        energies, compared = attention.match(tf.transpose(queries, [1, 0, 2]), keys, mask, *own)
    want = tape.gradient(energies, [queries, keys, *own], tf.transpose(upstream, [1, 0, 2]))
    compared = [None] * steps if compared is None else tf.transpose(compared, [1, 0, 2, 3])
    of_queries = [attention.query_gradient(upstream[t], compared[t], keys, mask, *own) for t in range(steps)]
    of_keys, of_own = attention.source_gradients(upstream, compared, queries, mask, *own)
    for mine, theirs in zip([tf.stack(of_queries), of_keys, *of_own], want, strict=True):
        test.assertAllClose(mine, theirs, atol=1e-12)
