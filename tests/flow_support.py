"""What tests of flows share: promise 8 for any layer, small sources and masks, goldens."""

import json

import numpy as np
import tensorflow as tf

from flow_layers import FlowMemory
from tests.support import shared_folder


def lengths_and_mask(random, batch, unit, most):
    """A mask `[batch, T]` whose lengths are multiples of `unit`, at most `most` units, one sentence as long as T, one
    shorter."""
    units = [most] + [random.randint(1, most - 1) for _ in range(batch - 1)]
    random.shuffle(units)
    return tf.sequence_mask([unit * n for n in units], unit * most)


def random_normal(random, shape, dtype=tf.float64):
    return tf.constant(np.random.default_rng(random.randrange(2**31)).normal(size=shape), dtype)


def make_memory(random, batch, size, dtype=tf.float64):
    """A source of `batch` sentences of 1 to 5 steps, zero at padding."""
    mask = lengths_and_mask(random, batch, 1, 5)
    outputs = random_normal(random, [batch, 5, size], dtype)
    return FlowMemory(tf.where(mask[:, :, tf.newaxis], outputs, 0.0), mask)


def disturb(module, random, deviation=0.3):
    """Moves every weight a little, so that nothing is at a start where it has no effect."""
    for variable in module.trainable_variables:
        variable.assign_add(deviation * random_normal(random, variable.shape, variable.dtype))


class FlowTestCase(tf.test.TestCase):
    """Promise 8, for any layer."""

    def check_layer(self, flow, x, mask, memory=None, atol=1e-8):
        """Round trip, log-dets against the autodiff Jacobian, log-det shape, padding, eager and traced.

        Args:
          flow: `SequenceBijector`; x: `[B, T, D]` float64; mask: `[B, T]` bool; memory: `FlowMemory` or None.
        """
        given = dict(mask=mask, memory=memory)
        real = tf.where(mask[:, :, tf.newaxis], x, 0.0)
        forward, log_det = flow.forward(tf.identity(real), **given), flow.forward_log_det_jacobian(real, **given)
        self.assertEqual(log_det.shape, [x.shape[0]])
        self.assertAllEqual(tf.where(mask[:, :, tf.newaxis], 0.0, forward), tf.zeros_like(x))
        self.assertAllClose(flow.inverse(tf.identity(forward), **given), real, atol=atol)
        self.assertAllClose(log_det, self._autodiff_log_det(flow, real, mask, memory), atol=10 * atol)
        # With forward's log-det right and inverse its inverse, there is one number that this can be.
        inverse_log_det = flow.inverse_log_det_jacobian(tf.identity(forward), **given)
        self.assertAllClose(inverse_log_det, -log_det, atol=10 * atol)
        traced = self._traced(flow, x, memory)
        for got, want in zip(traced(real, mask, memory), (forward, log_det)):
            self.assertAllClose(got, want, atol=atol)
        self._check_padding(flow, traced, real, mask, memory, forward, log_det, atol)

    def _traced(self, flow, x, memory):
        """`forward_and_log_det` of unknown batch size and length, traced once."""
        signature = [tf.TensorSpec([None, None, x.shape[2]], x.dtype), tf.TensorSpec([None, None], tf.bool)]
        if memory is None:
            function = tf.function(flow.forward_and_log_det, input_signature=signature, autograph=False)
            return lambda x, mask, memory: function(x, mask)
        sizes = tf.TensorSpec([None, None, memory.outputs.shape[2]], x.dtype), signature[1]
        function = tf.function(
            lambda x, mask, *memory: flow.forward_and_log_det(x, mask, FlowMemory(*memory)),
            input_signature=[*signature, *sizes],
            autograph=False,
        )
        return lambda x, mask, memory: function(x, mask, *memory[:2])

    def _autodiff_log_det(self, flow, x, mask, memory):
        """log|det| of forward's Jacobian over the real steps of each sentence.

        All rows of the Jacobian at once: the batch is repeated, and each copy is asked for one output's gradient.
        """
        batch, outputs = x.shape[0], x.shape[1] * x.shape[2]
        if memory is not None:
            memory = FlowMemory(*[tf.tile(part, [outputs] + [1] * (len(part.shape) - 1)) for part in memory[:2]])
        many = tf.tile(x, [outputs, 1, 1])
        with tf.GradientTape() as tape:
            tape.watch(many)
            y = flow.forward(tf.identity(many), mask=tf.tile(mask, [outputs, 1]), memory=memory)
            picked = tf.linalg.diag_part(tf.transpose(tf.reshape(y, [outputs, batch, outputs]), [1, 0, 2]))
        gradients = tf.reshape(tape.gradient(picked, many), [outputs, batch, outputs])
        wanted = []
        for b, steps in enumerate(mask.numpy()):
            real = np.repeat(steps, x.shape[2])
            wanted.append(np.linalg.slogdet(gradients[:, b].numpy()[real][:, real])[1])
        return wanted

    def _check_padding(self, flow, traced, x, mask, memory, forward, log_det, atol):
        """What padding holds changes nothing else and passes untouched; nor does more padding change anything."""
        real = mask[:, :, tf.newaxis]
        loud = tf.where(real, x, 1e3)
        noisy_memory = None
        if memory is not None:
            noisy_memory = FlowMemory(tf.where(memory.mask[:, :, tf.newaxis], memory.outputs, 1e3), memory.mask)
        got, got_log_det = traced(loud, mask, noisy_memory)
        self.assertAllClose(got, tf.where(real, forward, loud), atol=atol)
        self.assertAllClose(got_log_det, log_det, atol=atol)
        back = flow.inverse_and_log_det(got, mask, noisy_memory)[0]
        self.assertAllClose(back, loud, atol=atol)
        wider = [[0, 0], [0, 4]]
        got, got_log_det = traced(tf.pad(x, [*wider, [0, 0]]), tf.pad(mask, wider), memory)
        self.assertAllClose(got[:, : x.shape[1]], forward, atol=atol)
        self.assertAllClose(got_log_det, log_det, atol=atol)


