"""An array module as strict as CuPy: its arrays do not mix with those of NumPy. No TensorFlow here."""

import types

import numpy as np


class StrictArray(np.ndarray):
    """Refuses NumPy's own arrays (but not its scalars) in whatever it takes part in."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        _refuse(ufunc.__name__, [*inputs, *(out or ())])
        if out:
            options['out'] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        return out[0] if out else _strict(result)

    def __array_function__(self, function, kinds, args, options):
        _refuse(function.__name__, _arrays_in([*args, *options.values()]))
        return _strict(function(*_replace(args), **{name: _replace(value) for name, value in options.items()}))

    def __getitem__(self, place):
        _refuse('indexing', place if isinstance(place, tuple) else [place])
        return _strict(_plain(self)[_replace(place)])

    def __setitem__(self, place, value):
        _refuse('assignment', [*(place if isinstance(place, tuple) else [place]), value])
        _plain(self)[_replace(place)] = _replace(value)

    def get(self):
        """The same as an array of NumPy."""
        return _plain(self).copy()


def _plain(x):
    return x.view(np.ndarray) if isinstance(x, StrictArray) else x


def _strict(x):
    if isinstance(x, (list, tuple)):
        return type(x)(map(_strict, x))
    return np.asarray(x).view(StrictArray) if isinstance(x, (np.ndarray, np.generic)) else x


def _replace(x):
    return type(x)(map(_replace, x)) if isinstance(x, (list, tuple)) else _plain(x)


def _arrays_in(values):
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _arrays_in(value)
        else:
            yield value


def _refuse(what, values):
    for value in values:
        if type(value) is np.ndarray and value.ndim:
            raise TypeError(f'{what}: an array of NumPy among those of the other module')


def _maker(name):
    return lambda *args, **options: getattr(np, name)(*args, **options).view(StrictArray)


MODULE = types.SimpleNamespace(
    **{name: _maker(name) for name in ('asarray', 'arange', 'zeros', 'empty')}, ndarray=StrictArray
)
