"""What a trained model is exported to, beside the model itself: size, translations, scores, BLEU.

    python benchmarks/export_agreement.py --model_dir runs/en2de --test_src test.en --test_trg test.de
    python benchmarks/export_agreement.py --model_dir runs/en2de --test_src test.en --test_trg test.de --sentences 300

Writes a SavedModel, LiteRT files and `.npz` files by the tools that do so, and translates the text with each: greedy
search, or of flow models argmax (iw, where --decode says so), on the CPU. SavedModel and LiteRT run in fresh processes
that can import nothing of this package, LiteRT without TensorFlow too; `.npz` files by `nmt_np.py`. The peer is the
model itself in float32.

`ratio` is the share of sentences with the same pieces as the model's, `same` their number, `same_text` that of equal
translations. `largest_score_difference` is among those with the same pieces, relative to max(1, |score|), null where
there are none. `mib` is that of model.tflite, of the `.npz` file, or of the SavedModel's folder with its vocabularies.
`cut` counts sources longer than `--max_src_length` pieces, of which LiteRT is given the beginning. Nothing is timed.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile

from absl import flags
from side_by_side import report

from sequencing import cli
from sequencing.errors import Failure, UserError
from tools.export_savedmodel import FLOW_FLAGS, define_flow_flags
from tools.export_tflite import MODES

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OURS = ('build_flow_model', 'build_inputs', 'build_model', 'config_example', 'flow_layers', 'nmt_infer', 'nmt_np',
        'nmt_train', 'sequencing', 'sequencing_np', 'tools')  # fmt: skip
TOGETHER = 32  # sentences that a SavedModel translates at once

# Reads [path, batches of ids] and writes [ids, score] of each sentence.
PROGRAM = """
import json, sys
sys.modules.update(dict.fromkeys({barred}))
import numpy as np
{imports}
path, batches = json.load(sys.stdin)
translate, answers = {load}, []
for batch in batches:
    found = translate(src_ids={array}(np.array(batch, np.int32)))
    ids, lengths, scores = (np.array(found[name]).tolist() for name in ('ids', 'lengths', 'scores'))
    answers += [[row[:length], score] for row, length, score in zip(ids, lengths, scores)]
