"""Memory of beam search over long sources, for a model of each family.

    python benchmarks/long_source.py

Random weights, one sentence, beam 5, outputs of a fixed length; each case in a process of its own, on Linux. `ours` is
how far resident memory rises, at its peak, above what was held after a sentence of 10 tokens. The peer is memory in
proportion: what the same model took for the shortest source, times the ratio of lengths; a ratio above 1 is memory that
grows less than the source. Attention of a source over itself grows with its square. Needs below some 20 MB are met from
what the allocator holds already, and do not show.
"""

import ctypes
import gc
import os
import sys
import threading
import time

from absl import flags
from side_by_side import report, run

from sequencing import cli

VOCAB = 8000


def define(values):
    flags.DEFINE_list('families', ['rnn', 'transformer', 'conv'], 'which models', flag_values=values)
    flags.DEFINE_list('lengths', ['100', '500', '2000'], 'source tokens, shortest first', flag_values=values)
    flags.DEFINE_integer('size', 256, 'units of a layer', flag_values=values)
    flags.DEFINE_integer('layers', 3, 'layers a side (the RNN has one)', flag_values=values)
    flags.DEFINE_integer('steps', 100, 'tokens of an output; 0 for as many as the source', flag_values=values)
    flags.DEFINE_integer('beam_size', 5, 'hypotheses', flag_values=values)
    flags.DEFINE_string('measure', '', 'FAMILY,TOKENS: measure this and print MB', flag_values=values)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    if values.measure:
        family, tokens = values.measure.split(',')
        print(peak(values, family, int(tokens)))
        return 0
    lengths = [int(length) for length in values.lengths]
    same = [f'--{name}={values[name].value}' for name in ('size', 'layers', 'steps', 'beam_size')]
    for family in values.families:
        shortest = None
        for length in lengths:
            began = time.perf_counter()
            megabytes = run([sys.executable, __file__, f'--measure={family},{length}', *same])
            shortest = shortest or megabytes
            peer = shortest * length / lengths[0]
            report(f'long_source/{family}_{length}', peer / megabytes, (peer / megabytes,) * 2, megabytes, peer, 'MB',
                   peer_name='in proportion to the source', beam=values.beam_size, size=values.size,
                   steps=values.steps or length, seconds=round(time.perf_counter() - began, 1))  # fmt: skip
    return 0


def peak(values, family, tokens):
    """MB by which decoding a source of so many tokens raises the peak of this process."""
    cli.quiet_tensorflow()
    import numpy as np
    import tensorflow as tf

    from sequencing.decode_options import DecodeOptions
    from sequencing.layers import store_for_decoding

    model = make_model(family, values.size, values.layers)
    store_for_decoding(model, model.dtype)
    options = DecodeOptions('beam', beam_size=values.beam_size)

    @tf.function(autograph=False, input_signature=[
        tf.TensorSpec([1, None], tf.int32), tf.TensorSpec([1, None], tf.bool), tf.TensorSpec([1], tf.int32),
    ])  # fmt: skip
    def translate(ids, mask, limits):
        return model.translate(ids, mask, limits, options)

    def decode(length, steps):
        ids = np.random.default_rng(length).integers(4, VOCAB, [1, length]).astype('int32')
        found = translate(ids, np.ones([1, length], bool), np.array([steps], np.int32))
        assert int(found.lengths[0, 0]) == steps

    decode(10, 5)
    decode(10, 5)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what tracing left behind would hide what decoding takes
    watch = Watch()
    decode(tokens, values.steps or tokens)
    return max(0.1, watch.stop())


class Watch(threading.Thread):
    """Looks at resident memory every millisecond: the kernel's own high-water mark is not kept everywhere."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.before = self.highest = self.resident()
        self.start()

    def run(self):
        while not self.ended.wait(0.001):
            self.highest = max(self.highest, self.resident())

    def stop(self):
        """MB between the highest and the first."""
        self.ended.set()
        self.join()
        return (max(self.highest, self.resident()) - self.before) * os.sysconf('SC_PAGE_SIZE') / 2**20

    @staticmethod
    def resident():
        with open('/proc/self/statm') as file:
            return int(file.read().split()[1])


def make_model(family, size, layers):
    """A model with random weights that never writes EOS of its own accord."""
    import numpy as np

    from build_model import build_model
    from sequencing import config as c
    from sequencing.vocab import Vocab

    vocab = Vocab([f'w{i}' for i in range(VOCAB - 4)])
    sides = {
        'rnn': lambda: (c.RNNEncoderConfig(state_size=size),
                        c.RNNDecoderConfig(state_size=size, attention_size=size, readout_size=size)),
        'transformer': lambda: (c.TransformerEncoderConfig(size=size, layers=layers, heads=4, hidden_size=4 * size),
                                c.TransformerDecoderConfig(size=size, layers=layers, heads=4, hidden_size=4 * size)),
        'conv': lambda: (c.ConvEncoderConfig(size=size, layers=layers), c.ConvDecoderConfig(size=size, layers=layers)),
    }  # fmt: skip
    encoder, decoder = sides[family]()
    network = c.Seq2SeqConfig(embedding_size=size, encoder=encoder, decoder=decoder)
    model = build_model(c.Config(model=network), vocab, vocab)
    bias = np.zeros([VOCAB], 'float32')
    bias[vocab.eos_id] = -1e9
    model.output.bias.assign(bias)
    return model


if __name__ == '__main__':
    sys.exit(main(sys.argv))
