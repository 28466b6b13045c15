"""From text to batches: vocabularies, the encoded corpus, and the endless, resumable stream of training batches.

    src_vocab, trg_vocab = build_vocabs(config, 'runs/demo/vocab')
    inputs = build_parallel_inputs(config, src_vocab, trg_vocab, 'runs/demo.cache')
    for batch, position in inputs.dataset():
        ...

`inputs.batches()` gives the same as NumPy arrays, and either goes on from a `position` without replay.
"""

import dataclasses
import os

import numpy as np

from sequencing.cli import note
from sequencing.data_cache import LengthRules, open_corpus
from sequencing.errors import UserError
from sequencing.parallel_batches import EvalInputs, ParallelInputs
from sequencing.text import check_file, read_lines, read_parallel
from sequencing.vocab import SentencePieceVocab, Vocab, VocabMaker, read_description

# 1. Files


def data_path(config, name):
    """The path of a file named in the config, relative to data.folder; `~` and `$NAME` are filled in."""
    return config.data.path(name)


def check_files(config):
    """Refuses missing files, and dev and test files that are empty or do not match line by line, before any work.

    Training files are compared line by line when they are encoded.

    Raises:
      UserError: says which file, in which line, and by which field it was named.
    """
    data = config.data
    for i, corpus in enumerate(data.corpora):
        for side, name in (('src', corpus.src), ('trg', corpus.trg)):
            unset = not data.folder and not os.path.isabs(data_path(config, name))
            hint = '; data.folder says where such files are, and is not set' if unset else ''
            check_file(data_path(config, name), f'training text (data.corpora.{i}.{side}{hint})')
    for which, src, trg in (('dev', data.dev_src, data.dev_trg), ('test', data.test_src, data.test_trg)):
        paths = [data_path(config, name) for name in ([src] if src else []) + list(trg)]
        if paths:
            for _ in read_parallel(paths, f'{which} text (data.{which}_src, data.{which}_trg)'):
                pass


# 2. Vocabularies


def build_vocab(vocab_config, files, folder, name, data_folder=''):
    """One vocabulary: loaded from `folder` where it is saved, else read from its file or made from text, and saved.

    Args:
      vocab_config: `VocabConfig`.
      files: paths of the text that it is made from.
      folder: where it is saved, made if it is not there.
      name: what it is called there, as in `Vocab.load(folder, name)`.
      data_folder: what `vocab_config.file` is relative to.
    Returns:
      `Vocab`.
    Raises:
      UserError: a file is missing or unfit, or the saved vocabulary is of another configuration.
    """
    vocab = _ready_vocab(vocab_config, folder, name, data_folder)
    if vocab is None:
        maker = VocabMaker(vocab_config.kind, vocab_config.size, ', '.join(files))
        for path in files:
            for line in read_lines(path, 'training text'):
                maker.add(line)
        vocab = _save_vocab(maker.make(), vocab_config, folder, name)
    return vocab


def build_vocabs(config, vocab_dir):
    """The vocabularies of both sides, made from the training text on first use and then loaded from `vocab_dir`.

    Args:
      config: `Config`.
      vocab_dir: folder where they are saved, as `src` and `trg`, or as `joint`.
    Returns:
      src_vocab, trg_vocab: `Vocab`s, one and the same object when `data.joint_vocab` is set.
    Raises:
      UserError: as `build_vocab`; the training text is missing, or its two sides have unequal numbers of lines.
    """
    data = config.data
    kinds = {'joint': data.src_vocab} if data.joint_vocab else {'src': data.src_vocab, 'trg': data.trg_vocab}
    vocabs = {name: _ready_vocab(kind, vocab_dir, name, data_path(config, '')) for name, kind in kinds.items()}
    makers = {name: VocabMaker(kinds[name].kind, kinds[name].size) for name in kinds if vocabs[name] is None}
    if makers:
        src_maker, trg_maker = (makers.get('joint', makers.get(side)) for side in ('src', 'trg'))
        for corpus in data.corpora:
            pair = [data_path(config, corpus.src), data_path(config, corpus.trg)]
            for src, trg in read_parallel(pair, 'training text'):
                if src_maker:
                    src_maker.add(src)
                if trg_maker:
                    trg_maker.add(trg)
        for name, maker in makers.items():
            note(f'making the {name} vocabulary: {maker.kind}, {maker.size} tokens')
            vocab = vocabs[name] = _save_vocab(maker.make(), kinds[name], vocab_dir, name)
            if vocab.size < maker.size:
                note(f'the {name} vocabulary has {vocab.size} tokens: there are no more in the text')
    return (vocabs['joint'],) * 2 if data.joint_vocab else (vocabs['src'], vocabs['trg'])


