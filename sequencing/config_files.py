"""Finds a configuration: a function `config_*()` of the user's Python file, and what `--set` changes of it."""

import dataclasses
import difflib
import importlib.util
import os
import re
import traceback

from sequencing import config, flow_config, sequence_config
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
        elsewhere = '' if file or os.path.basename(path) == 'config.py' else (
            ' A config.py counts only in the folder where the command is run; --config_file names one elsewhere.'
        )  # fmt: skip
        raise UserError(f'--config {name}: {path} has no such function.{meant} It has {", ".join(sorted(found))}.'
                        f'{elsewhere}')  # fmt: skip
    try:
        made = found[name]()
    except UserError as error:
        raise UserError(f'{path}, {name}(): {error}') from None
    except Exception as error:
        raise UserError(_told(error, path)) from error
    if not isinstance(made, Config):
        raise UserError(f'{path}, {name}() has to return a sequencing.config.Config; got {type(made).__name__}.')
    changed = override(made, settings)
    for setting in settings:
        part, _, kind = setting.partition('.kind=')
        if kind:
            note(f'--set {setting}: {part} has the defaults of its new kind, of full size; --set its other fields too')
    defaults, before, after = flatten(Config()), flatten(made), flatten(changed)
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
        raise UserError(_told(error, path)) from error
    return module


def _told(error, path):
    """What a mistake in a configuration's file is; of a field that there is not, which there are."""
    place = f'{path}, line {_line(error, path)}'
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kinds = [*vars(config).values(), *vars(flow_config).values(), *vars(sequence_config).values()]
    kind = next((kind for kind in kinds if unknown and getattr(kind, '__name__', '') == unknown[1]), None)
    if not dataclasses.is_dataclass(kind):
        return f'{place}: {type(error).__name__}: {error}'
    names = [field.name for field in dataclasses.fields(kind)]
    close = difflib.get_close_matches(unknown[2], names, n=1)
    meant = f' Did you mean {close[0]}?' if close else ''
    return f'{place}: {unknown[1]} has no field {unknown[2]}.{meant} It has {", ".join(names)}.'


def _line(error, path):
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else '?'
