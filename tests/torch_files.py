"""Files as `torch.save` writes them, from NumPy arrays: put together byte by byte, without PyTorch."""

import io
import pickle
import zipfile

import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


def in_old_format(arrays):
    """`{'core': arrays}` in the format before PyTorch 1.6, as bytes; every array as float32."""
    contents = _contents(arrays)
    whole = [pickle.dumps(value, 2) for value in (MAGIC, VERSION, {'little_endian': True})]
    whole += [_described(arrays), pickle.dumps(list(contents), 2)]
    for content in contents.values():
        whole.append((len(content) // 4).to_bytes(8, 'little') + content)
    return b''.join(whole)


def in_zip_archive(arrays):
    """The same in the format since then."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, 'w') as archive:
        archive.writestr('model/data.pkl', _described(arrays))
        archive.writestr('model/byteorder', 'little')
        for key, content in _contents(arrays).items():
            archive.writestr(f'model/data/{key}', content)
    return whole.getvalue()


def _contents(arrays):
    """The bytes of every storage by its key; each second array is kept transposed, as views may be."""
    return {str(i): _stored(i, array).tobytes() for i, array in enumerate(arrays.values())}


def _stored(i, array):
    array = np.asarray(array, '<f4')
    return array.T if i % 2 else array


def _described(arrays):
    """The pickle program of `{'core': arrays}`, whose tensors are calls of names that only PyTorch has."""
    items = [_text(name) + _tensor(i, np.asarray(array)) for i, (name, array) in enumerate(arrays.items())]
    return b'\x80\x02}' + _text('core') + b'ccollections\nOrderedDict\n)R(' + b''.join(items) + b'us.'


def _tensor(i, array):
    strides = np.cumprod([1, *_stored(i, array).shape[:0:-1]])[: array.ndim]  # in elements, last axis first
    strides = strides if i % 2 else strides[::-1]
    storage = _tuple(_text('storage'), b'ctorch\nFloatStorage\n', _text(str(i)), _text('cpu'), _int(array.size), b'N')
    shapes = [_tuple(*map(_int, sizes)) for sizes in (array.shape, strides)]
    return b'ctorch._utils\n_rebuild_tensor_v2\n' + _tuple(storage + b'Q', _int(0), *shapes, b'\x89', b'}') + b'R'


def _text(text):
    return b'X' + len(text.encode()).to_bytes(4, 'little') + text.encode()


def _int(number):
    return b'J' + int(number).to_bytes(4, 'little', signed=True)


def _tuple(*items):
    return b'(' + b''.join(items) + b't'
