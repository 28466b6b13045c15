"""Turns a Transformer into a model of CTranslate2, a C++ engine for serving it on CPUs and GPUs.

    python tools/export_ctranslate2.py --model_dir runs/transformer --output_dir runs/transformer.ct2

The folder that it writes is all that the engine needs:

    import ctranslate2, sentencepiece
    translator = ctranslate2.Translator('runs/transformer.ct2')
    source = sentencepiece.SentencePieceProcessor('runs/transformer.ct2/src.model')
    target = sentencepiece.SentencePieceProcessor('runs/transformer.ct2/trg.model')
    result = translator.translate_batch([source.encode('The old house.', out_type=str)], beam_size=5)[0]
    print(target.decode(result.hypotheses[0]))

Reference: https://opennmt.net/CTranslate2/
"""

import sys

import numpy as np

from sequencing import cli
from sequencing.errors import UserError

USAGE = """
Turns a trained Transformer into a model of the CTranslate2 engine.

  python tools/export_ctranslate2.py --model_dir runs/transformer --output_dir runs/transformer.ct2 --quantization int8
"""
QUANTIZATIONS = ('float32', 'float16', 'bfloat16', 'int8', 'int8_float16', 'int8_bfloat16', 'int16')


def define_flags(flags):
    from absl import flags as absl

    own = {'flag_values': flags}
    absl.DEFINE_string('model_dir', '', 'folder of a Transformer', **own)
    absl.DEFINE_string('output_dir', '', 'folder to write; it may not exist yet', **own)
    absl.DEFINE_string('checkpoint', 'best', "'best', 'last' or the path of a checkpoint", **own)
    absl.DEFINE_enum('quantization', 'float32', QUANTIZATIONS, 'how weights are stored', **own)


def main(argv=None):
    return cli.run(export, define_flags, argv, USAGE)


def export(flags):
    cli.require(flags, 'model_dir', 'output_dir')
    cli.quiet_tensorflow()
    from sequencing.export import folder_size, new_folder
    from sequencing.translator import load_model

    model, config, src_vocab, trg_vocab = load_model(flags.model_dir, flags.checkpoint, 'float32')
    check_engine_has_it(flags.model_dir, config)
    spec = make_spec(model, config)
    register_vocabularies(spec, src_vocab, trg_vocab)
    spec.validate()
    spec.optimize(quantization=flags.quantization)
    with new_folder(flags.output_dir) as made:
        spec.save(made)
        for vocab, name in ((src_vocab, 'src'), (trg_vocab, 'trg')):
            vocab.save(made, name)
    print(f'{flags.output_dir}: {folder_size(flags.output_dir) / 2**20:.1f} MiB, {flags.quantization}')
    return 0


def check_engine_has_it(folder, config):
    """Refuses, by name, what the engine does not have."""
    model = config.model
    if model.kind != 'seq2seq':
        raise UserError(f'{folder} is a {model.kind} model; CTranslate2 has Transformers only.')
    for side in ('encoder', 'decoder'):
        kind = getattr(model, side).kind
        if kind != 'transformer':
            raise UserError(f'{folder} has an {side} of kind {kind}; CTranslate2 has Transformers only.')
    encoder, decoder = model.encoder, model.decoder
    for field in ('heads', 'norm', 'activation', 'positions'):
        if getattr(encoder, field) != getattr(decoder, field):
            raise UserError(f'{folder} has {field} {getattr(encoder, field)!r} in the encoder and '
                            f'{getattr(decoder, field)!r} in the decoder; CTranslate2 wants one for both.')  # fmt: skip


# Weights ------------------------------------------------------------------------------------------------------------


