"""Beam search with Sequencing's default size, beside the 33 sentences/s that the ancestor claims on a Titan Xp.

    python benchmarks/decode_rnn.py

One LSTM layer of 1024 units on each side, vocabularies of 8,000, beam 5, sources of 25 tokens and outputs of 25: random
weights, with EOS made impossible before the limit, so that every sentence is walked to its end.
"""

import statistics
import sys
import time
import types

from absl import flags
from side_by_side import report

from sequencing import cli

CLAIM = 33.0  # sentences/s: "it only takes 1 minute to translate 2000 English sentences"
TOKENS, VOCAB, UNITS = 25, 8000, 1024


def define(values):
    flags.DEFINE_integer('batch', 64, 'sentences decoded together', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('repeats', 5, 'batches timed', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('threads', 2, 'CPU threads', lower_bound=1, flag_values=values)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    cli.quiet_tensorflow()
    cli.use_threads(values.threads)
    rates = {name: measure(precision, values) for name, precision in
             (('float32', 'float32'), ('bf16', 'mixed_bfloat16'))}  # fmt: skip
    rates['best'] = max(rates.values(), key=statistics.median)
    for name, found in rates.items():
        middle = statistics.median(found)
        report(f'decode_rnn/{name}', middle / CLAIM, (min(found) / CLAIM, max(found) / CLAIM), middle, CLAIM,
               'sentences/s', peer_name='claim of the ancestor, Titan Xp', batch=values.batch,
               threads=values.threads, shape=f'{UNITS} units, {TOKENS} tokens, vocabulary {VOCAB}, beam 5')  # fmt: skip
    return 0


def measure(precision, values):
    """Sentences/s of each batch, after one that is left out."""
    import numpy as np
    import tensorflow as tf

    from build_model import build_model
    from sequencing.config import Config, RNNDecoderConfig, RNNEncoderConfig, Seq2SeqConfig
    from sequencing.decode_options import DecodeOptions
    from sequencing.layers import store_for_decoding

    vocab = types.SimpleNamespace(size=VOCAB, bos_id=2, eos_id=3, tokens=None)
    config = Config(
        model=Seq2SeqConfig(
            embedding_size=512,
            encoder=RNNEncoderConfig(state_size=UNITS),
            decoder=RNNDecoderConfig(state_size=UNITS, attention_size=512, readout_size=512),
        ),
        precision=precision,
    )
    model = build_model(config, vocab, vocab)
    model.output.bias.assign(tf.tensor_scatter_nd_update(model.output.bias, [[3]], [-1e4]))
    store_for_decoding(model, model.dtype)
    options = DecodeOptions(decode='beam', beam_size=5)
    translate = tf.function(lambda *batch: model.translate(*batch, options), autograph=False)
    ids = tf.constant(np.random.default_rng(1).integers(4, VOCAB, [values.batch, TOKENS]), tf.int32)
    batch = ids, tf.ones([values.batch, TOKENS], tf.bool), tf.fill([values.batch], TOKENS)
    assert int(tf.reduce_min(translate(*batch).lengths[:, 0])) == TOKENS
    rates = []
    for _ in range(values.repeats):
        began = time.perf_counter()
        translate(*batch).ids.numpy()
        rates.append(values.batch / (time.perf_counter() - began))
    return rates


if __name__ == '__main__':
    sys.exit(main(sys.argv))
