"""One trace for all couplings that differ in their weights alone.

A flow has more than a hundred couplings, of a handful of shapes. Traced one by one, with their gradients, they make a
graph of tens of thousands of operations, which takes minutes to trace and to optimise. So in a graph each kind of
coupling is traced once, as a function that gets its weights as arguments, and is called for every coupling of the kind.
The function is kept from being inlined: the runtime then optimises it once, too. It does the same arithmetic.
"""

import contextlib
import contextvars

import tensorflow as tf

from sequencing.layers import Dropout

_OF_ALL_MODULES = frozenset(vars(tf.Module()))
_IN_ONE_GRAPH = contextvars.ContextVar('in_one_graph', default=False)


@contextlib.contextmanager
def in_one_graph():
    """What is traced within has no functions: for converters that do not know them."""
    token = _IN_ONE_GRAPH.set(True)
    try:
        yield
    finally:
        _IN_ONE_GRAPH.reset(token)


def traces_apart():
    """Whether parts are to be functions: in a graph, unless it is to be one piece."""
    return not (tf.executing_eagerly() or _IN_ONE_GRAPH.get())


def apart(function):
    """`function` as one of the graph's functions, which is rewritten once and not inlined."""
    return tf.function(function, autograph=False, experimental_attributes={'_noinline': True})


class OneTrace:
    """Calls `function(*tensors)` through a trace that modules of equal structure share.

    Args:
      module: one of them, whose weights are attributes of it or of its parts, not of lists.
      function: of tensors to tensors (nests of them), which reads the weights of `module`.
    """

    def __init__(self, module, function):
        if len(_places(module)) != len(module.variables):
            raise ValueError(f"{module.name}: a weight that is no attribute of its own cannot be another module's.")
        self.module, self.function = module, function
        self._run = apart(self._with_weights)

    def __call__(self, module, *tensors):
        """`function` of tensors as if it read the weights of `module`."""
        return self._run(_tensors(module), *tensors)

    def _with_weights(self, weights, *tensors):
        with _reading(self.module, weights):
            return self.function(*tensors)


def structure(value):
    """What modules that may share a trace have in common: a hashable description of all but weights and names."""
    if isinstance(value, tf.Variable):
        return tuple(value.shape), value.dtype.name
    if isinstance(value, (list, tuple)):
        return tuple(structure(part) for part in value)
    if isinstance(value, tf.Module):
        names = sorted(name for name in vars(value) if not _sets_apart(value, name))
        return type(value), tuple((name, structure(vars(value)[name])) for name in names)
    try:
        hash(value)
    except TypeError:  # of what cannot be compared each is its own kind
        return 'object', id(value)
    return value


def _sets_apart(module, attribute):
    """Whether an attribute only tells a module from others that do the same: names, and what TensorFlow keeps."""
    if attribute in _OF_ALL_MODULES or attribute.startswith(('_self_', '_obj_')):
        return True
    return isinstance(module, Dropout) and attribute == 'salt'


def _parts(module):
    return (module, *module.submodules)


def _places(module):
    """(part, attribute) of all weights, in an order that modules of equal structure share."""
    return [
        (part, name)
        for part in _parts(module)
        for name, value in sorted(vars(part).items(), key=lambda item: item[0])
        if isinstance(value, tf.Variable)
    ]


def _dropouts(module):
    return [part for part in _parts(module) if isinstance(part, Dropout) and part.rate]


def _tensors(module):
    """All weights, and what keys the randomness of its dropouts."""
    weights = [tf.convert_to_tensor(getattr(part, name)) for part, name in _places(module)]
    salts = tf.constant([part.salt for part in _dropouts(module)], tf.int32)
    return weights, salts


@contextlib.contextmanager
def _reading(module, tensors):
    """Lets a module read tensors that `_tensors` gave of another one in place of its own."""
    weights, salts = tensors
    dropouts = _dropouts(module)
    given = [(*place, weight) for place, weight in zip(_places(module), weights, strict=True)]
    given += [(part, 'salt', salt) for part, salt in zip(dropouts, tf.unstack(salts, num=len(dropouts)))]
    own = [(part, name, getattr(part, name)) for part, name, _ in given]
    try:
        for part, name, value in given:
            vars(part)[name] = value  # not by `setattr`, which keeps a record of it for checkpoints
        yield
    finally:
        for part, name, value in own:
            vars(part)[name] = value