def _ready_vocab(vocab_config, folder, name, data_folder):
    """The vocabulary if it is saved or comes from a file; None if it has to be made from text."""
    wanted = dataclasses.asdict(vocab_config)
    if os.path.exists(os.path.join(folder, f'{name}.json')):
        saved = read_description(folder, name).get('config', wanted)
        for field, value in wanted.items():
            if saved.get(field) != value:
                raise UserError(
                    f'{os.path.join(folder, name)}: the vocabulary was made with {field}={saved.get(field)!r}, and the '
                    f'config says {field}={value!r}. Keep the old value, or take another folder (--restart).'
                )
        return Vocab.load(folder, name)
    if vocab_config.kind not in ('list', 'sentencepiece'):
        return None
    if not vocab_config.file:
        side = 'src' if name == 'joint' else name
        raise UserError(f'data.{side}_vocab.file is empty: kind {vocab_config.kind!r} needs the file that holds it.')
    path = os.path.join(data_folder, os.path.expandvars(os.path.expanduser(vocab_config.file)))
    if vocab_config.kind == 'list':
        vocab = Vocab.from_file(path, vocab_config.delimiter)
    else:
        vocab = SentencePieceVocab.from_file(path)
    return _save_vocab(vocab, vocab_config, folder, name)


def _save_vocab(vocab, vocab_config, folder, name):
    os.makedirs(folder, exist_ok=True)
    vocab.save(folder, name, config=dataclasses.asdict(vocab_config))
    return vocab


# 3. Batches


def build_parallel_inputs(config, src_vocab, trg_vocab, cache_dir, length_unit=0, say=None):
    """The training batches of a config.

    Args:
      config: `Config`.
      src_vocab, trg_vocab: `Vocab`s.
      cache_dir: folder of the encoded text.
      length_unit: 0 for targets that end in one EOS (autoregressive models); u > 0 for targets without, filled with
        EOS to a multiple of u (flow models), the filling being part of the target.
      say: called with lines of progress; None prints them on standard error.
    Returns:
      `ParallelInputs`.
    Raises:
      UserError: the text is missing, empty, unequal in lines, or nothing of it is kept.
    """
    data = config.data
    rules = LengthRules(data.max_src_length, data.max_trg_length, data.max_length_ratio, length_unit)
    corpora = [
        open_corpus(cache_dir, data_path(config, corpus.src), data_path(config, corpus.trg), src_vocab, trg_vocab,
                    rules, config.threads, say)
        for corpus in data.corpora
    ]  # fmt: skip
    weights = [corpus.weight for corpus in data.corpora]
    train = config.train
    return ParallelInputs(corpora, weights if all(weights) else None, train.batch_unit, train.batch_size,
                          train.by_length, src_vocab, trg_vocab, rules, config.seed)  # fmt: skip


def build_eval_inputs(config, src_vocab, trg_vocab, length_unit=0, src_file=None, trg_file=None):
    """Batches of (source, first reference) in file order, for the loss on the dev set.

    Lines longer than `decode.max_src_length` tokens are cut to it on both sides, and that is said on standard error.

    Args:
      config: `Config`.
      src_vocab, trg_vocab: `Vocab`s.
      length_unit: as in `build_parallel_inputs`.
      src_file, trg_file: paths; the dev set of the config by default.
    Returns:
      `EvalInputs`.
    Raises:
      UserError: a file is missing or empty, or the two differ in lines.
    """
    src_file = src_file or data_path(config, config.data.dev_src)
    trg_file = trg_file or data_path(config, config.data.dev_trg[0])
    longest = config.decode.max_src_length
    rules = LengthRules(longest, longest, 0.0, length_unit)
    pairs, cut = [], 0
    for lines in read_parallel((src_file, trg_file), 'dev text'):
        ids = [vocab.encode(line) for vocab, line in zip((src_vocab, trg_vocab), lines)]
        cut += any(len(side) > longest for side in ids)
        pairs.append([side[:longest] for side in ids])
    if cut:
        note(f'{src_file}, {trg_file}: {cut} pairs are cut to {longest} tokens for the loss.')
    lengths = np.array([[len(src), len(trg)] for src, trg in pairs])
    flat = np.concatenate([side for pair in pairs for side in pair])
    return EvalInputs(flat, lengths[:, 0], lengths[:, 1], src_vocab, trg_vocab, rules, config.decode.batch_tokens)
