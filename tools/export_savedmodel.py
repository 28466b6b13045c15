"""Writes a trained model as a TensorFlow SavedModel, which runs wherever TensorFlow does, without this package."""

import json
import os
import sys

from sequencing import cli
from sequencing.errors import UserError

USAGE = """
Writes a trained model as a SavedModel, for TensorFlow Serving or any program with TensorFlow in it.

  python tools/export_savedmodel.py --model_dir runs/demo --output_dir runs/demo.saved
  python tools/export_savedmodel.py --model_dir runs/demo_flow --output_dir runs/iw.saved --decode iw --tau 0.5 --ntr 5

Signature `ids` takes src_ids [sentences, pieces] int32, PAD (0) after the end and no EOS, and gives ids [sentences,
pieces] int32 (PAD after the end, no EOS), lengths, scores in nats and truncated. Where both vocabularies are lists of
words or characters there is also `text`: lines [sentences] string to translations [sentences] string, and scores.
SentencePiece needs operations that TensorFlow does not have: cut lines with the package sentencepiece and the models
src.model and trg.model, which lie beside the SavedModel in assets.extra/ as do token lists. What flags do not say is as
nmt_infer.py has it for that model folder, but for the precision, which is float32.

Where TensorFlow computes by oneDNN, it keeps a weight that is a constant in the order that products read: with
--constants, a flow model translates single sentences faster, for more memory and a longer first call (docs/exports.md).

  import sentencepiece, tensorflow as tf
  translate = tf.saved_model.load('runs/demo.saved').signatures['ids']
  source = sentencepiece.SentencePieceProcessor('runs/demo.saved/assets.extra/src.model').encode('The old house.')
  found = translate(src_ids=tf.constant([source]))
  target = sentencepiece.SentencePieceProcessor('runs/demo.saved/assets.extra/trg.model')
  print(target.decode(found['ids'][0, : found['lengths'][0]].numpy().tolist()))
"""
REFUSED = {
    'sample': 'draws with a seed, which the signature does not take',
    'npd': 'ranks candidates by a second model, outside the graph',
    'mbr': 'ranks candidates by comparing their text, outside the graph',
}
FLOW_FLAGS = ('tau', 'nlen', 'ntr', 'iw_k', 'seed')
ASKED = ('decode', 'beam_size', 'length_penalty', 'max_length', *FLOW_FLAGS)


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('model_dir', '', 'model folder; several, parted by commas, are an ensemble', **own)
    absl.DEFINE_string('output_dir', '', 'folder to write; it may not exist yet', **own)
    absl.DEFINE_string('checkpoint', 'best', "'best', 'last' or the path of a checkpoint", **own)
    absl.DEFINE_enum('precision', 'float32', ['float32', 'mixed_bfloat16'], 'of the arithmetic', **own)
    absl.DEFINE_bool('constants', False, 'weights as constants of the graph (flow models): see above', **own)
    absl.DEFINE_string('decode', None, "decoding mode; the model's default otherwise", **own)
    absl.DEFINE_integer('beam_size', None, 'hypotheses that beam search walks', **own)
    absl.DEFINE_float('length_penalty', None, 'exponent of the length penalty of beam search', **own)
    absl.DEFINE_integer('max_length', None, 'longest output in tokens; 0 for decode.length_ratio x source + 20',
                         **own)  # fmt: skip
    define_flow_flags(own)


def define_flow_flags(own):
    """Flags of what flow models decode by; `own` says where flags are defined."""
    from absl import flags as absl

    absl.DEFINE_float('tau', None, 'temperature of the latent noise (flow models)', **own)
    absl.DEFINE_integer('nlen', None, 'lengths to try (iw of flow models)', **own)
    absl.DEFINE_integer('ntr', None, 'latent samples a length (flow models)', **own)
    absl.DEFINE_integer('iw_k', None, 'posterior samples of importance-weighted decoding (flow models)', **own)
    absl.DEFINE_integer('seed', None, 'seed of the noise of flow models, the same in every call', **own)


def main(argv=None):
    return cli.run(export, define_flags, argv, USAGE)


