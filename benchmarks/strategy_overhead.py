"""What a strategy itself costs: the same update on 1, 2 and 4 logical devices of this CPU, and by two workers.

    python benchmarks/strategy_overhead.py

A Transformer of 6 and 6 layers of 256 units, vocabularies of 8,000, a batch of 64 x 25 divided among the replicas, so
that all cases compute the same; SGD, without dropout. `ratio` is the time of one device by that of the case: 1 where
the strategy is free. Workers divide the threads among them. `exchanged` has the bytes that the graph of an update adds
up over replicas, `sums` the operations that do it, and `parameters` the bytes of the weights: one all-reduce an update
moves each gradient once, and a few sums.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from absl import flags

from sequencing import cli

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # for what tests share

SENTENCES, STEPS, VOCAB, UNITS = 64, 25, 8000, 256
CASES = ('one', 'mirrored_2', 'mirrored_4', 'workers_2')


def define(values):
    flags.DEFINE_integer('rounds', 3, 'times that each case is measured', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('repeats', 10, 'updates timed in a round', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('threads', 2, 'threads of all processes together', lower_bound=1, flag_values=values)
    flags.DEFINE_enum('case', '', ['', *CASES], 'used by this command itself', flag_values=values)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    if values.case:
        print(json.dumps(measure(values)), flush=True)
        return 0
    rounds = [{case: start(case, values) for case in CASES} for _ in range(values.rounds)]
    for case in CASES:
        ratios = sorted(found['one']['seconds'] / found[case]['seconds'] for found in rounds)
        seconds = [statistics.median(found[which]['seconds'] for found in rounds) for which in (case, 'one')]
        print(json.dumps({
            'name': f'strategy_overhead/{case}', 'ratio': round(statistics.median(ratios), 3),
            'spread': [round(ratios[0], 3), round(ratios[-1], 3)], 'ours': round(seconds[0], 4),
            'peer': round(seconds[1], 4), 'unit': 's an update', 'peer_name': 'ours on one device',
            **{name: rounds[0][case][name] for name in ('exchanged', 'sums', 'parameters')},
            'shape': f'{SENTENCES} x {STEPS}, {UNITS} units, vocabulary {VOCAB}', 'threads': values.threads,
        }), flush=True)  # fmt: skip
    return 0


def start(case, values):
    """Runs a case in processes of its own; returns what the first one measured."""
    from tests.worker_support import start_workers

    workers = int(case.rpartition('_')[2]) if case.startswith('workers') else 1
    threads = max(1, values.threads // workers)
    command = [sys.executable, os.path.abspath(__file__), f'--case={case}', f'--threads={threads}',
               f'--repeats={values.repeats}']  # fmt: skip
    processes = start_workers(command, workers, stdout=subprocess.PIPE)
    try:
        said = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise SystemExit(f'case {case} failed')
    return json.loads(said[0].splitlines()[-1])


def sums_over_replicas(graph):
    """Bytes of each operation of a `tf.Graph`, or of a function it calls, that adds up over devices or processes."""
    found = []
    for operation in graph.get_operations():
        over_devices = operation.type == 'AddN' and len({value.device for value in operation.inputs}) > 1
        if over_devices or 'CollectiveReduce' in operation.type or 'NcclAllReduce' in operation.type:
            value = operation.inputs[0]
            found.append(value.shape.num_elements() * value.dtype.size)
        for attribute in operation.node_def.attr.values():
            for function in [attribute.func, *attribute.list.func]:
                if function.name:
                    found += sums_over_replicas(graph._get_function(function.name).graph)
    return found


def measure(values):
    """Seconds an update, bytes that it adds up over replicas and in how many operations, bytes of the weights."""
    cli.quiet_tensorflow()
    import types

    import numpy as np
    import tensorflow as tf

    from build_model import build_model
    from sequencing.config import Config, Seq2SeqConfig, TrainConfig, TransformerDecoderConfig, TransformerEncoderConfig
    from sequencing.distribution import choose_distribution
    from sequencing.optimizers import build_optimizer
    from sequencing.structures import Batch
    from sequencing.training import TrainingState, Updater

    cli.use_threads(values.threads)
    kind, _, count = values.case.partition('_')
    if kind == 'mirrored':
        devices = [tf.config.LogicalDeviceConfiguration()] * int(count)
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices('CPU')[0], devices)
    distribution = choose_distribution({'workers': 'multi_worker'}.get(kind, kind))
    sizes = dict(layers=6, size=UNITS, heads=4, hidden_size=4 * UNITS, dropout=0.0, attention_dropout=0.0,
                 hidden_dropout=0.0)  # fmt: skip
    config = Config(
        model=Seq2SeqConfig(embedding_size=UNITS, encoder=TransformerEncoderConfig(**sizes),
                            decoder=TransformerDecoderConfig(**sizes)),
        train=TrainConfig(optimizer='sgd', learning_rate=0.01),
    )  # fmt: skip
    vocab = types.SimpleNamespace(size=VOCAB, bos_id=2, eos_id=3, tokens=None)
    with distribution.scope():
        model = build_model(config, vocab, vocab)
        optimizer = build_optimizer(config.train)
        optimizer.build(model.trainable_variables)
    update = Updater(model, optimizer, TrainingState(1), config.train, seed=1, distribution=distribution)
    rows = np.arange(SENTENCES)
    ids = np.random.default_rng(1).integers(4, VOCAB, [SENTENCES, STEPS]).astype(np.int32)
    mask = np.ones([SENTENCES, STEPS], bool)
    first, local, total = distribution.replicas
    shares = [rows[i::total] for i in range(first, first + local)]
    batch = tuple(Batch(*[tf.constant(field[share]) for field in (ids, mask, ids, mask, rows)]) for share in shares)
    seconds = []
    for _ in range(3 + values.repeats):
        began = time.perf_counter()
        update([batch]).numpy()
        seconds.append(time.perf_counter() - began)
    distribution.wait_for_all()
    sums = sums_over_replicas(update._update.get_concrete_function().graph)
    return {'seconds': statistics.median(seconds[3:]), 'exchanged': sum(sums), 'sums': len(sums),
            'parameters': sum(v.shape.num_elements() * v.dtype.size for v in model.trainable_variables)}  # fmt: skip


if __name__ == '__main__':
    sys.exit(main(sys.argv))