def golden(name):
    """The arrays of a golden file below `goldens/flowseq`."""
    with np.load(shared_folder('goldens', 'flowseq', name), allow_pickle=False) as arrays:
        return dict(arrays)


def arrays_below(arrays, prefix):
    """Those whose names start with `prefix`, without it."""
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def json_array(array):
    """What a uint8 array of JSON text says."""
    return json.loads(bytes(array).decode())


def tiny_flow_model(random, model=None, train=None, tokens=23):
    """A small `FlowSeq` with every weight moved, its `Config` and vocabulary.

    Args:
      model: dict of fields of `FlowSeqConfig` that differ from a tiny one; train: dict of fields of `TrainConfig`.
    """
    from build_model import build_model
    from sequencing.config import Config, DataConfig, TrainConfig
    from sequencing.flow_config import (
        FlowPriorConfig,
        FlowSeqConfig,
        FlowTransformerDecoderConfig,
        FlowTransformerEncoderConfig,
        FlowTransformerPosteriorConfig,
        SoftmaxLengthConfig,
    )
    from sequencing.vocab import Vocab

    parts = dict(
        embedding_size=8,
        latent_size=8,
        hidden_size=10,
        encoder=FlowTransformerEncoderConfig(layers=1, heads=2),
        posterior=FlowTransformerPosteriorConfig(layers=1, heads=2),
        decoder=FlowTransformerDecoderConfig(layers=1, heads=2, copy_source=True),
        length=SoftmaxLengthConfig(reach=5),
        prior=FlowPriorConfig(steps=(0, 0), factors=(2,), hidden_size=6, heads=2),
    )
    config = Config(
        data=DataConfig(joint_vocab=bool((model or {}).get('share_embeddings'))),
        model=FlowSeqConfig(**{**parts, **(model or {})}),
        train=TrainConfig(**(train or {})),
        seed=random.randrange(2**31),
    )
    vocab = Vocab([f'w{i}' for i in range(tokens)])
    built = build_model(config, vocab, vocab)
    disturb(built, random, 0.2)
    return built, config, vocab


def random_batch(random, vocab, batch=4, unit=2, src_longest=7, trg_units=3):
    """A `Batch` of random sentences, targets ending in EOS and filled to multiples of `unit`."""
    from sequencing.structures import Batch

    sides = []
    for longest, step in ((src_longest, 1), (unit * trg_units, unit)):
        mask = lengths_and_mask(random, batch, step, longest // step).numpy()
        ids = np.array([[random.randrange(4, vocab.size) for _ in range(longest)] for _ in range(batch)], np.int32)
        lengths = mask.sum(axis=1)
        ids[np.arange(batch), lengths - 1] = vocab.eos_id
        sides += [tf.constant(np.where(mask, ids, vocab.pad_id)), tf.constant(mask)]
    return Batch(*sides, tf.constant([random.randrange(10**6) for _ in range(batch)], tf.int64))
