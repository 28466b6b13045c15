"""Decoding of a Transformer beside CTranslate2 with the same weights.

    python benchmarks/decode_transformer.py
    python benchmarks/decode_transformer.py --model_dir runs/transformer_small_en2de --test_src test.en
    python benchmarks/decode_transformer.py --model_dir runs/transformer_small_en2de --test_src test.en --mode agreement

`greedy-1` translates line by line, `beam5-32` 32 lines of similar length together with a beam of 5. `float32` is that
of both sides, `bf16` our bfloat16 beside the engine's int8, `best` the faster precision of each. Text in, text out, by
what a user calls: `sequencing.load(...).stream`, and `translate_batch` between our own vocabularies. Loading, tracing
and the first calls are not timed. `memory` lines are the peak resident set of the same processes. `same` counts the
sentences of the last round for which both sides wrote the same pieces, `tokens` is the mean length of ours and theirs.

Without a trained model, one with random weights (`--random`) translates 25 tokens into 25: EOS is made impossible
before the limit. We then take a 26th step, for our scores count EOS.

`--mode agreement` times nothing: it compares pieces and scores of all sentences in float32, greedy and with a beam of
5, and refuses the flags of a timing. `ratio` is the share of sentences with the same pieces over 0.99; scores, of
sentences that ended by themselves, should lie within 1e-3 (null where there is no such sentence with the same pieces).

The same search on both sides means: no length penalty (the engine divides by length ** penalty, we by that of Wu et
al.), equal limits, no shortest length, no more hypotheses than asked for. What is left: a hypothesis that ends keeps
its place in our beam, where the engine lets another one in.
"""

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags
from side_by_side import compare, report, run
from train_transformer import SHAPES, VOCAB

from sequencing import cli
from sequencing.errors import Failure, UserError

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = {'greedy-1': (1, 1), 'beam5-32': (5, 32)}  # hypotheses, lines together
PRECISIONS = {'float32': ('float32', 'float32'), 'bf16': ('mixed_bfloat16', 'int8')}  # ours, theirs
TIMING = ('cases', 'precisions', 'rounds', 'passes', 'warmup')  # flags that --mode agreement does not read
TOKENS, RANDOM_LINES = 25, 64


def define(values):
    flags.DEFINE_string('model_dir', '', 'a trained Transformer; else one is made', flag_values=values)
    flags.DEFINE_string('test_src', '', 'source text for a trained model', flag_values=values)
    flags.DEFINE_enum('random', 'base', list(SHAPES), 'shape of the model that is made', flag_values=values)
    flags.DEFINE_enum('mode', 'speed', ['speed', 'agreement'], 'what is compared', flag_values=values)
    flags.DEFINE_list('cases', list(CASES), 'cases to measure', flag_values=values)
    flags.DEFINE_list('precisions', list(PRECISIONS), 'precisions to measure', flag_values=values)
    flags.DEFINE_integer('sentences', 0, f'first ones of the text; 0 for all of it, or {RANDOM_LINES} random ones',
                         lower_bound=0, flag_values=values)  # fmt: skip
    flags.DEFINE_integer('rounds', 3, 'times that each side is measured', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('passes', 1, 'over the text in a round, of which the median counts', lower_bound=1,
                         flag_values=values)  # fmt: skip
    flags.DEFINE_integer('warmup', 8, 'calls before that are not timed, no batch twice', lower_bound=1,
                         flag_values=values)  # fmt: skip
    flags.DEFINE_integer('threads', 2, 'CPU threads of either side', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('max_length', 200, 'longest output of a trained model', lower_bound=1, flag_values=values)
    own = {'help': 'used by this command itself', 'flag_values': values}
    flags.DEFINE_enum('side', '', ['', *SIDES], **own)
    for name in ('model', 'precision', 'told'):
        flags.DEFINE_string(name, '', **own)
    for name in ('beam_size', 'together'):
        flags.DEFINE_integer(name, 1, **own)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    if values.side:
        print(work(values))
        return 0
    for chosen, known in ((values.cases, CASES), (values.precisions, PRECISIONS)):
        if not set(chosen) <= set(known):
            raise UserError(f'{",".join(chosen)}: cases and precisions are some of {", ".join(known)}.')
    if values.model_dir:
        cli.require(values, 'test_src')
    elif values.test_src:
        raise UserError('--test_src is the text of a trained model: give its --model_dir.')
    agreement = values.mode == 'agreement'
    if agreement and any(values[name].present for name in TIMING):
        raise UserError(f'--mode agreement takes no --{", --".join(TIMING)}: nothing is timed.')
    wanted = ['float32'] if agreement else values.precisions
    with tempfile.TemporaryDirectory() as folder:
        model = make_models(values, folder, wanted)
        name = os.path.basename(values.model_dir.rstrip('/')) or f'{values.random} {SHAPES[values.random]}, random'
        about = {'threads': values.threads, 'model': name, 'peer_name': 'CTranslate2'}
        if agreement:
            for case, beam_size in (('greedy', 1), ('beam5', 5)):
                commands, files = sides(values, folder, model, case, 'float32', beam_size, 32)
                compare_outputs(f'decode_transformer/agreement/{case}/float32', commands, files, about)
        else:
            for case in values.cases:
                compare_speed(values, folder, model, case, about)
    return 0


def make_models(values, folder, precisions):
    """Returns our model folder; the engine's models are put into `folder`, named by their precision."""
    model = values.model_dir or os.path.join(folder, 'model')
    if not values.model_dir:
        sizes = {**SHAPES[values.random], 'vocab': VOCAB}
        run([sys.executable, os.path.join(HERE, 'numpy_decode.py'), '--side=make', f'--model={model}',
             *[f'--{name}={size}' for name, size in sizes.items()]])  # fmt: skip
    for _, kind in map(PRECISIONS.get, precisions):
        # TensorFlow stays out of this process: the peak memory of a new process begins at that of its parent.
        subprocess.run([sys.executable, os.path.join(os.path.dirname(HERE), 'tools', 'export_ctranslate2.py'),
                        f'--model_dir={model}', f'--output_dir={os.path.join(folder, kind)}',
                        f'--quantization={kind}'], check=True, stdout=sys.stderr,
                       env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))})  # fmt: skip
    return model


