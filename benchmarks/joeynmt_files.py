"""What JoeyNMT reads in `joeynmt.py`: text in the order that suits it, pieces, configurations, weights of ours."""

import json
import os
import random

BATCH, LONGEST, UPDATES = 1024, 100, 20  # tokens of a batch, of a sentence; updates between lines of progress
SPECIAL = ('<unk>', '<pad>', '<s>', '</s>')  # their order there cannot be changed


def write_training(folder, vocab, config):
    """The training text, for a trainer that makes batches of lines in their order, and the configuration.

    Lines of one length stand together, as many as make a batch there, and the batches in random order.
    """
    from sequencing.data_cache import LengthRules
    from sequencing.text import read_parallel

    paths = [config.data.path(name) for name in (config.data.corpora[0].src, config.data.corpora[0].trg)]
    pairs = [pair for pair in read_parallel(paths) if all(map(is_line, pair))]
    lengths = [vocab.encode_flat(side)[1] for side in zip(*pairs)]
    kept = LengthRules(LONGEST, LONGEST, config.data.max_length_ratio).fate(*lengths) == 0
    batches = [[]]
    for longest, *_, pair in sorted(
        (max(src, trg) + 1, trg, src, pair) for src, trg, pair, keep in zip(*lengths, pairs, kept) if keep
    ):
        batches[-1].append(pair)
        if longest * len(batches[-1]) >= BATCH:  # where the peer ends a batch, too
            batches.append([])
    *batches, rest = batches  # the last one is not full: in the middle it would shift all that follow
    random.Random(1).shuffle(batches)
    batches.append(rest)
    for name, side in (('en', 0), ('de', 1)):
        write_lines(os.path.join(folder, f'train.{name}'), (pair[side] for batch in batches for pair in batch))
        write_lines(os.path.join(folder, f'dev.{name}'), [pairs[0][side]])  # wanted and never read
    paths = {name: os.path.join(folder, name) for name in ('train', 'dev')}
    write_config(folder, 'train', paths, vocab, config.model)


def write_decoding(folder, vocab, config, model, lines, batch):
    """The lines to translate, by length, the weights, and the configuration; `batch` lines are decoded together."""
    import numpy as np

    lines = sorted(filter(is_line, lines), key=lambda line: len(vocab.encode(line)))
    write_lines(os.path.join(folder, 'test.en'), lines)
    weights = os.path.join(folder, 'weights.npz')
    np.savez(weights, **peer_weights(model))
    testing = {'load_model': weights, 'batch_type': 'sentence', 'batch_size': batch}
    write_config(folder, 'test', {'test': os.path.join(folder, 'test')}, vocab, config.model, testing)


def is_line(line):
    """Whether the peer takes this for one line; it cuts at U+2028 and the like."""
    return len(line.splitlines()) == 1


def write_lines(path, lines):
    with open(path, 'w', encoding='utf-8') as file:
        file.writelines(f'{line}\n' for line in lines)


