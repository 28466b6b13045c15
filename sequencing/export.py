"""What exported models do in their graph: end sources, limit outputs, decode in tensors of one size, handle text.

Everything here is made of TensorFlow operations alone, so that a file that holds the graph needs none of our code.
"""

import contextlib
import math
import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from flow_layers.one_trace import in_one_graph
from sequencing.errors import UserError
from sequencing.feedback import logsumexp
from sequencing.model_folder import checkpoint_path
from sequencing.multi_head_attention import penalty_where
from sequencing.transformer import TransformerDecoder

MOST_BYTES = 2**31 - 2**27  # that a protocol buffer or a flatbuffer holds, with room for the graph
WHITE_SPACE = r'[\t-\r\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]'


def check_size(folders, checkpoint):
    """Refuses models whose weights together no single file of either format holds.

    Checkpoints are asked, because a loaded model keeps its weights in forms of several kinds.
    """
    size = 0
    for folder in folders:
        shapes = tf.train.load_checkpoint(checkpoint_path(folder, checkpoint)).get_variable_to_shape_map()
        size += sum(4 * math.prod(shape) for key, shape in shapes.items() if is_weight(key))
    if size > MOST_BYTES:
        raise UserError(f'{",".join(folders)}: {size / 2**30:.1f} GiB of weights; an exported file holds '
                        f'{MOST_BYTES / 2**30:.1f} GiB at most.')  # fmt: skip


def is_weight(key):
    """Whether this key of a checkpoint holds a weight of the model, and not the optimizer's slot for one."""
    return key.startswith('model/') and '.OPTIMIZER_SLOT' not in key


@contextlib.contextmanager
def new_folder(path):
    """A folder to write that takes its name only when the `with` block ends well.

    Raises:
      UserError: it is there already, or cannot be written.
    """
    if os.path.exists(path):
        raise UserError(f'--output_dir {path} is there already; name a new folder.')
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(path))) as scratch:
            made = os.path.join(scratch, 'model')
            os.makedirs(made)
            yield made
            os.rename(made, path)
    except OSError as error:
        raise UserError(f'--output_dir {path}: cannot be written ({error}).') from error


def folder_size(path):
    """Bytes of all files in a folder and below."""
    return sum(os.path.getsize(os.path.join(top, name)) for top, _, names in os.walk(path) for name in names)


def with_constants(function):
    """A `tf.function` with one signature, whose weights become constants of its graph.

    oneDNN then arranges each weight once as products with it read it, and not in every call.
    """
    with in_one_graph():  # functions, once specialised by Grappler, cannot be saved
        traced = function.get_concrete_function()
    constant = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    names = sorted(traced.structured_outputs)
    return tf.function(
        lambda *inputs: dict(zip(names, constant(*inputs))), input_signature=function.input_signature, autograph=False
    )


# Ids ----------------------------------------------------------------------------------------------------------------


def ended(src_ids, pad_id, eos_id):
    """Sources `[B, S]` int32, PAD after their end, with EOS: ids `[B, S + 1]` and their mask."""
    longer = tf.pad(src_ids, [[0, 0], [0, 1]], constant_values=pad_id)
    end = tf.reduce_sum(tf.cast(src_ids != pad_id, tf.int32), axis=1, keepdims=True)
    places = tf.range(tf.shape(longer)[1])[tf.newaxis]
    return tf.where(places == end, eos_id, longer), places <= end


def output_limits(src_mask, options, longest_source):
    """The longest outputs `[B]` int32, EOS not counted, as `Translator` has them; 0 where the source is empty.

    Args:
      src_mask: `[B, S + 1]` bool, EOS counted; options: `DecodeOptions`; longest_source: int, at least S.
    """
    limits = options.limits(np.arange(longest_source + 1))  # a table: LiteRT has no float64 to compute them with
    limits[0] = 0
    return tf.gather(limits, tf.reduce_sum(tf.cast(src_mask, tf.int32), axis=1) - 1)


# Decoding in tensors of one size ------------------------------------------------------------------------------------


class FixedOutput(NamedTuple):
    """What decoding in tensors of one size found."""

    ids: tf.Tensor  # [B, T] int32, EOS not included, PAD after the end
    lengths: tf.Tensor  # [B] int32, EOS not counted
    scores: tf.Tensor  # [B] float32, nats, EOS included


class GreedyState(NamedTuple):
    """Of greedy search in tensors of one size."""

    token: tf.Tensor  # [B, 1] int32, the last one chosen
    decoder: Any  # the decoder's state
    ids: tf.Tensor  # [B, T] int32
    lengths: tf.Tensor  # [B] int32
    scores: tf.Tensor  # [B] float32
    going_on: tf.Tensor  # [B] bool


