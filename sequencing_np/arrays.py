"""The array module: NumPy, or CuPy, whose arrays answer to NumPy's functions."""

import importlib

import numpy as np

from sequencing.errors import UserError

MODULES = ('numpy', 'cupy')


def array_module(name):
    """The module that makes arrays, by its name.

    Raises:
      UserError: CuPy was asked for and is not installed, or finds no GPU.
    """
    if name == 'numpy':
        return np
    if name not in MODULES:
        raise UserError(f'--array_module is one of {", ".join(MODULES)}; got {name!r}.')
    try:
        module = importlib.import_module(name)
        module.zeros(1)
    except ImportError:
        raise UserError('--array_module cupy: CuPy is not installed; see https://docs.cupy.dev/en/stable/install.html, '
                        'or leave the flag out.') from None  # fmt: skip
    except Exception as error:  # whatever CuPy's runtime raises where there is no GPU
        raise UserError(f'--array_module cupy: CuPy cannot compute here: {error}.') from None
    return module


def to_host(x):
    """An array of either module as one of NumPy."""
    return x.get() if hasattr(x, 'get') else x