def write_config(folder, mode, paths, vocab, model, testing=()):
    """`<mode>.yaml`, JSON being YAML too, with the pieces as a SentencePiece model and as a list beside it."""
    name = os.path.join(folder, mode)
    vocab.save_as(f'{name}.model')
    write_lines(f'{name}.pieces', [*SPECIAL, *vocab.tokens[len(SPECIAL) :]])
    os.makedirs(f'{name}.joeynmt', exist_ok=True)

    def text(language):
        return {'lang': language, 'level': 'bpe', 'voc_file': f'{name}.pieces', 'tokenizer_type': 'sentencepiece',
                'tokenizer_cfg': {'model_file': f'{name}.model'}, 'max_length': LONGEST}  # fmt: skip

    def stack(part):
        return {'type': 'transformer', 'num_layers': part.layers, 'num_heads': part.heads, 'hidden_size': part.size,
                'ff_size': part.hidden_size, 'dropout': part.dropout, 'layer_norm': 'pre',
                'embeddings': {'embedding_dim': part.size, 'scale': True, 'dropout': part.dropout}}  # fmt: skip

    config = {
        'name': 'beside',
        'model_dir': f'{name}.joeynmt',
        'use_cuda': False,
        'random_seed': 1,
        'data': {**paths, 'dataset_type': 'plain', 'src': text('en'), 'trg': text('de')},
        'training': {
            'optimizer': 'adam', 'adam_betas': [0.9, 0.98], 'learning_rate': 1.5e-3, 'learning_rate_min': 0.0,
            'scheduling': 'warmupinversesquareroot', 'learning_rate_warmup': 400, 'clip_grad_norm': 1.0,
            'label_smoothing': 0.1, 'normalization': 'tokens', 'batch_type': 'token', 'batch_size': BATCH,
            'shuffle': False, 'epochs': 100, 'logging_freq': UPDATES, 'validation_freq': UPDATES * 10**6,
            'overwrite': True,
        },
        'testing': {'beam_size': 1, **dict(testing)},
        'model': {'tied_embeddings': True, 'tied_softmax': True, 'encoder': stack(model.encoder),
                  'decoder': stack(model.decoder)},
    }  # fmt: skip
    with open(f'{name}.yaml', 'w', encoding='utf-8') as file:
        json.dump(config, file, indent=2)


def peer_weights(model):
    """The weights of a pre-norm `Seq2Seq` with one tied table under JoeyNMT's names, a dict of arrays."""
    import numpy as np

    found = {}

    def put(name, weight, bias):
        found[f'{name}.weight'], found[f'{name}.bias'] = np.ascontiguousarray(weight), np.ascontiguousarray(bias)

    def put_norm(name, norm):
        put(name, norm.scale.numpy(), norm.shift.numpy())

    def put_linear(linear, *names):
        """The maps that stand side by side in `linear`, each under its name."""
        parts = np.split(linear.kernel.numpy().T, len(names)), np.split(linear.bias.numpy(), len(names))
        for name, weight, bias in zip(names, *parts):
            put(name, weight, bias)

    encoder, decoder = model.encoder, model.decoder
    for side, stack, attention, norm in (('encoder', encoder, 'src_src_att', 'layer_norm'),
                                         ('decoder', decoder, 'trg_trg_att', 'x_layer_norm')):  # fmt: skip
        found[f'{side}.pe.pe'] = stack.input.positions(0, 5000, model.dtype).numpy()[np.newaxis]
        put_norm(f'{side}.layer_norm', stack.final_norm)
        for i, layer in enumerate(stack.layers):
            name = f'{side}.layers.{i}'
            put_norm(f'{name}.{norm}', layer.self_residual.norm)
            put_linear(layer.self_attention.projection, *[f'{name}.{attention}.{part}_layer' for part in 'qkv'])
            put_linear(layer.self_attention.output, f'{name}.{attention}.output_layer')
            put_norm(f'{name}.feed_forward.layer_norm', layer.feed_residual.norm)
            put_linear(layer.feed_forward.inner, f'{name}.feed_forward.pwff_layer.0')
            put_linear(layer.feed_forward.outer, f'{name}.feed_forward.pwff_layer.3')
    names = [f'decoder.layers.{i}.src_trg_att' for i in range(len(decoder.layers))]
    put_linear(decoder.source.projection, *[f'{name}.{part}_layer' for name in names for part in 'kv'])
    for i, (name, layer) in enumerate(zip(names, decoder.layers)):
        put_norm(f'decoder.layers.{i}.dec_layer_norm', layer.source_residual.norm)
        put_linear(layer.source_attention.query, f'{name}.q_layer')
        put_linear(layer.source_attention.output, f'{name}.output_layer')
    table, bias = model.trg_embedding.table.numpy(), model.output_bias.numpy()
    order = [1, 0, *range(2, len(table))]  # ours begin with PAD, theirs with UNK
    put('decoder.output_layer', table[order], bias[order])
    found['src_embed.lut.weight'] = found['trg_embed.lut.weight'] = table[order]
    return found
