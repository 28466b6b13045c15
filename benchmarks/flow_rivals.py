"""FlowSeq by argmax beside autoregressive rivals of the same width: milliseconds against the length of the output.

    taskset -c 0 python benchmarks/flow_rivals.py

The rivals are Transformers base of 6 + 6 layers, and of 6 + 1 (`one-layer decoder`; Kasai et al., 2021), beam 5: ours
in float32 and bf16, and CTranslate2 with the same weights as eight-bit integers (`bench` extra). FlowSeq base runs as a
TensorFlow graph in float32 and bf16, and as LiteRT files in float32 and int8, which take one sentence. Random weights
throughout, vocabulary 8,000, as many tokens out as in. Sides run in turn, each in a process of its own; loading,
tracing and the first call are not timed. `--clock cpu` reads the least processor time in place of the median time.

One line a case and rival: `ours` is FlowSeq's fastest engine, which `engine` names, `all` has the others.
"""

import os
import random
import statistics
import subprocess
import sys
import tempfile

from absl import flags
from flow_decode import CASES, VOCAB, define_export_dir, milliseconds, run_times, show
from side_by_side import report
from train_transformer import SHAPES

from sequencing import cli

HERE = os.path.dirname(os.path.abspath(__file__))
TIMED = [name for name, (mode, *_) in CASES.items() if mode == 'argmax']
FLOWS = ('float32', 'mixed_bfloat16', 'litert-float32', 'litert-int8')
DECODERS = {'6 + 6': 6, 'one-layer decoder': 1}  # layers
RIVALS = ('float32', 'mixed_bfloat16', 'CTranslate2 int8')


def define(values):
    flags.DEFINE_list('cases', TIMED, 'names of the cases', flag_values=values)
    flags.DEFINE_list('flows', list(FLOWS), 'engines of the flow model', flag_values=values)
    flags.DEFINE_list('rivals', list(RIVALS), 'engines of the rivals', flag_values=values)
    flags.DEFINE_integer('rounds', 1, 'how often each runs, in turn', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('repeats', 5, 'runs of a case in a process', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('threads', 1, 'CPU threads of every side', lower_bound=1, flag_values=values)
    flags.DEFINE_enum('clock', 'wall', ['wall', 'cpu'], 'as of flow_decode.py', flag_values=values)
    define_export_dir(values)
    for name in ('measure', 'model'):
        flags.DEFINE_string(name, '', 'used by this command itself', flag_values=values)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    if values.measure:
        return measure(values)
    given = [f'--cases={",".join(values.cases)}', f'--repeats={values.repeats}', f'--threads={values.threads}']
    with tempfile.TemporaryDirectory() as folder:
        flow = [sys.executable, os.path.join(HERE, 'flow_decode.py'), f'--export_dir={values.export_dir or folder}']
        commands = {('flow', engine): [*flow, f'--measure={engine}', *given] for engine in values.flows}
        for decoder, layers in DECODERS.items():
            model = make(folder, layers)
            for engine in values.rivals:
                side = f'--measure={engine}', f'--model={model}'
                commands[decoder, engine] = [sys.executable, __file__, *side, *given]
        rounds = [{side: milliseconds(command, values.clock) for side, command in commands.items()}
                  for _ in range(values.rounds)]  # fmt: skip
    for case in values.cases:
        times = {side: [found[side][case] for found in rounds] for side in commands if case in rounds[0][side]}
        median = {side: statistics.median(found) for side, found in times.items()}
        flows = {side: ms for side, ms in median.items() if side[0] == 'flow'}
        if not flows:  # LiteRT files take one sentence
            continue
        best = min(flows, key=flows.get)
        for rival in (side for side in median if side[0] != 'flow'):
            ratios = sorted(theirs / mine for theirs, mine in zip(times[rival], times[best]))
            name = ', '.join(rival).replace('mixed_', '')
            report(f'flow_rivals/{case.replace(" ", "_")}/{name}', statistics.median(ratios),
                   (ratios[0], ratios[-1]), median[best], median[rival], 'ms', engine=best[1], threads=values.threads,
                   all={engine: round(ms, 1) for (_, engine), ms in flows.items()})  # fmt: skip
    return 0


def make(folder, layers):
    """A Transformer base with random weights that never writes EOS by itself, ours and CTranslate2's beside it."""
    model = os.path.join(folder, f'decoder{layers}')
    sizes = {**SHAPES['base'], 'vocab': VOCAB, 'decoder_layers': layers}
    for script, *given in (
        ('numpy_decode.py', '--side=make', f'--model={model}', *(f'--{name}={size}' for name, size in sizes.items())),
        ('../tools/export_ctranslate2.py', f'--model_dir={model}', f'--output_dir={model}.ct2', '--quantization=int8'),
    ):
        subprocess.run([sys.executable, os.path.join(HERE, script), *given], check=True, stdout=sys.stderr)
    return model


def measure(values):
    """Times beam 5 of a rival, text to text for ours, pieces to pieces for the engine."""
    translate = beam_of_engine(values) if 'CTranslate2' in values.measure else beam_of_ours(values)
    draw = random.Random(7)
    for name in values.cases:
        _, sentences, length = CASES[name]
        lines = [[f'w{draw.randrange(VOCAB - 4)}' for _ in range(length - 1)] for _ in range(sentences)]
        found = []
        show(name, *run_times(values, lambda lines=lines, n=length, found=found: found.append(translate(lines, n))))
        assert all(length - 1 <= written <= length for written in found[-1]), found[-1]
    return 0


def beam_of_ours(values):
    cli.quiet_tensorflow()
    cli.use_threads(values.threads)
    import sequencing

    translator = sequencing.load(values.model, precision=values.measure)

    def translate(lines, length):
        options = dict(decode='beam', beam_size=5, max_length=length - 1, batch_tokens=10**9)  # and a step for EOS
        results = translator.stream([' '.join(line) for line in lines], **options)
        return [result.outputs[0].length for result in results]

    return translate


def beam_of_engine(values):
    import ctranslate2

    engine = ctranslate2.Translator(f'{values.model}.ct2', compute_type='int8', inter_threads=1,
                                    intra_threads=values.threads)  # fmt: skip

    def translate(lines, length):
        found = engine.translate_batch(lines, beam_size=5, min_decoding_length=length, max_decoding_length=length)
        return [len(result.hypotheses[0]) for result in found]

    return translate


if __name__ == '__main__':
    sys.exit(main(sys.argv))
