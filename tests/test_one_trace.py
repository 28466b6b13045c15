"""Flows in graphs: what shares a trace and what does not."""

import tensorflow as tf

from flow_layers import AFFINE, ConvConditioner, Coupling, FeatureSplit, SequenceFlow
from flow_layers.build import build_flow
from tests.flow_support import disturb, lengths_and_mask, make_memory, random_normal
from tests.support import seeds

SOURCE = 7  # width of the sources


class OneTraceTest(tf.test.TestCase):
    """In a graph, couplings of one kind share a trace, and each keeps its own weights, gradients and dropout."""

    def test_graph_and_eager_agree(self):
        random = seeds(self)
        tf.random.set_seed(random.randrange(2**31))
        for kinds, arguments in (
            (6, dict(steps=(2, 0), heads=2, dropout=0.3)),
            (3, dict(steps=(1, 0), coupling='recurrent', transform='additive', cell='gru')),
        ):
            with self.subTest(**arguments):
                flow = build_flow(8, SOURCE, factors=(2,), hidden_size=6, **arguments)
                disturb(flow, random, 0.1)
                mask = lengths_and_mask(random, 2, 2, 3)
                x = tf.where(mask[:, :, tf.newaxis], random_normal(random, [2, 6, 8], tf.float32), 0.0)
                memory = make_memory(random, 2, SOURCE, tf.float32)
                seed = tf.constant([random.randrange(2**31), 1])

                def run(x, mask, outputs, flow=flow, memory=memory, seed=seed):
                    with tf.GradientTape() as tape:
                        tape.watch((x, outputs))
                        prepared = flow.prepare(outputs, memory.mask)
                        y, log_det = flow.forward_and_log_det(x, mask, prepared, seed)
                        loss = tf.reduce_sum(tf.square(y)) + tf.reduce_sum(log_det)
                    variables = flow.trainable_variables
                    gradients = tape.gradient(loss, [x, outputs, *variables], unconnected_gradients='zero')
                    return y, log_det, *gradients

                traced = tf.function(run, autograph=False)
                want, got = run(x, mask, memory.outputs), traced(x, mask, memory.outputs)
                for one, other in zip(want, got, strict=True):
                    self.assertAllClose(one, other, 1e-4, 1e-4)
                graph = traced.get_concrete_function(x, mask, memory.outputs).graph
                calls = [op.get_attr('f').name for op in graph.get_operations() if op.type == 'PartitionedCall']
                forward = [name for name in calls if 'backward' not in name]
                couplings = sum(isinstance(part, Coupling) for part in flow.submodules)
                self.assertEqual((len(forward), len(set(forward))), (couplings, kinds))

    def test_what_a_part_of_your_own_keeps_to_itself_sets_it_apart(self):
        random = seeds(self)
        for setting in ('gain', '_gain'):
            for gains in (1.0, 3.0), ([1.0], [3.0]), (tf.constant(1.0), tf.constant(3.0)):
                with self.subTest(setting=setting, gains=gains):

                    class Louder(ConvConditioner):
                        def __call__(self, x, at, setting=setting):
                            gain = vars(self)[setting]
                            return super().__call__(x, at) * (gain[0] if isinstance(gain, list) else gain)

                    couplings = []
                    for gain in gains:
                        conditioner = Louder(4, SOURCE, 8, 5)
                        setattr(conditioner, setting, gain)
                        couplings.append(Coupling(FeatureSplit(8, 'up'), AFFINE, conditioner))
                    flow = SequenceFlow(couplings)
                    disturb(flow, random, 0.3)
                    x = random_normal(random, [2, 3, 8], tf.float32)
                    mask, memory = tf.ones([2, 3], tf.bool), make_memory(random, 2, SOURCE, tf.float32)
                    want = flow.forward_and_log_det(x, mask, memory)
                    got = tf.function(flow.forward_and_log_det, autograph=False)(x, mask, memory)
                    self.assertAllClose(got, want, 1e-4, 1e-4)
