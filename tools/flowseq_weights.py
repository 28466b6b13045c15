"""Which array of a FlowSeq checkpoint (PyTorch) belongs to which variable of ours.

PyTorch keeps a linear layer's weight as `[out, in]`, ours are `[in, out]`; it packs query, key and value, where we pack
what is multiplied by the same input; it has two bias vectors a recurrent layer. Everything else is a matter of names.
"""

import numpy as np

from flow_layers import ActNorm, Coupling, MultiHeadLinear
from flow_layers.conditioners import ConvConditioner, RecurrentConditioner
from sequencing.errors import UserError
from sequencing.flowseq_decoders import TransformerDecoder
from sequencing.flowseq_encoders import TransformerEncoder
from sequencing.flowseq_posteriors import TransformerPosterior
from sequencing.length_predictors import SoftmaxLength

IGNORED = ('_float_tensor', 'weight_inv')  # uninitialised memory; an inverse that we compute


class Weights:
    """The arrays of a state dict, by name; it knows which have been used.

    Args:
      arrays: dict of name to array.
      source: where they are from, for messages.
    """

    def __init__(self, arrays, source='checkpoint'):
        self.arrays, self.source, self.used = arrays, source, set()

    def __getitem__(self, name):
        if name not in self.arrays:
            raise UserError(f'{self.source} has no weights called {name}, which its configuration asks for.')
        self.used.add(name)
        return self.arrays[name]

    def __contains__(self, name):
        return name in self.arrays

    def put(self, variable, array, name):
        """Assigns an array; `name` is for the message when shapes differ."""
        array = np.asarray(array, np.float32)
        if tuple(variable.shape) != array.shape:
            raise UserError(f'{self.source}: {name} has shape {array.shape} where the configuration asks for '
                            f'{tuple(variable.shape)}.')  # fmt: skip
        variable.assign(array)

    def check_all_used(self):
        """Refuses a checkpoint with weights that went nowhere."""
        left = [name for name in self.arrays if name not in self.used and not name.endswith(IGNORED)]
        if left:
            raise UserError(f'{self.source} has weights that its configuration has no place for: {", ".join(left[:5])}'
                            f'{" and more" if len(left) > 5 else ""}.')  # fmt: skip


def load_flowseq(model, weights):
    """Fills a `FlowSeq` with the `core` state dict of a checkpoint.

    Raises:
      UserError: an array is missing, left over, or has another shape.
    """
    load_embeddings(model, weights)
    if model.output.embedding is not None:
        if not np.array_equal(weights['decoder.readout.weight'], weights['posterior.tgt_embed.weight']):
            raise UserError(f'{weights.source}: decoder.readout.weight is not tied to posterior.tgt_embed.weight, '
                            'though its configuration says so.')  # fmt: skip
    else:
        weights.put(model.output.kernel, weights['decoder.readout.weight'].T, 'decoder.readout.weight')
    weights.put(model.output.bias, weights['decoder.readout.bias'], 'decoder.readout.bias')
    load_encoder(model.encoder, weights, 'encoder.core.')
    load_posterior(model.posterior, weights, 'posterior.core.')
    load_decoder(model.decoder, weights, 'decoder.')
    load_length_predictor(model.length_predictor, weights, 'prior._length_predictor.')
    load_flow(model.prior, weights, 'prior.flow.')
    weights.check_all_used()


def load_embeddings(model, weights):
    """One table or two, each of which a checkpoint holds under several names."""
    tables = [
        (model.src_embedding, ['encoder.embed.weight', 'encoder.core.embed.weight']),
        (model.trg_embedding, ['posterior.tgt_embed.weight', 'posterior.core.tgt_embed.weight']),
    ]
    if model.trg_embedding is model.src_embedding:
        tables = [(model.src_embedding, tables[0][1] + tables[1][1])]
    for embedding, names in tables:
        table = weights[names[0]]
        for name in names[1:]:
            if not np.array_equal(weights[name], table):
                raise UserError(f'{weights.source}: {name} is not the same as {names[0]}, though by its configuration '
                                'they are one table.')  # fmt: skip
        weights.put(embedding.table, table, names[0])


def load_encoder(encoder, weights, prefix):
    if isinstance(encoder, TransformerEncoder):
        for i, layer in enumerate(encoder.layers):
            load_self_attention(layer.self_attention, weights, f'{prefix}layers.{i}.slf_attn.')
            load_feed_forward(layer.feed_forward, weights, f'{prefix}layers.{i}.pos_ffn.')
    else:
        load_recurrent(encoder.recurrent, weights, f'{prefix}rnn.')
        load_linear(encoder.projection, weights, f'{prefix}enc_proj.0.')


