"""Finds a configuration: a function `config_*()` of the user's Python file, and what `--set` changes of it."""

import difflib
import importlib.util
import os
import traceback

from sequencing.cli import note
from sequencing.config import Config
from sequencing.errors import UserError
from sequencing.options import flatten, override


def load_config(name, file='', settings=()):
    """Reads a configuration.

    Args:
      name: of the function, such as 'config_demo'.
      file: the Python file; by default `config.py` in the working folder, else `config_example.py` there, else the one
        that came with the framework.
      settings: texts `FIELD=VALUE`, applied in order.
    Returns:
      the `Config`, and a dict from dotted field to where its value comes from.
    Raises:
      UserError: no such file or function, the file fails, or a value cannot be.
    """
    path = os.path.abspath(file or _default_file())
    if not os.path.isfile(path):
        raise UserError(f'--config_file {path}: there is no such file.')
    found = {key: value for key, value in vars(_run_file(path)).items() if key.startswith('config_')}
    if name not in found:
        close = [f'config_{name}'] if f'config_{name}' in found else difflib.get_close_matches(name, found, n=1)
        meant = f' Did you mean {close[0]}?' if close else ''
        raise UserError(f'--config {name}: {path} has no such function.{meant} It has {", ".join(sorted(found))}.')
    try:
        config = found[name]()
    except UserError as error:
        raise UserError(f'{path}, {name}(): {error}') from None
    except Exception as error:
        raise UserError(f'{path}, line {_line(error, path)}: {type(error).__name__}: {error}') from error
    if not isinstance(config, Config):
        raise UserError(f'{path}, {name}() has to return a sequencing.config.Config; got {type(config).__name__}.')
    changed = override(config, settings)
    for setting in settings:
        part, _, kind = setting.partition('.kind=')
        if kind:
            note(f'--set {setting}: {part} has the defaults of its new kind, of full size; --set its other fields too')
    defaults, before, after = flatten(Config()), flatten(config), flatten(changed)
    origins = {}
    for field, value in after.items():
        if field not in before or value != before[field]:
            origins[field] = 'command line'
        elif field not in defaults or value != defaults[field]:
            origins[field] = name
        else:
            origins[field] = 'default'
    return changed, origins


def _default_file():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    places = ['config.py', 'config_example.py', os.path.join(here, 'config_example.py')]
    return next((place for place in places if os.path.isfile(place)), places[-1])


def _run_file(path):
    spec = importlib.util.spec_from_file_location('sequencing_user_config', path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f'{path}, line {error.lineno}: {error.msg}.') from None
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except Exception as error:
        raise UserError(f'{path}, line {_line(error, path)}: {type(error).__name__}: {error}') from error
    return module


def _line(error, path):
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else '?'
