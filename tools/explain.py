"""What `--explain` prints: the configuration and where it comes from, parameters, data, memory."""

import os
import tempfile
from collections import defaultdict

import build_inputs
import build_model
from sequencing.config import RNNDecoderConfig
from sequencing.options import flatten
from sequencing.rnn_decoder import KINDS
from sequencing.warm_start import named_variables


def explain(config, origins, model_dir):
    """Prints everything that a training would use, without leaving anything behind but the text's cache."""
    print('configuration')
    for field, value in flatten(config).items():
        print(f'  {field:36} {value!r:28} {origins.get(field, "default")}')
    build_inputs.check_files(config)
    with tempfile.TemporaryDirectory() as scratch:
        vocab_dir = os.path.join(model_dir, 'vocab')
        vocab_dir = vocab_dir if os.path.isdir(vocab_dir) else os.path.join(scratch, 'vocab')
        cache_dir = config.data.cache_dir or os.path.join(scratch, 'cache')
        src_vocab, trg_vocab = build_inputs.build_vocabs(config, vocab_dir)
        model = build_model.build_model(config, src_vocab, trg_vocab)
        unit = build_model.build_objective(model, config, trg_vocab).length_unit
        inputs = build_inputs.build_parallel_inputs(config, src_vocab, trg_vocab, cache_dir, unit)
        print(f'\nvocabularies\n  source {src_vocab.size} tokens, target {trg_vocab.size} tokens')
        print(f'\ndata\n{inputs.report}')
        total = print_parameters(model)
        print_memory(config, total, trg_vocab.size)
    return 0


def print_parameters(model):
    """Prints the parameter count by part and returns the sum."""
    parts = defaultdict(int)
    for name, variable in named_variables(model):
        parts[name.split('/')[0]] += variable.shape.num_elements()
    print('\nparameters')
    for part, count in parts.items():
        print(f'  {part:36} {count:>14,}')
    total = sum(parts.values())
    print(f'  {"in all":36} {total:>14,}')
    return total


def print_memory(config, parameters, vocab_size):
    """Prints an estimate: what grows with the parameters, and the largest tensors of a batch."""
    train = config.train
    slots = {'sgd': 0, 'adam': 2, 'adamw': 2}[train.optimizer] + (1 if train.amsgrad else 0) + (1 if train.ema else 0)
    copies = 2 + slots + (1 if train.accumulate > 1 else 0)  # weights and gradients, and what the optimizer keeps
    longest = config.data.max_trg_length
    tokens = train.batch_size if train.batch_unit == 'tokens' else train.batch_size * longest
    logits = 3 * 4 * tokens * vocab_size  # logits, their gradient, and one more while they are made
    print(f'\nmemory (estimate)\n  weights, gradients, optimizer  {copies * 4 * parameters / 2**20:8,.0f} MiB\n'
          f'  logits of the largest batch    {logits / 2**20:8,.0f} MiB')  # fmt: skip
    decoder = config.model.decoder
    if isinstance(decoder, RNNDecoderConfig) and KINDS[decoder.attention].has_compared and not decoder.recompute:
        size = 2 if config.precision != 'float32' else 4
        compared = 3 * size * tokens * config.data.max_src_length * decoder.attention_size
        print(f'  attention, longest sources     {compared / 2**20:8,.0f} MiB; less with model.decoder.recompute')