def sides(values, folder, model, case, precision, beam_size, together):
    """The commands of ours and of the peer, and the files in which they tell more than a rate."""
    given = [f'--{name}={values[name].value}' for name in
             ('mode', 'test_src', 'sentences', 'passes', 'warmup', 'threads', 'max_length')]  # fmt: skip
    commands, files = [], []
    for side, kind in zip(SIDES, PRECISIONS[precision]):
        files.append(os.path.join(folder, f'{case}.{precision}.{side}'))
        commands.append([sys.executable, os.path.abspath(__file__), f'--side={side}', f'--precision={kind}',
                         f'--model={model if side == "ours" else os.path.join(folder, kind)}', f'--told={files[-1]}',
                         f'--beam_size={beam_size}', f'--together={together}', *given])  # fmt: skip
    return commands, files


def compare_speed(values, folder, model, case, about):
    rates = []
    for precision in values.precisions:
        commands, files = sides(values, folder, model, case, precision, *CASES[case])
        about = {**about, 'precisions': PRECISIONS[precision]}

        def same(files=files):
            mine, theirs = (last['pieces'] for *_, last in map(told, files))
            return f'{sum(map(list.__eq__, mine, theirs))} of {len(mine)}'

        def tokens(files=files):
            return [round(statistics.mean(map(len, last['pieces'])), 2) for *_, last in map(told, files)]

        rates.append(
            compare(f'decode_transformer/{case}/{precision}', *commands, values.rounds, 'sentences/s', same=same,
                    tokens=tokens, **about)
        )  # fmt: skip
        mine, theirs = ([found['peak'] for found in told(file)] for file in files)
        ratios = sorted(other / own for own, other in zip(mine, theirs))
        report(f'decode_transformer/memory/{case}/{precision}', statistics.median(ratios), (ratios[0], ratios[-1]),
               statistics.median(mine), statistics.median(theirs), 'MB', **about)  # fmt: skip
    mine, theirs = (max(side) for side in zip(*rates))
    report(f'decode_transformer/{case}/best', mine / theirs, (mine / theirs,) * 2, mine, theirs, 'sentences/s',
           **{**about, 'precisions': 'the faster of each'})  # fmt: skip


def compare_outputs(name, commands, files, about):
    for command in commands:
        run(command)
    mine, theirs = (told(file)[-1] for file in files)
    pairs = list(zip(mine['pieces'], theirs['pieces'], mine['scores'], theirs['scores'], mine['ended']))
    off = [abs(own - other) for one, two, own, other, ended in pairs if one == two and ended]
    others = [own - other for one, two, own, other, ended in pairs if one != two and ended]
    share = sum(one == two for one, two, *_ in pairs) / len(pairs)
    report(name, share / 0.99, (share / 0.99,) * 2, share, 0.99, 'share with the same pieces', sentences=len(pairs),
           scores_compared=len(off), largest_score_difference=max(off, default=None),
           different_and_ours_scores_higher=sum(more > 0 for more in others),
           different_and_theirs_scores_higher=sum(more < 0 for more in others), **about)  # fmt: skip