def load_posterior(posterior, weights, prefix):
    if isinstance(posterior, TransformerPosterior):
        for i, layer in enumerate(posterior.layers):
            load_decoder_layer(layer, weights, f'{prefix}layers.{i}.')
    else:
        load_recurrent(posterior.recurrent, weights, f'{prefix}rnn.')
        if posterior.attention is not None:
            load_global_attention(posterior.attention, weights, f'{prefix}attn.')
        load_linear(posterior.projection, weights, f'{prefix}ctx_proj.0.')
    load_weight_norm(posterior.mean, weights, f'{prefix}mu.linear.')
    load_weight_norm(posterior.log_variance, weights, f'{prefix}logvar.linear.')


def load_decoder(decoder, weights, prefix):
    if isinstance(decoder, TransformerDecoder):
        load_source_attention(decoder.position_attention, weights, f'{prefix}pos_attn.')
        for i, layer in enumerate(decoder.layers):
            load_decoder_layer(layer, weights, f'{prefix}layers.{i}.')
    else:
        if decoder.recurrent is not None:
            load_recurrent(decoder.recurrent, weights, f'{prefix}rnn.')
        load_global_attention(decoder.attention, weights, f'{prefix}attn.')
        load_linear(decoder.projection, weights, f'{prefix}ctx_proj.0.')


def load_length_predictor(predictor, weights, prefix):
    for i, layer in enumerate(predictor.hidden):
        load_linear(layer, weights, f'{prefix}ctx_proj.{2 * i}.')
    output = 'diff.' if isinstance(predictor, SoftmaxLength) else _logistic_output(weights, prefix)
    load_linear(predictor.output, weights, prefix + output)


def _logistic_output(weights, prefix):
    """The name of the logistic predictor's last layer: whatever lies beside ctx_proj."""
    names = {name[len(prefix) :] for name in weights.arrays if name.startswith(prefix)}
    found = sorted(name.removesuffix('weight') for name in names if name.endswith('weight') and 'ctx_proj' not in name)
    return found[0] if found else 'diff.'


def load_flow(flow, weights, prefix):
    """The levels of a flow; `blocks.I` with `pos_attn`, `steps.J` and the ending coupling `prior`."""
    for i, level in enumerate(flow.layers):
        level_prefix, layers = f'{prefix}blocks.{i}.', list(level.layers)
        if f'{level_prefix}pos_attn.actnorm.bias' in weights:
            names = ('actnorm', 'coupling_up', 'coupling_down')
            load_layers(layers.pop(0).layers, weights, [f'{level_prefix}pos_attn.{name}.' for name in names])
        if layers and isinstance(layers[-1], Coupling):
            load_coupling(layers.pop(), weights, f'{level_prefix}prior.')
        for j, step in enumerate(layers):
            load_step(step, weights, f'{level_prefix}steps.{j}.')


def load_step(step, weights, prefix):
    for layer, name in zip(step.layers, ('actnorm1', 'linear1', 'unit1', 'actnorm2', 'linear2', 'unit2')):
        if name.startswith('unit'):
            names = ('coupling1_up', 'coupling1_down', 'actnorm1', 'coupling2_up', 'coupling2_down',
                     'actnorm2', 'coupling3_up', 'coupling3_down')  # fmt: skip
            load_layers(layer.layers, weights, [f'{prefix}{name}.{inner}.' for inner in names])
        else:
            load_layers([layer], weights, [f'{prefix}{name}.'])


def load_layers(layers, weights, prefixes):
    """ActNorms, multi-head linears and couplings, each from its prefix."""
    for layer, prefix in zip(layers, prefixes):
        if isinstance(layer, ActNorm):
            weights.put(layer.log_scale, weights[prefix + 'log_scale'], prefix + 'log_scale')
            weights.put(layer.shift, weights[prefix + 'bias'], prefix + 'bias')
        elif isinstance(layer, MultiHeadLinear):
            weights.put(layer.matrix, weights[prefix + 'weight'], prefix + 'weight')
        else:
            load_coupling(layer, weights, prefix)


def load_coupling(coupling, weights, prefix):
    net, prefix = coupling.conditioner, f'{prefix}net.'
    if isinstance(net, RecurrentConditioner):
        load_recurrent(net.recurrent, weights, f'{prefix}rnn.')
        load_global_attention(net.attention, weights, f'{prefix}attn.')
    elif isinstance(net, ConvConditioner):
        _check_width(net, weights, f'{prefix}linear.linear')
        load_convolution(net.first, weights, f'{prefix}conv1.conv.')
        load_convolution(net.second, weights, f'{prefix}conv2.conv.')
        load_global_attention(net.attention, weights, f'{prefix}attn.')
    else:
        if net.source_linear is not None:
            weights.put(net.source_linear.kernel, weights[prefix + 'src_proj.weight'].T, prefix + 'src_proj.weight')
        if net.position_attention is not None:
            load_source_attention(net.position_attention, weights, f'{prefix}pos_attn.')
        load_decoder_layer(net.layer, weights, f'{prefix}transformer.')
    load_weight_norm(net.linear, weights, f'{prefix}linear.linear.')