json.dump(answers, sys.stdout)
"""
SAVED_MODEL = PROGRAM.format(barred=OURS, imports='import tensorflow as tf', array='tf.constant',
                             load="tf.saved_model.load(path).signatures['ids']")  # fmt: skip
LITERT = PROGRAM.format(barred=(*OURS, 'tensorflow'), imports='from ai_edge_litert.interpreter import Interpreter',
                        array='np.array', load='Interpreter(path).get_signature_runner()')  # fmt: skip


def define(values):
    flags.DEFINE_string('model_dir', '', 'a trained model', flag_values=values)
    flags.DEFINE_string('test_src', '', 'text to translate', flag_values=values)
    flags.DEFINE_string('test_trg', '', 'its reference', flag_values=values)
    flags.DEFINE_integer('sentences', 0, 'first ones of the text; 0 for all of it', lower_bound=0, flag_values=values)
    flags.DEFINE_list('weights', ['float32', 'float16', 'int8'], 'LiteRT files to make; empty for none',
                      flag_values=values)  # fmt: skip
    flags.DEFINE_integer('max_src_length', 64, 'longest source of LiteRT files, in pieces', lower_bound=1,
                         flag_values=values)  # fmt: skip
    flags.DEFINE_enum('decode', None, MODES, 'decoding mode; argmax for flow models, which also have iw, and greedy '
                      'for others', flag_values=values)  # fmt: skip
    define_flow_flags({'flag_values': values})


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    cli.require(values, 'model_dir', 'test_src', 'test_trg')
    os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
    from sequencing.text import read_lines
    from tools import ckpt2npz, export_savedmodel, export_tflite

    unknown = set(values.weights) - set(export_tflite.WEIGHTS)
    if unknown:
        raise UserError(f'--weights {",".join(values.weights)}: some of {", ".join(export_tflite.WEIGHTS)}.')
    paths = values.test_src, values.test_trg
    lines, reference = (list(itertools.islice(read_lines(path), values.sentences or None)) for path in paths)
    if not lines or len(lines) != len(reference):
        raise UserError(f'{" and ".join(paths)} have {len(lines)} and {len(reference)} lines: give as many of each, '
                        'and one at least.')  # fmt: skip
    cli.quiet_tensorflow()
    import sequencing
    from sequencing.export import folder_size

    translator = sequencing.load(values.model_dir, precision='float32')
    mode = values.decode or ('argmax' if translator.is_flow else 'greedy')
    options = {'decode': mode, **{name: values[name].value for name in FLOW_FLAGS if values[name].value is not None}}
    asked = [f'--{name}={value}' for name, value in options.items()]
    best = [result.outputs[0] for result in translator.stream(lines, **options)]
    wanted = [(output.tokens, output.score, output.translation) for output in best]
    sources = [translator.src_vocab.encode(line).tolist() for line in lines]
    about = {**options, 'model': os.path.basename(values.model_dir.rstrip('/'))}

    with tempfile.TemporaryDirectory() as folder:

        def exported(tool, flag, name, *more):
            path = os.path.join(folder, name)
            with contextlib.redirect_stdout(sys.stderr):  # only results belong on standard output
                if tool.main([tool.__name__, f'--model_dir={values.model_dir}', f'--{flag}={path}', *more]):
                    raise Failure(f'{values.model_dir} could not be exported; the reason is above.')
            return path

        def tell(name, bytes_, found, **more):
            compare(name, found, wanted, reference, translator, mib=round(bytes_ / 2**20, 1), **more, **about)

        def elsewhere(program, path, batches):
            found = run_elsewhere(program, [path, batches], folder)
            return [(vocab.pieces(ids), score, vocab.decode(ids)) for ids, score in found]

        vocab, pad_id = translator.trg_vocab, translator.src_vocab.pad_id
        path = exported(export_savedmodel, 'output_dir', 'saved_model', *asked)
        batches = [sources[i : i + TOGETHER] for i in range(0, len(sources), TOGETHER)]
        batches = [padded(batch, max(map(len, batch)), pad_id) for batch in batches]
        tell('saved_model', folder_size(path), elsewhere(SAVED_MODEL, path, batches))

        room = values.max_src_length
        batches = [padded([source], room, pad_id) for source in sources]
        for weights in values.weights:
            path = exported(export_tflite, 'output_dir', weights, f'--weights={weights}', f'--max_src_length={room}',
                            *asked)  # fmt: skip
            path = os.path.join(path, 'model.tflite')
            tell(f'litert/{weights}', os.path.getsize(path), elsewhere(LITERT, path, batches),
                 cut=sum(len(source) > room for source in sources))  # fmt: skip

        for weights, more in ('float32', []), ('int8', ['--int8']):
            path = exported(ckpt2npz, 'output_file', f'{weights}.npz', *more)
            tell(f'npz/{weights}', os.path.getsize(path), by_numpy(path, asked, lines, folder))
    return 0


def compare(name, found, wanted, reference, translator, **about):
    """Prints the line of one export; `found` and `wanted` are lists of (pieces, score, text)."""
    from sequencing.scores import score_lines

    same = [mine[0] == own[0] for mine, own in zip(found, wanted)]
    off = [abs(mine[1] - own[1]) / max(1.0, abs(own[1])) for mine, own, equal in zip(found, wanted, same) if equal]
    language = translator.config.data.trg_lang
    (bleu, signature), (peer_bleu, _) = (
        score_lines([text for *_, text in side], [reference], language)[0] for side in (found, wanted)
    )
    share = sum(same) / len(same)
    report(f'export_agreement/{name}', share, (share, share), share, 1.0, 'share with the same pieces',
           sentences=len(same), same=sum(same), same_text=sum(mine[2] == own[2] for mine, own in zip(found, wanted)),
           largest_score_difference=max(off, default=None), bleu=round(bleu.score, 2),
           peer_bleu=round(peer_bleu.score, 2), signature=signature, peer_name='the model itself, float32',
           **about)  # fmt: skip


def padded(rows, length, pad_id):
    """Lists of `length` ids, cut or filled."""
    return [row[:length] + [pad_id] * (length - len(row)) for row in rows]


def run_elsewhere(program, asked, folder):
    """Runs a program in a fresh process, with JSON in and out, from a folder where our code is not found."""
    environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'}
    environment.pop('PYTHONPATH', None)
    return json.loads(output_of([sys.executable, '-c', program], environment, cwd=folder, input=json.dumps(asked)))


def by_numpy(path, asked, lines, folder):
    from sequencing.text import write_lines

    source = os.path.join(folder, 'source')
    write_lines(source, lines)
    command = [sys.executable, os.path.join(ROOT, 'nmt_np.py'), f'--model={path}', f'--test_src={source}', *asked,
               '--format=jsonl']  # fmt: skip
    found = map(json.loads, output_of(command, {**os.environ, 'PYTHONPATH': ROOT}).splitlines())
    return [(one['tokens'], one['score'], one['translation']) for one in found]


def output_of(command, environment, **options):
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, encoding='utf-8', **options)
    if done.returncode:
        raise Failure(f'a process that translates failed with exit code {done.returncode}; the reason is above.')
    return done.stdout


if __name__ == '__main__':
    sys.exit(main(sys.argv))