def export(flags):
    cli.require(flags, 'model_dir', 'output_dir')
    cli.quiet_tensorflow()
    from sequencing.decode_options import options_for
    from sequencing.export import check_size, folder_size, new_folder
    from sequencing.translator import folders_of, load

    translator = load(flags.model_dir, flags.checkpoint, flags.precision)
    if flags.constants and not translator.is_flow:
        raise UserError('--constants is for flow models: what others decode in is a loop, which reads weights as its '
                        'arguments.')  # fmt: skip
    mode = flags.decode or translator.config.decode.mode
    if mode in REFUSED:
        raise UserError(f'--decode {mode} {REFUSED[mode]}; a SavedModel has beam and greedy, or of flow models argmax '
                        'and iw.')  # fmt: skip
    options = options_for(translator.model, translator.config, **{name: flags[name].value for name in ASKED})
    check_size(folders_of(flags.model_dir), flags.checkpoint)
    with new_folder(flags.output_dir) as made:
        names = save(translator, options, made, flags.constants)
        extra = os.path.join(made, 'assets.extra')
        os.makedirs(extra, exist_ok=True)
        write_vocabularies(translator, extra, {'decode': options.decode, 'max_src_length': options.max_src_length})
    print(f'{flags.output_dir}: {folder_size(flags.output_dir) / 2**20:.1f} MiB, signatures {", ".join(names)}, '
          f'mode {options.decode}')  # fmt: skip
    return 0


def save(translator, options, folder, constants=False):
    """Writes a `Translator`'s model as it decodes under `DecodeOptions`; returns the names of the signatures."""
    import tensorflow as tf

    exported, signatures = build(translator, options, constants)
    tf.saved_model.save(exported, folder, signatures, tf.saved_model.SaveOptions(experimental_custom_gradients=False))
    return list(signatures)


def write_vocabularies(translator, folder, notes):
    """Writes the vocabularies and `export.json`, which holds special ids and `notes`."""
    vocabs = {'src': translator.src_vocab, 'trg': translator.trg_vocab}
    for name, vocab in vocabs.items():
        vocab.save(folder, name)
        notes = {**notes, name: {'pad_id': vocab.pad_id, 'unk_id': vocab.unk_id, 'eos_id': vocab.eos_id}}
    with open(os.path.join(folder, 'export.json'), 'w', encoding='utf-8') as file:
        json.dump(notes, file, indent=2)
        file.write('\n')


def build(translator, options, constants=False):
    """A module and its signatures, a dict; `constants` as the flag."""
    import tensorflow as tf

    from sequencing.export import GraphVocab, ended, output_limits, with_constants

    model, src_vocab, trg_vocab = translator.model, translator.src_vocab, translator.trg_vocab

    def translate(src_ids):
        ids, mask = ended(src_ids[:, : options.max_src_length], src_vocab.pad_id, src_vocab.eos_id)
        limits = output_limits(mask, options, options.max_src_length)
        found = model.translate(ids, mask, limits, options)
        # A source without a token has an empty translation, whatever the model says.
        lengths = tf.where(limits > 0, found.lengths[:, 0], 0)
        inside = tf.sequence_mask(lengths, tf.shape(found.ids)[2])
        return {
            'ids': tf.where(inside, found.ids[:, 0], trg_vocab.pad_id),
            'lengths': lengths,
            'scores': found.scores[:, 0],
            'truncated': tf.logical_and(limits > 0, found.truncated[:, 0]),
        }

    def function(body, **spec):
        return tf.function(body, input_signature=list(spec.values()), autograph=False)

    exported = tf.Module(name='exported')
    exported.ids = function(translate, src_ids=tf.TensorSpec([None, None], tf.int32, 'src_ids'))
    if constants:
        exported.ids = with_constants(exported.ids)
    # What the graph reads, and not the whole model: the rest is in it as constants and would be stored twice.
    exported.weights = list(exported.ids.get_concrete_function().variables)
    signatures = {'ids': exported.ids}
    if src_vocab.kind == trg_vocab.kind == 'list':
        exported.src_vocab, exported.trg_vocab = GraphVocab(src_vocab), GraphVocab(trg_vocab)

        def text(lines):
            found = exported.ids(exported.src_vocab.encode(lines))
            translations = exported.trg_vocab.decode(found['ids'], found['lengths'], keep_pad=translator.is_flow)
            return {'translations': translations, 'scores': found['scores']}

        exported.text = function(text, lines=tf.TensorSpec([None], tf.string, 'lines'))
        signatures['text'] = exported.text
    signatures['serving_default'] = signatures.get('text', exported.ids)
    return exported, signatures


if __name__ == '__main__':
    sys.exit(main(sys.argv))
