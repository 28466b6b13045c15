"""Names the part of a model where numbers stop being finite."""

import tensorflow as tf


def first_nonfinite(model, run):
    """Runs `run()` eagerly and finds the first part of `model` to return a non-finite number.

    Args:
      model: a tf.Module.
      run: a function that calls the model, given nothing.
    Returns:
      a sentence: a weight that is non-finite already, else the innermost module whose output went non-finite first,
      else that the forward pass is finite, so that the gradient is where it happened.
    """
    weight = nonfinite_weight(model)
    if weight:
        return weight
    found = []
    names = {id(module): module_path(model, module) for module in model.submodules}
    classes = {type(module) for module in model.submodules if '__call__' in dir(type(module))}
    originals = {kind: kind.__call__ for kind in classes}

    def watched(original):
        def call(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            if not found and id(self) in names and not _finite(result):
                found.append(names[id(self)])
            return result

        return call

    try:
        for kind, original in originals.items():
            kind.__call__ = watched(original)
        tf.config.run_functions_eagerly(True)
        run()
    finally:
        tf.config.run_functions_eagerly(False)
        for kind, original in originals.items():
            kind.__call__ = original
    if found:
        return f'{found[0]} is the first part whose output is non-finite'
    return 'every part of the forward pass is finite: the gradient overflowed on its way back'


def nonfinite_weight(model):
    """A sentence that names the first non-finite weight of a model; '' where all are finite."""
    for variable in model.trainable_variables:
        if not bool(tf.reduce_all(tf.math.is_finite(variable))):
            return f'the weight {module_path(model, variable)} is non-finite'
    return ''


def _finite(result):
    leaves = [leaf for leaf in tf.nest.flatten(result) if tf.is_tensor(leaf) and leaf.dtype.is_floating]
    return all(bool(tf.reduce_all(tf.math.is_finite(leaf))) for leaf in leaves)


def module_path(model, part):
    """Dotted attribute path of a module or variable below `model`, as in a checkpoint's keys."""
    for path, _ in model._flatten(recursive=True, predicate=lambda leaf: leaf is part, with_path=True):
        return '.'.join(map(str, path))
    return part.name