def told(file):
    with open(file, encoding='utf-8') as lines:
        return [json.loads(line) for line in lines]


# What runs in processes of its own: each prints sentences/s. --------------------------------------------------------


def work(values):
    vocab, translate = SIDES[values.side](values)
    batches = cut(values, vocab)
    agreement = values.mode == 'agreement'
    if not agreement:
        for batch in batches[: values.warmup]:
            translate([line for _, line in batch])
    rates = []
    for _ in range(1 if agreement else values.passes):
        found, began = {}, time.perf_counter()
        for batch in batches:
            found.update(zip((place for place, _ in batch), translate([line for _, line in batch])))
        rates.append(len(found) / (time.perf_counter() - began))
    lengths = {len(pieces) for _, pieces, *_ in found.values()}
    if not values.test_src and lengths != {TOKENS}:
        raise Failure(f'{values.side}: the random model should write {TOKENS} tokens a sentence, and wrote '
                      f'{", ".join(map(str, sorted(lengths)))}.')  # fmt: skip
    _, pieces, scores, ended = zip(*[found[place] for place in sorted(found)])
    with open(values.told, 'a', encoding='utf-8') as file:
        file.write(json.dumps({'pieces': pieces, 'scores': scores, 'ended': ended, 'peak': peak()}) + '\n')
    return statistics.median(rates)


def ours(values):
    """Our vocabulary of the source, and a function from lines to (text, pieces, score, whether it ended by itself)."""
    cli.quiet_tensorflow()
    cli.use_threads(values.threads)
    import sequencing

    translator = sequencing.load(values.model, precision=values.precision)
    options = {'decode': 'beam', 'beam_size': values.beam_size} if values.beam_size > 1 else {'decode': 'greedy'}
    options.update(max_length=longest(values), length_penalty=0.0, nbest=1, batch_tokens=10**9)

    def translate(lines):
        best = [result.outputs[0] for result in translator.stream(lines, **options)]
        return [(o.translation, o.tokens, o.score, not o.output_truncated) for o in best]

    return translator.src_vocab, translate


def peer(values):
    """The same of CTranslate2; scores, which its greedy search is faster without, only where they are compared."""
    import ctranslate2

    from sequencing.vocab import Vocab

    engine = ctranslate2.Translator(values.model, compute_type=values.precision, inter_threads=1,
                                    intra_threads=values.threads)  # fmt: skip
    source, target = Vocab.load(values.model, 'src'), Vocab.load(values.model, 'trg')
    options = dict(beam_size=values.beam_size, length_penalty=0, min_decoding_length=0,
                   max_decoding_length=longest(values), return_scores=values.mode == 'agreement')  # fmt: skip

    def translate(lines):
        found = engine.translate_batch([source.pieces(ids) for ids in source.encode_lines(lines)], **options)
        best = [(result.hypotheses[0], (result.scores or [None])[0]) for result in found]
        return [(target.decode(target.ids_of(tokens)), tokens, score, len(tokens) < longest(values))
                for tokens, score in best]  # fmt: skip

    return source, translate


SIDES = {'ours': ours, 'peer': peer}


def longest(values):
    return values.max_length if values.test_src else TOKENS


def cut(values, vocab):
    """Lists of (number, line), as many as are decoded together, of similar length; alone, in the order of the text."""
    lines = [line for line in sources(values) if len(vocab.encode(line))]
    order = list(enumerate(lines))
    if values.together > 1:
        order.sort(key=lambda item: -len(vocab.encode(item[1])))
    return [order[i : i + values.together] for i in range(0, len(order), values.together)]


def sources(values):
    """The first lines of the text, or else random words."""
    if values.test_src:
        from sequencing.text import read_lines

        return list(itertools.islice(read_lines(values.test_src), values.sentences or None))
    draw = random.Random(7)
    return [' '.join(f'w{draw.randrange(VOCAB - 4)}' for _ in range(TOKENS - 1))
            for _ in range(values.sentences or RANDOM_LINES)]  # fmt: skip


def peak():
    """The largest resident set of this process so far, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024) / 1e6


if __name__ == '__main__':
    sys.exit(main(sys.argv))
