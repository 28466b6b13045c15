"""Decoding of FlowSeq's base configuration, beside a peer that prints lines such as

    argmax batch 1 length 32      wall med   196.0 ms  cpu min   191.2

    python benchmarks/flow_decode.py --peer 'python time_flowseq_ref.py REF --config BASE.json --what argmax,batch,iw'

Random weights, forced lengths, vocabulary 8,000: only shapes matter. Ours and the peer run in turn, each in a process
of its own; `--clock cpu` reads the second number. Among `--precisions` may also be `numpy`, and what is exported:
`saved-float32` and `saved-mixed_bfloat16` are what tools/export_savedmodel.py --constants writes, `litert-float32` and
`litert-int8` files of tools/export_tflite.py, with room for as many tokens as there are, for one sentence.
Without a peer, ours is compared with itself.
"""

import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags
from side_by_side import report

from sequencing import cli
from sequencing.errors import UserError

VOCAB = 8000
CASES = {  # name in the peer's output: (mode, sentences, length)
    'argmax batch 1 length 8': ('argmax', 1, 8),
    'argmax batch 1 length 16': ('argmax', 1, 16),
    'argmax batch 1 length 32': ('argmax', 1, 32),
    'argmax batch 1 length 64': ('argmax', 1, 64),
    'argmax batch 32 length 24': ('argmax', 32, 24),
    'iw nlen 3 ntr 5 k 4 batch 1': ('iw', 1, 24),
}


def define(values):
    define_sides(values, repeats=7)
    flags.DEFINE_list('cases', list(CASES), 'names of the cases', flag_values=values)
    define_export_dir(values)


def define_export_dir(values):
    flags.DEFINE_string('export_dir', '', 'folder of exported models, made where they are not there, which takes a '
                        'minute each; a scratch one by default', flag_values=values)  # fmt: skip


