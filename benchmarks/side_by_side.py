"""Times ours and a peer in turn, each in processes of its own, and prints one JSON line a case.

A larger ratio is always better for us. Rounds alternate, because the machines are shared: a ratio is taken within a
round, and the median and the range of the rounds are printed.
"""

import json
import os
import statistics
import subprocess
import sys


def compare(name, ours, peer, rounds, unit, better='more', **about):
    """Runs two commands in turn and prints the comparison.

    Args:
      name: of the line, ending in the case, such as 'train_rnn/float32'.
      ours, peer: commands whose last line of output is a number.
      rounds: how often each runs.
      unit: of the numbers.
      better: 'more' for rates, 'less' for times and bytes.
      about: what else the line says; functions are asked when all rounds are over.
    Returns:
      the median numbers of ours and of the peer.
    """
    pairs = [(run(ours), run(peer)) for _ in range(rounds)]
    ratios = sorted(mine / theirs if better == 'more' else theirs / mine for mine, theirs in pairs)
    mine, theirs = (statistics.median(values) for values in zip(*pairs))
    about = {key: value() if callable(value) else value for key, value in about.items()}
    report(name, statistics.median(ratios), (ratios[0], ratios[-1]), mine, theirs, unit, **about)
    return mine, theirs


def report(name, ratio, spread, ours, peer, unit, **about):
    """Prints one line of results."""
    line = {'name': name, 'ratio': round(ratio, 3), 'spread': [round(value, 3) for value in spread],
            'ours': round(ours, 3), 'peer': round(peer, 3), 'unit': unit, **about}  # fmt: skip
    print(json.dumps(line), flush=True)


def run(command):
    """Runs a command in a fresh process and returns the number in the last line of its output."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f'{" ".join(command)} failed with exit code {done.returncode}')
    return float(done.stdout.splitlines()[-1])


def training_rate(config, vocab_size, sentences, steps, threads, warmup, repeats):
    """Target tokens/s of our whole updates on one batch of random tokens without padding."""
    import time
    import types

    import numpy as np
    import tensorflow as tf

    from build_model import build_model
    from sequencing.optimizers import build_optimizer
    from sequencing.structures import Batch
    from sequencing.training import TrainingState, Updater

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    vocab = types.SimpleNamespace(size=vocab_size, bos_id=2, eos_id=3, tokens=None)
    model = build_model(config, vocab, vocab)
    optimizer = build_optimizer(config.train)
    optimizer.build(model.trainable_variables)
    update = Updater(model, optimizer, TrainingState(1), config.train, seed=1)
    ids = tf.constant(np.random.default_rng(1).integers(4, vocab_size, [sentences, steps]), tf.int32)
    mask = tf.ones([sentences, steps], tf.bool)
    batch = Batch(ids, mask, ids, mask, tf.range(sentences, dtype=tf.int64))
    return median_rate(lambda: update([batch]), sentences * steps, warmup, repeats, time.perf_counter)


def median_rate(step, amount, warmup, repeats, clock):
    """`amount` per second of `step()`, the median of `repeats` after `warmup`."""
    for _ in range(warmup):
        step()
    seconds = []
    for _ in range(repeats):
        began = clock()
        step()
        seconds.append(clock() - began)
    return amount / statistics.median(seconds)
