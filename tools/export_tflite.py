"""Writes a trained model as a LiteRT (TensorFlow Lite) file, for phones and other small machines."""

import os
import sys

import numpy as np

from sequencing import cli
from sequencing.errors import UserError
from tools.export_savedmodel import FLOW_FLAGS, define_flow_flags, write_vocabularies

USAGE = """
Writes a trained model for LiteRT, the interpreter of phones: greedy search, or of flow models argmax or iw, of one
sentence at a time.

  python tools/export_tflite.py --model_dir runs/demo --output_dir runs/demo.lite
  python tools/export_tflite.py --model_dir runs/demo --output_dir runs/demo8.lite --weights int8
      weights as eight-bit numbers, at about a quarter of the size
  python tools/export_tflite.py --model_dir runs/demo_flow --output_dir runs/iw.lite --decode iw --tau 0.5 --ntr 5

The folder holds model.tflite, the vocabularies and export.json, which names special ids and lengths. The model takes
src_ids [1, max_src_length] int32, PAD (0) after the end and no EOS, and gives ids [1, max_length] int32 (PAD after the
end, no EOS), lengths [1] and scores [1] in nats. It has builtin operations only, so the interpreter is all that it
needs:

  import numpy as np, sentencepiece
  from ai_edge_litert.interpreter import Interpreter
  translate = Interpreter('runs/demo.lite/model.tflite').get_signature_runner()
  source = sentencepiece.SentencePieceProcessor('runs/demo.lite/src.model').encode('The old house.')
  found = translate(src_ids=np.pad(source, [0, 64 - len(source)])[np.newaxis].astype(np.int32))
  target = sentencepiece.SentencePieceProcessor('runs/demo.lite/trg.model')
  print(target.decode(found['ids'][0][: found['lengths'][0]].tolist()))
"""
WEIGHTS = ('float32', 'float16', 'int8')
MODES = ('greedy', 'argmax', 'iw')


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('model_dir', '', 'model folder', **own)
    absl.DEFINE_string('output_dir', '', 'folder to write; it may not exist yet', **own)
    absl.DEFINE_string('checkpoint', 'best', "'best', 'last' or the path of a checkpoint", **own)
    absl.DEFINE_integer('max_src_length', 64, 'longest source in tokens, EOS not counted', lower_bound=1, **own)
    absl.DEFINE_integer('max_length', None, 'longest output in tokens, by default decode.max_length of the model; 0 '
                        'for decode.length_ratio x source + 20', lower_bound=0, **own)  # fmt: skip
    absl.DEFINE_enum('weights', 'float32', WEIGHTS, 'how weights are stored', **own)
    absl.DEFINE_enum('decode', None, MODES, 'decoding mode; argmax for flow models, which also have iw, and greedy for '
                     'others', **own)  # fmt: skip
    define_flow_flags(own)


def main(argv=None):
    return cli.run(export, define_flags, argv, USAGE)


def export(flags):
    cli.require(flags, 'model_dir', 'output_dir')
    if not os.path.isdir(flags.model_dir) and ',' in flags.model_dir:
        raise UserError('--model_dir names several folders; a LiteRT file holds one model. Average their checkpoints '
                        '(tools/average_checkpoints.py), or export them as a SavedModel.')  # fmt: skip
    cli.quiet_tensorflow()
    from sequencing.decode_options import options_for
    from sequencing.export import check_size, folder_size, new_folder
    from sequencing.translator import load

    translator = load(flags.model_dir, flags.checkpoint, 'float32')
    check_interpreter_has_it(flags.model_dir, translator.config.model)
    check_size([flags.model_dir], flags.checkpoint)
    mode = flags.decode or ('argmax' if translator.is_flow else 'greedy')
    asked = {name: flags[name].value for name in ('max_length', *FLOW_FLAGS)}
    options = options_for(translator.model, translator.config, decode=mode, **asked)
    if flags.max_src_length > options.max_src_length:
        raise UserError(f'--max_src_length {flags.max_src_length} is too much: this model reads '
                        f'{options.max_src_length} tokens of a source at most (decode.max_src_length).')  # fmt: skip
    longest = output_size(translator, flags.max_src_length, options)
    with new_folder(flags.output_dir) as made:
        function = build(translator, flags.max_src_length, longest, options)
        content = convert(translator.model, function, flags.weights)
        with open(os.path.join(made, 'model.tflite'), 'wb') as file:
            file.write(content)
        sizes = {'max_src_length': flags.max_src_length, 'max_length': longest}
        write_vocabularies(translator, made, {'decode': mode, **sizes, 'weights': flags.weights})
    print(f'{flags.output_dir}: {folder_size(flags.output_dir) / 2**20:.1f} MiB, mode {mode}, sources of '
          f'{flags.max_src_length} tokens, outputs of {longest}')  # fmt: skip
    return 0


def check_interpreter_has_it(folder, model):
    """Refuses, by name, what the interpreter does not have."""
    if model.kind == 'flowseq' and getattr(model.prior, 'transform', '') == 'nlsq':
        raise UserError(f'{folder} has couplings of transform nlsq, which solve their equation in float64; LiteRT has '
                        'float32 only. Export it as a SavedModel (tools/export_savedmodel.py).')  # fmt: skip
    if model.encoder.kind == 'ava':
        raise UserError(f'{folder} has an encoder of kind ava, which searches each sentence for its words; LiteRT '
                        'cannot. Export it as a SavedModel (tools/export_savedmodel.py).')  # fmt: skip


def output_size(translator, max_src_length, options):
    """Room for the output in tokens, that of the longest source."""
    longest = int(options.limits(np.array([max_src_length]))[0])
    if not translator.is_flow:
        return longest
    predictor = translator.model.length_predictor
    told = max_src_length + 1 + predictor.reach  # of a source with EOS
    return -(-min(longest + 1, told) // predictor.unit) * predictor.unit


def build(translator, max_src_length, longest, options):
    """The `tf.function` that is exported."""
    import tensorflow as tf

    from sequencing.export import ended, fixed_greedy, output_limits

    model, src_vocab, trg_vocab = translator.model, translator.src_vocab, translator.trg_vocab

    def translate(src_ids):
        ids, mask = ended(src_ids, src_vocab.pad_id, src_vocab.eos_id)
        limits = output_limits(mask, options, max_src_length)
        if translator.is_flow:
            found = model.translate(ids, mask, limits, options, room=longest)
            return {'ids': found.ids[:, 0], 'lengths': found.lengths[:, 0], 'scores': found.scores[:, 0]}
        return fixed_greedy(model, ids, mask, limits, longest, trg_vocab.pad_id)._asdict()

    signature = [tf.TensorSpec([1, max_src_length], tf.int32, 'src_ids')]
    return tf.function(translate, input_signature=signature, autograph=False)


def convert(model, function, weights):
    """The bytes of a LiteRT file."""
    import tensorflow as tf

    from flow_layers.one_trace import in_one_graph

    module = tf.Module()
    module.model, module.translate = model, function
    with in_one_graph():
        concrete = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if weights != 'float32':
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if weights == 'float16':
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


if __name__ == '__main__':
    sys.exit(main(sys.argv))