def define_sides(values, repeats):
    """Flags of a benchmark that times ours in some precisions beside a command."""
    flags.DEFINE_string('peer', '', 'command that times the peer', flag_values=values)
    flags.DEFINE_integer('rounds', 3, 'how often each runs, in turn', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('repeats', repeats, 'runs of a case in a process', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('threads', 1, 'CPU threads', lower_bound=1, flag_values=values)
    flags.DEFINE_list('precisions', ['float32', 'mixed_bfloat16'], 'of ours', flag_values=values)
    flags.DEFINE_enum('clock', 'wall', ['wall', 'cpu'], 'medians of time, or the least processor time, which other '
                      'work beside it disturbs less', flag_values=values)  # fmt: skip
    flags.DEFINE_string('measure', '', 'time ours in this precision and stop', flag_values=values)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    if values.measure:
        own = {'numpy': measure_numpy, 'litert': measure_litert, 'saved': measure_saved}
        return own.get(values.measure.partition('-')[0], measure)(values)
    with tempfile.TemporaryDirectory() as scratch:
        given = f'--cases={",".join(values.cases)}', f'--export_dir={values.export_dir or scratch}'
        ours, peer = in_turn(values, __file__, *given)
    for case in values.cases:
        for precision, rounds in ours.items():
            mine = [found[case] for found in rounds if case in found]
            if not mine:
                continue  # more than a sentence, and LiteRT
            theirs = [found[case] for found in peer if case in found] or mine
            ratios = [other / own for other, own in zip(theirs, mine)]
            report(f'flow_decode/{case.replace(" ", "_")}/{precision.replace("mixed_bfloat16", "bf16")}',
                   statistics.median(ratios), (min(ratios), max(ratios)), statistics.median(mine),
                   statistics.median(theirs), 'ms', threads=values.threads, engine=engine(precision),
                   model=f'FlowSeq base, vocabulary {VOCAB}')  # fmt: skip
    return 0


def engine(precision):
    known = {'numpy': 'NumPy, float32', 'litert': 'LiteRT', 'saved': 'SavedModel of constants'}
    return known.get(precision.partition('-')[0], 'TensorFlow graph')


def in_turn(values, script, *more):
    """Runs the peer, if there is one, and `script` in each precision, in turn.

    Returns:
      lists with a dict of medians by case for every round: ours, by precision, and the peer's.
    """
    ours, peer = {precision: [] for precision in values.precisions}, []
    for _ in range(values.rounds):
        if values.peer:
            peer.append(milliseconds(shlex.split(values.peer), values.clock))
            if not peer[-1]:
                raise UserError(f'--peer printed no line that --clock {values.clock} reads: see --help.')
        for precision, found in ours.items():
            given = f'--measure={precision}', f'--threads={values.threads}', f'--repeats={values.repeats}', *more
            found.append(milliseconds([sys.executable, script, *given], values.clock))
    return ours, peer


def milliseconds(command, clock='wall'):
    """Runs a command and returns the median of each case in its output, or with clock 'cpu' its least."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    number = r'\s+wall med\s+([\d.]+) ms' if clock == 'wall' else r'\s+wall med.*?\s+cpu min\s+([\d.]+)'
    found = re.findall('^(.*?)' + number, done.stdout, re.MULTILINE)
    return {name: float(number) for name, number in found}


def measure(values):
    cli.quiet_tensorflow()
    cli.use_threads(values.threads)
    import tensorflow as tf

    from sequencing.decode_options import DecodeOptions

    model = base_model(values.measure)
    functions = {
        mode: tf.function(
            lambda ids, mask, options=options: (
                model.translate(ids, mask, tf.fill(tf.shape(ids)[:1], 1000), options).ids
            ),
            input_signature=[tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, None], tf.bool)],
            autograph=False,
        )
        for mode, options in decode_options(DecodeOptions).items()
    }
    run_cases(values, lambda mode, ids, mask: functions[mode](tf.constant(ids), tf.constant(mask)).numpy())
    return 0


def measure_numpy(values):
    """The same with `sequencing_np`; its threads are those of NumPy's products, which the environment tells."""
    os.environ.update(OPENBLAS_NUM_THREADS=str(values.threads), OMP_NUM_THREADS=str(values.threads))
    cli.quiet_tensorflow()
    cli.use_threads(values.threads)
    import numpy as np

    from sequencing.decode_options import DecodeOptions
    from sequencing_np.flowseq import FlowSeq
    from sequencing_np.model_file import Weights
    from tools.ckpt2npz import weights_of

    config, vocab = base_config('float32')
    model = FlowSeq(config, Weights(weights_of(base_model('float32', folded=False))), vocab, vocab)
    options = decode_options(DecodeOptions)
    run_cases(values, lambda mode, ids, mask: model.translate(ids, mask, np.full(len(ids), 1000), options[mode]))
    return 0


def measure_saved(values):
    """The same of what tools/export_savedmodel.py --constants makes, one folder for each mode."""
    cli.quiet_tensorflow()
    cli.use_threads(values.threads)
    import tensorflow as tf

    from sequencing.export import new_folder
    from tools import export_savedmodel

    precision, found = values.measure.partition('-')[2], {}
    for mode in {CASES[name][0] for name in values.cases}:
        path = os.path.join(values.export_dir, f'{precision}-{mode}.saved')
        if not os.path.exists(path):
            translator, options = base_translator(precision)
            with new_folder(path) as made:
                export_savedmodel.save(translator, options[mode], made, constants=True)
        found[mode] = tf.saved_model.load(path).signatures['ids']
    run_cases(values, lambda mode, ids, mask: found[mode](src_ids=tf.constant(ids[:, :-1])))
    return 0


def measure_litert(values):
    """The same of what tools/export_tflite.py makes, one file for each mode and length."""
    from ai_edge_litert.interpreter import Interpreter

    cases = {name: (CASES[name][0], CASES[name][2]) for name in values.cases if CASES[name][1] == 1}
    weights = values.measure.partition('-')[2]
    paths = {key: os.path.join(values.export_dir, f'{weights}-{key[0]}-{key[1]}.tflite') for key in cases.values()}
    missing = [key for key in paths if not os.path.exists(paths[key])]
    if missing:
        write_litert(weights, {key: paths[key] for key in missing})
    for name, key in cases.items():
        run = Interpreter(paths[key], num_threads=values.threads).get_signature_runner()
        run_case(values, name, lambda mode, ids, mask, run=run: run(src_ids=ids[:, :-1]))
    return 0


def write_litert(weights, paths):
    """Writes a file for the mode and the source's length that each key of `paths` is."""
    cli.quiet_tensorflow()
    from tools import export_tflite

    translator, options = base_translator('float32')
    for (mode, length), path in paths.items():
        source = length - 1  # to which the function adds EOS
        room = length if mode == 'argmax' else length + translator.model.length_unit  # as `base_model` tells lengths
        function = export_tflite.build(translator, source, room, options[mode])
        content = export_tflite.convert(translator.model, function, weights)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as file:
            file.write(content)


def base_translator(precision):
    """What exports read of a `Translator`, and `DecodeOptions` of each mode."""
    import types

    from sequencing.decode_options import DecodeOptions

    _, vocab = base_config(precision)
    translator = types.SimpleNamespace(model=base_model(precision), src_vocab=vocab, trg_vocab=vocab, is_flow=True)
    return translator, decode_options(DecodeOptions)


def decode_options(make):
    """`DecodeOptions` of each mode."""
    return {'argmax': make(decode='argmax'), 'iw': make(decode='iw', nlen=3, ntr=5, iw_k=4, tau=0.2)}


def run_cases(values, translate):
    """Prints the median and the least of each case, one call left out; `translate` takes a mode, ids and their mask."""
    for name in values.cases:
        run_case(values, name, translate)


def run_case(values, name, translate):
    import numpy as np

    mode, sentences, length = CASES[name]
    ids = np.random.default_rng(1).integers(4, VOCAB, [sentences, length]).astype(np.int32)
    show(name, *run_times(values, lambda: translate(mode, ids, np.ones(ids.shape, bool))))


def run_times(values, call):
    """Milliseconds of `--repeats` calls, one more left out: by the clock, and of processor time."""
    times = []
    for _ in range(values.repeats + 1):
        began = time.perf_counter(), time.process_time()
        call()
        times.append(((time.perf_counter() - began[0]) * 1e3, (time.process_time() - began[1]) * 1e3))
    return zip(*times[1:])


def show(name, wall, cpu):
    """Prints a line in the form of the top of the file; both in milliseconds."""
    print(f'{name:<34} wall med {statistics.median(wall):8.1f} ms  cpu min {min(cpu):8.1f}', flush=True)


def base_model(precision, folded=True):
    """FlowSeq base with random weights, whose likeliest lengths are the source's, one unit more and one less."""
    import tensorflow as tf

    from build_model import build_model

    config, vocab = base_config(precision)
    model = build_model(config, vocab, vocab)
    reach = config.model.length.reach
    places = [[reach], [reach + 4], [reach - 4]]
    bias = model.length_predictor.output.bias
    bias.assign(tf.tensor_scatter_nd_update(bias, places, [60.0, 50.0, 40.0]))
    return model.for_decoding() if folded else model


def base_config(precision):
    """FlowSeq's base configuration, and a vocabulary of which only the size matters."""
    import types

    from sequencing.config import Config, DataConfig
    from sequencing.flow_config import FlowSeqConfig

    model = FlowSeqConfig(share_embeddings=True, tie_output=True)
    vocab = types.SimpleNamespace(size=VOCAB, pad_id=0, unk_id=1, eos_id=2, bos_id=None, tokens=None, kind='')
    return Config(data=DataConfig(joint_vocab=True), model=model, precision=precision), vocab


if __name__ == '__main__':
    sys.exit(main(sys.argv))
