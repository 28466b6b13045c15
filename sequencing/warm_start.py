"""Optimistic warm start: takes over whatever weights of another model fit."""

import tensorflow as tf

from sequencing.options import flatten
from sequencing.translator import load_model


def warm_start(model, config, src_vocab, trg_vocab, model_dir):
    """Copies weights of equal name and shape, and embedding rows of shared tokens where the vocabulary changed.

    Says which variables matched and which did not, and why, and which settings differ, for some change what weights
    mean and no shape.

    Args:
      model: a tf.Module with all its variables; config: its part of the configuration.
      src_vocab, trg_vocab: its vocabularies.
      model_dir: the model folder to take from.
    Returns:
      a dict from variable name to what became of it.
    """
    old_model, old_config, old_src, old_trg = load_model(model_dir)
    known = dict(named_variables(old_model, trainable=False))
    if old_model.src_embedding is old_model.trg_embedding:
        known['src_embedding/table'] = known['trg_embedding/table'] = old_model.src_embedding.table
    told = {}
    for name, variable in named_variables(model, trainable=False):
        if name not in known:
            told[name] = 'new: the other model has no such variable'
            continue
        value = known[name].numpy()
        old, new = list(value.shape), variable.shape.as_list()
        side = (src_vocab, old_src) if name.startswith('src_embedding') else (trg_vocab, old_trg)
        axis = _vocabulary_axis(name, old, new, side)
        if axis is not None and side[0].tokens != side[1].tokens:
            shared = _take_shared_rows(variable, value, axis, *side)
            told[name] = f'taken for the {shared} of {side[0].size} tokens that both vocabularies have'
        elif old == new:
            variable.assign(value)
            told[name] = 'taken'
        else:
            told[name] = f'new: shape {new} here, {old} there'
    _tell(told, _differences(config, old_config.model), model_dir)
    return told


def named_variables(model, trainable=True):
    """Pairs of attribute path and variable, once each; the trainable ones, or all."""
    seen = set()
    for path, variable in model._flatten(
        recursive=True,
        predicate=lambda leaf: isinstance(leaf, tf.Variable) and (leaf.trainable or not trainable),
        with_path=True,
    ):
        if id(variable) not in seen:
            seen.add(id(variable))
            yield '/'.join(str(part) for part in path), variable


def _vocabulary_axis(name, old, new, side):
    """The axis that counts tokens: of embeddings the first, of the output layer the last."""
    if len(old) != len(new):
        return None
    axis = 0 if 'embedding' in name else len(old) - 1 if name.startswith('output') else None
    if axis is None or new[axis] != side[0].size or old[axis] != side[1].size:
        return None
    others_equal = all(o == n for i, (o, n) in enumerate(zip(old, new)) if i != axis)
    return axis if others_equal else None


def _take_shared_rows(variable, old_values, axis, vocab, old_vocab):
    place = {token: i for i, token in enumerate(old_vocab.tokens)}
    pairs = [(i, place[token]) for i, token in enumerate(vocab.tokens) if token in place]
    values = variable.numpy().swapaxes(0, axis)
    values[[i for i, _ in pairs]] = old_values.swapaxes(0, axis)[[i for _, i in pairs]]
    variable.assign(values.swapaxes(0, axis))
    return len(pairs)


def _differences(config, old_config):
    """A sentence for each setting of a part that both models have, where they differ."""
    new, old = flatten(config), flatten(old_config)
    changed = [field for field in new if field in old and new[field] != old[field]]
    return [f'model.{field}: {new[field]!r} here, {old[field]!r} there' for field in changed]


def _tell(told, differences, model_dir):
    taken = [name for name, what in told.items() if what.startswith('taken')]
    print(f'warm start from {model_dir}: {len(taken)} of {len(told)} variables taken', flush=True)
    for name, what in told.items():
        if what != 'taken':
            print(f'  {name}: {what}', flush=True)
    for difference in differences:
        print(f'  {difference}', flush=True)
