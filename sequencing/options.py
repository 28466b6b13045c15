"""Frozen, typed, nested dataclasses as configuration: checks, JSON and `--set`, with messages a user can act on.

A field is declared with `option(default, help, ...)`; its limits live beside it. A field may be another dataclass, a
tuple of them, or one of several (a `Union`), told apart by their `kind`. Nothing here opens a file.
"""

import dataclasses
import difflib
import json
import types
import typing

from sequencing.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot be: the message names the field as the user types it, and what would be legal."""


def option(default, help, *, choices=None, at_least=None, above=None, at_most=None, below=None):
    """Declares a field of a configuration dataclass.

    Args:
      default: value; a mutable or nested default is given as a zero-argument callable.
      help: one line on what the field means and when to change it.
      choices: the legal values.
      at_least, above, at_most, below: limits of a number, or of each number in a tuple.
    """
    metadata = dict(help=help, choices=choices, at_least=at_least, above=above, at_most=at_most, below=below)
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check(config, path=''):
    """Refuses a value of the wrong type or outside its limits, and whatever a dataclass's own `problems` finds.

    Args:
      config: a dataclass instance made of `option` fields. Its method `problems(self)`, if it has one, yields
        `(field name, message)` for combinations that cannot be.
      path: dotted path of `config` in the whole.
    Raises:
      ConfigError: names the field by its whole path.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        where = f'{path}{field.name}'
        _check_type(value, hints[field.name], where)
        for number in value if isinstance(value, tuple) else (value,):
            _check_limits(number, field.metadata, where)
        for inner, inner_where in _dataclasses_in(value, where):
            check(inner, inner_where + '.')
    for name, message in getattr(config, 'problems', lambda: ())():
        raise ConfigError(f'{path}{name} {message}')


def _dataclasses_in(value, where):
    if dataclasses.is_dataclass(value):
        yield value, where
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            if dataclasses.is_dataclass(item):
                yield item, f'{where}[{i}]'


def _check_limits(value, limits, where):
    choices = limits.get('choices')
    if choices and value not in choices:
        raise ConfigError(f'{where} is one of {", ".join(map(repr, choices))}; got {value!r}.{_meant(value, choices)}')
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    tests = (
        ('at_least', 'at least', lambda limit: value >= limit),
        ('above', 'above', lambda limit: value > limit),
        ('at_most', 'at most', lambda limit: value <= limit),
        ('below', 'below', lambda limit: value < limit),
    )
    stated = [(words, limits[key], test) for key, words, test in tests if limits.get(key) is not None]
    if not all(test(limit) for _, limit, test in stated):
        legal = ' and '.join(f'{words} {limit}' for words, limit, _ in stated)
        raise ConfigError(f'{where} is {limits["help"]}: a number {legal}; got {value!r}.')


def _options_of(hint):
    """The members of a Union, or the hint alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value, hint):
    if hint is typing.Any:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, member) for member in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint):
    if typing.get_origin(hint) is tuple:
        return f'a list of {_type_name(typing.get_args(hint)[0])}'
    names = {float: 'a number', int: 'a whole number', bool: 'true or false', str: 'a text', type(None): 'nothing'}
    return ' or '.join(names.get(member, getattr(member, '__name__', str(member))) for member in _options_of(hint))


def _check_type(value, hint, where):
    if not _fits(value, hint):
        raise ConfigError(f'{where} takes {_type_name(hint)}; got {value!r}.')


def _meant(word, known):
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f' Did you mean {close[0]!r}?' if close else ''


def to_dict(config):
    """A dataclass as plain dicts, lists, texts and numbers; `from_dict` is its inverse."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_dict(item) for item in config]
    return config


def to_json(config):
    """A dataclass as indented JSON text."""
    return json.dumps(to_dict(config), indent=2, ensure_ascii=False) + '\n'