def make_spec(model, config):
    """The weights of a `Seq2Seq` as a `ctranslate2.specs.TransformerSpec`."""
    try:
        from ctranslate2 import specs
    except ImportError:
        raise UserError("this needs the package ctranslate2: pip install -e '.[ctranslate2]'.") from None
    from ctranslate2.specs import common_spec

    part = config.model.decoder
    activation = {'relu': 'RELU', 'gelu': 'GELU', 'swiglu': 'SWISH'}[part.activation]
    common = dict(
        pre_norm=part.norm == 'pre',
        activation=getattr(common_spec.Activation, activation),
        ffn_glu=part.activation == 'swiglu',
        rotary_dim=0 if part.positions == 'rotary' else None,  # 0: all units of a head
        rotary_interleave=False,
    )
    encoder, decoder = model.encoder, model.decoder
    spec = specs.TransformerSpec(
        specs.TransformerEncoderSpec(len(encoder.layers), part.heads, **common),
        specs.TransformerDecoderSpec(len(decoder.layers), part.heads, **common),
    )
    spec.config.layer_norm_epsilon = encoder.layers[0].self_residual.norm.epsilon
    decode = config.decode
    outputs = decode.max_length or int(decode.length_ratio * decode.max_src_length) + 20
    longest = max(decode.max_src_length, outputs) + 1  # with EOS, or BOS
    set_input(spec.encoder, spec.encoder.embeddings[0], model.src_embedding, encoder.input, longest)
    set_input(spec.decoder, spec.decoder.embeddings, model.trg_embedding, decoder.input, longest)
    for stack, made in ((encoder, spec.encoder), (decoder, spec.decoder)):
        if stack.final_norm is not None:
            set_norm(made.layer_norm, stack.final_norm)
        for layer, made_layer in zip(stack.layers, made.layer):
            set_norm(made_layer.self_attention.layer_norm, layer.self_residual.norm)
            set_linear(made_layer.self_attention.linear[0], layer.self_attention.projection)
            set_linear(made_layer.self_attention.linear[1], layer.self_attention.output)
            set_feed_forward(made_layer.ffn, layer)
    set_source_attention(spec.decoder, decoder)
    if model.tie_output:
        spec.decoder.projection.weight = model.trg_embedding.table.numpy()
        spec.decoder.projection.bias = model.output_bias.numpy()
    else:
        set_linear(spec.decoder.projection, model.output)
    return spec


def set_input(side, made, embedding, token_input, longest):
    """The embedding, scaled and brought to the stack's size, and the table of positions."""
    table = embedding.table * token_input.scale
    if token_input.projection is not None:
        table = token_input.projection(table)
    made.weight = table.numpy()
    side.scale_embeddings = False
    if hasattr(side, 'position_encodings'):
        if token_input.positions is None:
            places = np.zeros([longest, token_input.size], np.float32)
        else:
            places = token_input.positions(0, longest, table.dtype).numpy()
        side.position_encodings.encodings = places


def set_norm(made, norm):
    made.gamma, made.beta = norm.scale.numpy(), norm.shift.numpy()


def set_linear(made, linear):
    made.weight, made.bias = np.ascontiguousarray(linear.kernel.numpy().T), linear.bias.numpy()


def set_feed_forward(made, layer):
    part = layer.feed_forward
    set_norm(made.layer_norm, layer.feed_residual.norm)
    set_linear(made.linear_1, part.outer)
    if part.activation is not None:
        set_linear(made.linear_0, part.inner)
        return
    kernels = np.split(part.inner.kernel.numpy().T, 2)  # gate and value, packed side by side
    biases = np.split(part.inner.bias.numpy(), 2)
    for half, kernel, bias in zip((made.linear_0, made.linear_0_noact), kernels, biases):
        half.weight, half.bias = np.ascontiguousarray(kernel), bias


def set_source_attention(made, decoder):
    """Keys and values of the source are one product for all layers here, and one a layer there."""
    projection = decoder.source.projection
    kernels = np.split(projection.kernel.numpy().T, len(decoder.layers))
    biases = np.split(projection.bias.numpy(), len(decoder.layers))
    for layer, made_layer, kernel, bias in zip(decoder.layers, made.layer, kernels, biases):
        attention = made_layer.attention
        set_norm(attention.layer_norm, layer.source_residual.norm)
        set_linear(attention.linear[0], layer.source_attention.query)
        attention.linear[1].weight, attention.linear[1].bias = np.ascontiguousarray(kernel), bias
        set_linear(attention.linear[2], layer.source_attention.output)


def register_vocabularies(spec, src_vocab, trg_vocab):
    spec.register_source_vocabulary(list(src_vocab.tokens))
    spec.register_target_vocabulary(list(trg_vocab.tokens))
    spec.config.unk_token = trg_vocab.tokens[trg_vocab.unk_id]
    spec.config.bos_token = trg_vocab.tokens[trg_vocab.bos_id]
    spec.config.eos_token = trg_vocab.tokens[trg_vocab.eos_id]
    spec.config.decoder_start_token = spec.config.bos_token
    spec.config.add_source_eos = True


if __name__ == '__main__':
    sys.exit(main(sys.argv))