def _check_width(net, weights, name):
    """Refuses the published last layer of a convolutional coupling where it has not the width of what it is given.

    The published code makes it for 2 * hidden units; it runs only where that is right by chance.
    """
    hidden, given = net.second.bias.shape[0], net.linear.direction.shape[0]
    width = weights[f'{name}.weight_v'].shape[1]
    if width != given and width == 2 * hidden:
        raise UserError(
            f'{weights.source}: {name} reads {width} units, 2 * hidden_features, as the published code makes it, but '
            f'it is given {given - hidden} + {hidden}: such a coupling cannot run, there or here, so its weights mean '
            'nothing. Import a checkpoint in which this layer has the width of its input.'
        )


def load_decoder_layer(layer, weights, prefix):
    load_self_attention(layer.self_attention, weights, f'{prefix}slf_attn.')
    load_source_attention(layer.source_attention, weights, f'{prefix}enc_attn.')
    load_feed_forward(layer.feed_forward, weights, f'{prefix}pos_ffn.')


def load_self_attention(block, weights, prefix):
    weights.put(block.kernel, weights[prefix + 'in_proj_weight'].T, prefix + 'in_proj_weight')
    weights.put(block.bias, weights[prefix + 'in_proj_bias'], prefix + 'in_proj_bias')
    load_layer_norm(block.norm, weights, f'{prefix}layer_norm.')


def load_source_attention(block, weights, prefix):
    kernel, bias = weights[prefix + 'in_proj_weight'].T, weights[prefix + 'in_proj_bias']
    size = len(kernel)
    for linear, columns in ((block.query, slice(0, size)), (block.source, slice(size, 3 * size))):
        weights.put(linear.kernel, kernel[:, columns], prefix + 'in_proj_weight')
        weights.put(linear.bias, bias[columns], prefix + 'in_proj_bias')
    load_layer_norm(block.norm, weights, f'{prefix}layer_norm.')


def load_feed_forward(block, weights, prefix):
    load_linear(block.inner, weights, f'{prefix}linear1.')
    load_linear(block.outer, weights, f'{prefix}linear2.')
    load_layer_norm(block.norm, weights, f'{prefix}layer_norm.')


def load_layer_norm(norm, weights, prefix):
    weights.put(norm.scale, weights[prefix + 'weight'], prefix + 'weight')
    weights.put(norm.shift, weights[prefix + 'bias'], prefix + 'bias')


def load_linear(linear, weights, prefix):
    weights.put(linear.kernel, weights[prefix + 'weight'].T, prefix + 'weight')
    weights.put(linear.bias, weights[prefix + 'bias'], prefix + 'bias')


def load_global_attention(attention, weights, prefix):
    load_linear(attention.query, weights, f'{prefix}query_proj.')
    load_linear(attention.source, weights, f'{prefix}key_proj.')
    load_linear(attention.output, weights, f'{prefix}fc.')


def load_weight_norm(linear, weights, prefix):
    weights.put(linear.direction, weights[prefix + 'weight_v'].T, prefix + 'weight_v')
    weights.put(linear.gain, weights[prefix + 'weight_g'][:, 0], prefix + 'weight_g')
    weights.put(linear.bias, weights[prefix + 'bias'], prefix + 'bias')


def load_convolution(linear, weights, prefix):
    """A convolution `[out, in, kernel]` to a linear over windows, `[kernel * in, out]`."""
    direction = weights[prefix + 'weight_v']
    direction = direction.transpose(2, 1, 0).reshape(-1, len(direction))
    weights.put(linear.direction, direction, prefix + 'weight_v')
    weights.put(linear.gain, weights[prefix + 'weight_g'].reshape(-1), prefix + 'weight_g')
    weights.put(linear.bias, weights[prefix + 'bias'], prefix + 'bias')


def load_recurrent(stack, weights, prefix):
    for layers, suffix in ((stack.forwards, ''), (stack.backwards, '_reverse')):
        for i, layer in enumerate(layers):
            ending = f'_l{i}{suffix}'
            weights.put(layer.kernel, weights[f'{prefix}weight_ih{ending}'].T, f'{prefix}weight_ih{ending}')
            weights.put(layer.recurrent_kernel, weights[f'{prefix}weight_hh{ending}'].T, f'{prefix}weight_hh{ending}')
            bias = np.array(weights[f'{prefix}bias_ih{ending}'], np.float32)
            state_bias = weights[f'{prefix}bias_hh{ending}']
            joined = 2 * layer.state_size if layer.candidate_bias is not None else len(bias)
            bias[:joined] += state_bias[:joined]
            weights.put(layer.bias, bias, f'{prefix}bias_ih{ending}')
            if layer.candidate_bias is not None:  # GRU: the reset gate multiplies this one
                weights.put(layer.candidate_bias, state_bias[joined:], f'{prefix}bias_hh{ending}')
