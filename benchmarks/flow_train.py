"""Training of FlowSeq's base configuration, beside a peer that prints lines such as

    train step 16x24                   wall med   2611.0 ms

    python benchmarks/flow_train.py --peer 'python time_flowseq_ref.py REF --config BASE.json --what pretrain,train'

`pretrain` is an update of the reconstruction phase, `train` one of the whole bound: forwards and backwards, clipping
and AdamW with AMSGrad, on a batch of random tokens without padding; vocabulary 8,000. Ours and the peer run in turn,
each in a process of its own. `best` is our best precision against the peer, and `first_update` the seconds until the
first whole update is done, graphs traced, against the 60 that we allow; without a peer it is all that is reported.
"""

import statistics
import sys
import time

from flow_decode import VOCAB, base_config, define_sides, in_turn, show
from side_by_side import report

from sequencing import cli

SENTENCES, LENGTH, MOST_SECONDS = 16, 24, 60
CASES = (f'pretrain step {SENTENCES}x{LENGTH}', f'train step {SENTENCES}x{LENGTH}')
FIRST = 'first update'


def define(values):
    define_sides(values, repeats=5)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    if values.measure:
        return measure(values)
    ours, peer = in_turn(values, __file__)
    about = dict(threads=values.threads, model=f'FlowSeq base, vocabulary {VOCAB}')
    for case in CASES if values.peer else ():
        medians = {precision: statistics.median(found[case] for found in rounds) for precision, rounds in ours.items()}
        best = min(medians, key=medians.get)
        for name, precision in [*((p.removeprefix('mixed_'), p) for p in ours), ('best', best)]:
            mine = [found[case] for found in ours[precision]]
            theirs = [found[case] for found in peer]
            ratios = [other / own for other, own in zip(theirs, mine)]
            report(f'flow_train/{case.replace(" ", "_")}/{name}', statistics.median(ratios), (min(ratios), max(ratios)),
                   medians[precision], statistics.median(theirs), 'ms', **about)  # fmt: skip
    for precision, rounds in ours.items():
        seconds = [found[FIRST] / 1e3 for found in rounds]
        ratios = [MOST_SECONDS / each for each in seconds]
        report(f'flow_train/first_update/{precision.removeprefix("mixed_")}', statistics.median(ratios),
               (min(ratios), max(ratios)), statistics.median(seconds), MOST_SECONDS, 's', **about)  # fmt: skip
    return 0


def measure(values):
    cli.quiet_tensorflow()
    cli.use_threads(values.threads)
    import types

    import numpy as np
    import tensorflow as tf

    from build_model import build_model
    from sequencing.config import TrainConfig, replace
    from sequencing.flow_config import FlowTrainConfig
    from sequencing.flow_objective import FlowObjective
    from sequencing.optimizers import build_optimizer
    from sequencing.structures import Batch
    from sequencing.training import TrainingState, Updater

    train = TrainConfig(
        optimizer='adamw', amsgrad=True, weight_decay=1e-3, learning_rate=1e-5, clip_norm=1.0, label_smoothing=0.1,
        loss_unit='sentences', flow=FlowTrainConfig(reconstruction_steps=1),
    )  # fmt: skip
    config, vocab = base_config(values.measure)
    config = replace(config, train=train)
    model = build_model(config, vocab, vocab)
    ids = tf.constant(np.random.default_rng(1).integers(4, VOCAB, [SENTENCES, LENGTH]), tf.int32)
    mask = tf.ones_like(ids, tf.bool)
    batch = Batch(ids, mask, ids, mask, tf.range(SENTENCES, dtype=tf.int64))
    objective = FlowObjective(model, config)
    optimizer = build_optimizer(train)
    optimizer.build(model.trainable_variables)
    state = TrainingState(1, objective.parts)
    for name, phase in zip(CASES, objective.phases):
        began = now()
        objective.begin(phase, types.SimpleNamespace(sample=lambda *_: batch))
        update = Updater(model, optimizer, state, train, seed=1, variables=phase.variables,
                         loss=lambda *given, phase=phase: objective.loss(phase, *given))  # fmt: skip
        update([batch])
        if phase is objective.phases[-1]:
            show(FIRST, [since(began)[0]], [since(began)[1]])
        times = []
        for _ in range(values.repeats):
            lap = now()
            update([batch])
            times.append(since(lap))
        show(name, *zip(*times))
    return 0


def now():
    return time.perf_counter(), time.process_time()


def since(began):
    """Milliseconds of time, and of the processor."""
    return [(end - start) * 1e3 for start, end in zip(began, now())]


if __name__ == '__main__':
    sys.exit(main(sys.argv))