def fixed_greedy(model, src_ids, src_mask, limits, longest, pad_id):
    """Greedy search of a `Seq2Seq`: as `search` does it, but for what grows from step to step.

    Args:
      src_ids, src_mask: `[B, S]`, of sizes that are known; limits: `[B]` int32, at most `longest`; longest: int.
    Returns:
      `FixedOutput`.
    """
    encoded = model.encode(src_ids, src_mask)
    memory, batch = model.decoder.memory(encoded), src_ids.shape[0]
    places = tf.range(longest)[tf.newaxis]
    if isinstance(model.decoder, TransformerDecoder):
        state, step = fixed_caches(model, batch, longest), sliding_step
    else:
        state, step = model.decoder.initial_state(encoded, 1), plain_step

    def body(time, old):
        logits, decoder = step(model, old.token, old.decoder, memory, time)
        chosen = tf.where(time >= limits, model.eos_id, tf.argmax(logits, axis=-1, output_type=tf.int32))
        log_probs = tf.gather(logits, chosen, batch_dims=1) - logsumexp(logits)
        written = tf.logical_and(old.going_on, chosen != model.eos_id)
        here = tf.logical_and(places == time, written[:, tf.newaxis])
        return time + 1, GreedyState(
            token=chosen[:, tf.newaxis],
            decoder=decoder,
            ids=tf.where(here, chosen[:, tf.newaxis], old.ids),
            lengths=old.lengths + tf.cast(written, tf.int32),
            scores=old.scores + tf.where(old.going_on, log_probs, 0.0),
            going_on=written,
        )

    first = GreedyState(
        token=tf.fill([batch, 1], model.bos_id),
        decoder=state,
        ids=tf.fill([batch, longest], pad_id),
        lengths=tf.zeros([batch], tf.int32),
        scores=tf.zeros([batch]),
        going_on=tf.fill([batch], True),
    )
    _, last = tf.while_loop(lambda time, state: tf.reduce_any(state.going_on), body, (tf.constant(0), first))
    return FixedOutput(last.ids, last.lengths, last.scores)


def plain_step(model, token, state, memory, time):
    """One step of a decoder whose state keeps its size: logits `[B, N]` and the new state."""
    logits, state, _ = model.step(token, state, memory, time)
    return logits[:, 0], state


def fixed_caches(model, batch, longest):
    """Room for the keys and values of `longest` steps: for each layer two `[B, H, longest, d]`."""
    decoder = model.decoder
    room = tf.zeros([batch, decoder.heads, longest, decoder.size // decoder.heads], model.dtype)
    return [(room, room) for _ in decoder.layers]


def sliding_step(model, token, caches, memory, time):
    """As `plain_step`, for a Transformer: caches slide, so that the last `time` places of each are those written."""
    decoder = model.decoder
    placed = decoder.input(model.trg_embedding(token, model.dtype), time, same_place=True)
    longest = caches[0][0].shape[2]
    penalty = penalty_where(tf.range(longest + 1) >= longest - time, placed.dtype)[tf.newaxis, tf.newaxis, tf.newaxis]
    x, new = tf.reshape(placed, [-1, decoder.size]), []
    for layer, (keys, values), cache in zip(decoder.layers, memory.layers, caches):
        turn = decoder.turn(time, 1, placed)
        x, _, grown = layer.step(x, keys, values, 1, cache, penalty, memory.penalty, turn)
        new.append(tuple(part[:, :, 1:] for part in grown))
    return model.logits(decoder.finish(x, placed))[:, 0], new


# Text ---------------------------------------------------------------------------------------------------------------


class GraphVocab(tf.Module):
    """A token list's `encode_lines` and `decode` as TensorFlow operations.

    Args:
      vocab: `Vocab` of kind 'list'. SentencePiece models need operations that TensorFlow does not have.
    """

    def __init__(self, vocab, name='vocab'):
        super().__init__(name=name)
        self.vocab = vocab
        tokens, ids = zip(*vocab.ids_of_text().items())
        initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(tokens), tf.constant(ids, tf.int32))
        self.table = tf.lookup.StaticHashTable(initializer, vocab.unk_id)

    def encode(self, lines):
        """Lines `[B]` string to ids `[B, S]` int32, PAD after the end."""
        lines = tf.strings.unicode_transcode(lines, 'UTF-8', 'UTF-8')  # what is not UTF-8 becomes U+FFFD
        if self.vocab.delimiter:
            tokens = tf.strings.split(tf.strings.regex_replace(lines, WHITE_SPACE, ' '))
        else:
            bare = tf.strings.regex_replace(lines, f'^{WHITE_SPACE}+|{WHITE_SPACE}+$', '')
            tokens = tf.strings.unicode_split(bare, 'UTF-8')
        return tokens.with_values(self.table.lookup(tokens.values)).to_tensor(self.vocab.pad_id)

    def decode(self, ids, lengths, keep_pad=False):
        """Ids `[B, T]` and lengths `[B]` to lines `[B]` string; `keep_pad` as in `Vocab.decode`."""
        vocab = self.vocab
        silent = [i for i in (None if keep_pad else vocab.pad_id, vocab.bos_id, vocab.eos_id) if i is not None]
        said = tf.reduce_all(ids[:, :, tf.newaxis] != tf.constant(silent), axis=2)
        shown = tf.logical_and(said, tf.sequence_mask(lengths, tf.shape(ids)[1]))
        tokens = tf.ragged.boolean_mask(tf.gather(tf.constant(vocab.tokens), ids), shown)
        text = tf.strings.reduce_join(tokens, axis=1, separator='' if vocab.subword == 'spm' else vocab.delimiter)
        if vocab.subword == 'spm':
            text = tf.strings.regex_replace(text, '\u2581', ' ')
            return tf.strings.regex_replace(text, f'^{WHITE_SPACE}+|{WHITE_SPACE}+$', '')
        return tf.strings.regex_replace(text, '@@ |@@$', '') if vocab.subword == 'bpe' else text
