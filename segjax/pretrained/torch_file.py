"""Reads files of `torch.save` without PyTorch: zip archives (since 1.6) and the older format.

Both hold a pickle and the raw bytes of storages (torch/serialization.py). In the pickle, a tensor
is a call of `torch._utils._rebuild_tensor_v2` on a storage, named by a persistent id. In the
archive, each storage is a file of its own; in the older format, the storages follow the pickle.
"""

import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401 adds "bfloat16" to NumPy
import numpy as np

from segjax.pretrained.restricted_pickle import ArrayUnpickler, Constructor, RefusedPickle, plain
from segjax.pretrained.state_dict import unwrapped

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

# NumPy's dtype of each type of storage; ml_dtypes adds bfloat16.
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


def read_torch_file(path: Path) -> Any:
    """Returns the model's part of the file: a dict of arrays, or whatever is in its place.

    Only this part is read from the storages; see `segjax.pretrained.state_dict.unwrapped`. Arrays
    keep their type, except that bfloat16 becomes float32, which holds all its values.

    Raises:
      RefusedPickle: the part holds anything but arrays, numbers and strings.
      Exception: any kind, for a damaged file; `segjax.pretrained.files` names the file.
    """
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if start.startswith(b"PK\x03\x04"):
            return _read_archive(file)
        if start[257:262] == b"ustar":
            raise ValueError(
                "it has the tar format of the first PyTorch versions; save it with a newer one"
            )
        return _read_legacy(file)


def _read_archive(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("the zip file has no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = "<"
        if f"{folder}byteorder" in names:
            order = {b"little": "<", b"big": ">"}[archive.read(f"{folder}byteorder").strip()]

        def read(key: str, dtype: str) -> np.ndarray:
            return _numbers(archive.read(f"{folder}data/{key}"), dtype, order)

        with archive.open(pickles[0]) as pickled:
            return plain(unwrapped(_unpickle(pickled, _Storages(read))))


def _read_legacy(file: BinaryIO) -> Any:
    if ArrayUnpickler(file).load() != _LEGACY_MAGIC:
        raise ValueError("it does not begin as PyTorch's files do")
    if ArrayUnpickler(file).load() != _LEGACY_VERSION:
        raise ValueError("its version of PyTorch's format is unknown")
    ArrayUnpickler(file).load()  # the sizes of C types; the data is always little-endian
    raw = {}
    storages = _Storages(lambda key, dtype: _numbers(raw[key], dtype, "<"))
    value = _unpickle(file, storages)
    for key in ArrayUnpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        size = count * np.dtype(plain(storages.types[key])).itemsize
        raw[key] = file.read(size)
        if len(raw[key]) != size:
            raise ValueError(f"it ends within storage {key}")
    return plain(unwrapped(value))


def _unpickle(file, storages: "_Storages"):
    def tensor(storage, offset, size, stride, *_):
        return _Tensor(storages, storage, offset, size, stride)

    names: dict[str, Any] = {f"torch.{name}": dtype for name, dtype in _STORAGES.items()}
    names["torch.Size"] = Constructor(tuple)
    names["torch._utils._rebuild_tensor"] = Constructor(tensor)
    names["torch._utils._rebuild_tensor_v2"] = Constructor(tensor)
    names["torch._utils._rebuild_parameter"] = Constructor(lambda data, *_: data)
    return ArrayUnpickler(file, names=names, storage=storages.identify).load()


class _Storages:
    """The storages of a file, each read when a tensor first needs it."""

    def __init__(self, read: Callable[[str, str], np.ndarray]):
        self._read = read
        self._held = {}
        self.types = {}

    def identify(self, pid) -> tuple:
        """Turns a persistent id into (key, dtype, first element)."""
        kind, dtype, key, _, _, *view = pid
        # An inert type is refused if the model has such a tensor.
        is_type = dtype in {*_STORAGES.values()} or isinstance(dtype, type)
        if kind != "storage" or not is_type or not isinstance(key, str):
            raise RefusedPickle(f"the pickle refers to {pid!r}; expected a storage of numbers")
        self.types[key] = dtype
        # Before 1.6, a storage can be a view of another: (its own key, first element, count).
        return key, dtype, view[0][1] if view and view[0] else 0

    def elements(self, key: str, dtype: str) -> np.ndarray:
        if (key, dtype) not in self._held:
            self._held[key, dtype] = self._read(key, dtype)
        return self._held[key, dtype]


class _Tensor:
    """A strided window of a storage."""

    __slots__ = ("_offset", "_size", "_storage", "_storages", "_stride")

    def __init__(self, storages, storage, offset, size, stride):
        self._storages, self._storage = storages, storage
        self._offset, self._size, self._stride = offset, size, stride

    def __setstate__(self, state):
        raise RefusedPickle("the pickle sets attributes of a tensor")

    def array(self) -> np.ndarray:
        key, dtype, first = self._storage
        elements = self._storages.elements(key, plain(dtype))
        offset, count = first + self._offset, int(np.prod(self._size, dtype=object))
        last = offset + sum(
            (n - 1) * step for n, step in zip(self._size, self._stride, strict=True)
        )
        numbers = (offset, *self._size, *self._stride)
        # A tensor with more elements than its storage (an expanded one) is not a trained weight.
        if min(numbers) < 0 or count > elements.size or (count and last >= elements.size):
            raise ValueError(f"a tensor of shape {tuple(self._size)} exceeds its storage {key}")
        strides = [step * elements.itemsize for step in self._stride]
        window = np.lib.stride_tricks.as_strided(elements[offset:], self._size, strides)
        return np.ascontiguousarray(window).reshape(self._size)


def _numbers(raw: bytes, dtype: str, order: str) -> np.ndarray:
    """Decodes a storage's bytes."""
    array = np.frombuffer(raw, np.dtype(dtype))
    if order != {"little": "<", "big": ">"}[sys.byteorder]:
        array = array.byteswap()
    return array.astype(np.float32) if dtype == "bfloat16" else array
