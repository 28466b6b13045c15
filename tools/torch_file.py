"""Reads arrays out of a PyTorch file, without PyTorch and without unpickling anything.

A file of `torch.save` holds a pickle program that describes nested dicts of tensors, and the tensors' bytes: in a zip
archive since PyTorch 1.6, one after the other in a plain file before. The program is not run here: a small
interpreter knows the few operations that build dicts, lists, tuples, texts and numbers, and the two or three names that
stand for a tensor; whatever else a file asks for is refused. So nothing in a file can make anything happen.
"""

import io
import mmap
import pickletools
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from sequencing.errors import UserError

_DTYPES = {
    'FloatStorage': np.dtype('<f4'),
    'DoubleStorage': np.dtype('<f8'),
    'HalfStorage': np.dtype('<f2'),
    'BFloat16Storage': np.dtype('<u2'),
    'LongStorage': np.dtype('<i8'),
    'IntStorage': np.dtype('<i4'),
    'ShortStorage': np.dtype('<i2'),
    'CharStorage': np.dtype('i1'),
    'ByteStorage': np.dtype('u1'),
    'BoolStorage': np.dtype('?'),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MARK = object()


class _Name(NamedTuple):
    """A Python name that the file mentions; it is never looked up."""

    text: str


class _Storage(NamedTuple):
    """A flat array that tensors are views of."""

    kind: str  # as in 'FloatStorage'
    key: str
    size: int  # elements


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


def read_torch_file(path):
    """The nested dicts and lists of a PyTorch file, with NumPy arrays in place of tensors.

    Raises:
      UserError: not a PyTorch file, cut short, or one that holds more than weights.
    """
    try:
        with open(path, 'rb') as file:
            if file.read(2) != b'PK':
                # Mapped, because it then gives what there is, however much a damaged length asks for.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    return _read_legacy(content)
        with zipfile.ZipFile(path) as archive:
            return _read_zip(archive)
    except _Refused as error:
        raise UserError(f'{path} holds more than weights: {error}. Save state_dict() alone.') from error
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise UserError(f'{path} cannot be read as a file of torch.save: {reason}') from error


# What a damaged byte may end in: errors of the file, of the archive, of inflating, of the description of the arrays.
_DAMAGED = (OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError,
            AssertionError, struct.error, zlib.error, zipfile.BadZipFile)  # fmt: skip


class _Refused(Exception):
    pass


def _read_zip(archive):
    program = next((name for name in archive.namelist() if name.endswith('/data.pkl')), None)
    if program is None:
        raise ValueError('it is a zip archive without data.pkl, so something else')
    folder = program[: -len('data.pkl')]
    described = _interpret(io.BytesIO(archive.read(program)))
    byteorder = folder + 'byteorder'
    if byteorder in archive.namelist() and archive.read(byteorder) != b'little':
        raise ValueError('its numbers are not little-endian')
    return _with_arrays(described, lambda key: archive.read(f'{folder}data/{key}'), {})


def _read_legacy(file):
    if _interpret(file) != _LEGACY_MAGIC:
        raise ValueError('it starts like no version of it')
    _interpret(file)  # protocol version
    _interpret(file)  # sizes of the writer's machine
    described = _interpret(file)
    keys = _interpret(file)
    kinds = {}
    _collect_storages(described, kinds)
    contents = {}
    for key in keys:
        count = int.from_bytes(file.read(8), 'little')
        contents[key] = file.read(count * _DTYPES[kinds[key]].itemsize)
    return _with_arrays(described, contents.__getitem__, {})


def _collect_storages(value, kinds):
    if isinstance(value, _Tensor):
        kinds[value.storage.key] = value.storage.kind
    elif isinstance(value, dict):
        for item in value.values():
            _collect_storages(item, kinds)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _collect_storages(item, kinds)


def _with_arrays(value, content, cache):
    """`value` with arrays in place of tensors; `content(key)` gives a storage's bytes."""
    if isinstance(value, _Tensor):
        storage, offset, shape, strides = value
        if storage.key not in cache:
            flat = np.frombuffer(content(storage.key), _DTYPES[storage.kind])
            if storage.kind == 'BFloat16Storage':  # the upper half of a float32
                flat = (flat.astype(np.uint32) << 16).view(np.float32)
            cache[storage.key] = flat
        flat = cache[storage.key]
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        if min((offset, *shape, *strides)) < 0 or 0 not in shape and last >= len(flat):
            raise ValueError('a tensor reaches outside its storage')
        steps = [stride * flat.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).copy()
    if isinstance(value, dict):
        return {key: _with_arrays(item, content, cache) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_arrays(item, content, cache) for item in value)
    if isinstance(value, (_Name, _Storage)):
        raise _Refused(f'{value} stands where a number, text or tensor should')
    return value


def _interpret(file):
    """One pickle program, from where `file` stands to its end, to what it describes."""
    stack, memo = [], {}

    def since_mark():
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name in ('PROTO', 'FRAME'):
            pass
        elif name == 'MARK':
            stack.append(_MARK)
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ('BINPUT', 'LONG_BINPUT', 'PUT'):
            memo[argument] = stack[-1]
        elif name == 'MEMOIZE':
            memo[len(memo)] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET', 'GET'):
            stack.append(memo[argument])
        elif name == 'GLOBAL':
            stack.append(_Name(argument.replace(' ', '.')))
        elif name == 'STACK_GLOBAL':
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Name(f'{module}.{attribute}'))
        elif name == 'TUPLE':
            stack.append(tuple(since_mark()))
        elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == 'APPEND':
            item = stack.pop()
            stack[-1].append(item)
        elif name == 'APPENDS':
            items = since_mark()
            stack[-1].extend(items)
        elif name == 'SETITEM':
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == 'SETITEMS':
            items = since_mark()
            stack[-1].update(zip(items[::2], items[1::2]))
        elif name == 'BINPERSID':
            stack.append(_storage(stack.pop()))
        elif name == 'REDUCE':
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made_by(function, arguments))
        elif name == 'BUILD':  # attributes of a dict (a state dict's version numbers): not weights
            stack.pop()
            if not isinstance(stack[-1], dict):
                raise _Refused('an object with a state of its own')
        elif name == 'STOP':
            return stack.pop()
        else:
            raise _Refused(f'the operation {name}')
    raise EOFError('it ends in the middle')


_LITERALS = {
    'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'UNICODE', 'BININT', 'BININT1', 'BININT2', 'INT', 'LONG', 'LONG1',
    'LONG4', 'BINFLOAT', 'FLOAT',
}  # fmt: skip
_CONSTANTS = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_DICT': dict,
    'EMPTY_LIST': list,
    'EMPTY_TUPLE': tuple,
}


def _storage(identity):
    """`('storage', type, key, device, size, ...)` to a `_Storage`."""
    if identity[0] != 'storage' or not isinstance(identity[1], _Name):
        raise _Refused(f'an object called {identity[0]!r}')
    kind = identity[1].text.rpartition('.')[2]
    if kind not in _DTYPES or len(identity) > 5 and identity[5] is not None:
        raise _Refused(f'storage of type {identity[1].text}')
    return _Storage(kind, str(identity[2]), identity[4])


def _made_by(function, arguments):
    text = function.text if isinstance(function, _Name) else repr(function)
    if text == 'collections.OrderedDict':
        return dict(*arguments)
    if text == 'torch._utils._rebuild_tensor_v2':
        storage, offset, shape, strides = arguments[:4]
        return _Tensor(storage, offset, tuple(shape), tuple(strides))
    if text == 'torch._utils._rebuild_parameter':
        return arguments[0]
    raise _Refused(f'a call of {text}')