def from_dict(kind, values, path=''):
    """Builds a dataclass of type `kind` from what `to_dict` gave; missing fields take their defaults.

    Raises:
      ConfigError: an unknown field, or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in names:
            raise ConfigError(
                f'{path}{name} is not a field of {kind.__name__}.{_meant(name, names)} Fields: {", ".join(names)}.'
            )
    return kind(**{name: _from_value(hints[name], value, f'{path}{name}') for name, value in values.items()})


def _from_value(hint, value, where):
    members = [member for member in _options_of(hint) if dataclasses.is_dataclass(member)]
    if isinstance(value, dict) and members:
        return from_dict(_member_of_kind(members, value.get('kind'), where), value, where + '.')
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        inner = typing.get_args(hint)[0]
        return tuple(_from_value(inner, item, f'{where}[{i}]') for i, item in enumerate(value))
    _check_type(value, hint, where)
    return float(value) if hint is float else value


def _kind_of(member):
    return next((f.default for f in dataclasses.fields(member) if f.name == 'kind'), None)


def _member_of_kind(members, kind, where):
    if len(members) == 1 or kind is None:
        return members[0]
    kinds = {_kind_of(member): member for member in members}
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f'{where}.kind is one of {", ".join(map(repr, kinds))}; got {kind!r}.{_meant(kind, kinds)}')
    return kinds[kind]


def override(config, settings):
    """Applies the `a.b=value` texts of `--set`, in order, and returns the new configuration, checked as a whole.

    A value is read as JSON where it is JSON (`3`, `0.1`, `true`, `null`, `["a", "b"]`), else as the text itself; no
    text where a list is due is the empty one. Setting the `kind` of a part that comes in kinds replaces it by that kind
    with its defaults.

    Raises:
      ConfigError: no `=`, an unknown field, or a value that the field does not take.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    whole = dataclasses.make_dataclass('Whole', [(f.name, f.type, f) for f in dataclasses.fields(config)], frozen=True)
    changed = whole(**values)  # the same fields without the checks, which are due when all settings are in
    for setting in settings:
        path, equals, text = setting.partition('=')
        if not equals or not path:
            raise ConfigError(f'--set takes FIELD=VALUE, as in --set train.max_steps=1000; got {setting!r}.')
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        changed = _override(changed, path.split('.'), value, text, path)
    return type(config)(**{name: getattr(changed, name) for name in values})


def _override(config, names, value, text, path):
    hints = typing.get_type_hints(type(config))
    name, *rest = names
    if name not in hints:
        raise ConfigError(f'{path}: {name!r} is not a field here.{_meant(name, hints)} Fields: {", ".join(hints)}.')
    hint, old = hints[name], getattr(config, name)
    if rest:
        if rest == ['kind']:
            members = [member for member in _options_of(hint) if dataclasses.is_dataclass(member)]
            if len(members) > 1:
                return dataclasses.replace(config, **{name: _member_of_kind(members, value, path.rpartition('.')[0])()})
        if isinstance(old, tuple):
            return dataclasses.replace(config, **{name: _override_item(old, rest, value, text, path)})
        if not dataclasses.is_dataclass(old):
            raise ConfigError(f'{path}: {name} holds {old!r} and has no field {rest[0]!r}.')
        return dataclasses.replace(config, **{name: _override(old, rest, value, text, path)})
    if not _fits(value, hint) and _fits(text, hint):
        value = text
    if isinstance(value, str) and typing.get_origin(hint) is tuple:
        value = [value] if value else []
    return dataclasses.replace(config, **{name: _from_value(hint, value, path)})


def _override_item(items, names, value, text, path):
    index, *rest = names
    if not index.isdigit() or int(index) >= len(items) or not rest:
        raise ConfigError(f'{path}: a list is addressed by number, 0 to {len(items) - 1}, then field; got {index!r}.')
    changed = _override(items[int(index)], rest, value, text, path)
    return items[: int(index)] + (changed,) + items[int(index) + 1 :]


def flatten(config, path=''):
    """All plain values as a dict of dotted path to value; tuples of dataclasses are addressed by number."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        where = f'{path}{field.name}'
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, where + '.'))
        elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            for i, item in enumerate(value):
                flat.update(flatten(item, f'{where}.{i}.'))
        else:
            flat[where] = value
    return flat
