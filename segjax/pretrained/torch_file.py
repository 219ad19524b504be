"""Reads what `torch.save` writes, without PyTorch: the archive since 1.6 and the format before.

Both are a pickle, in which a tensor is a call of `torch._utils._rebuild_tensor_v2` on a storage
that a persistent id names, and the storages' raw bytes (torch/serialization.py). In the archive, a
zip file, the bytes are files of their own; before, they follow the pickle.
"""

import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401 gives NumPy its "bfloat16"
import numpy as np

from segjax.pretrained.restricted_pickle import ArrayUnpickler, Constructor, RefusedPickle, plain

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

# Types of storages; the names are NumPy's, with those that ml_dtypes adds.
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
    """Returns what the file holds: dicts and lists of arrays, numbers and strings.

    Arrays keep their type, but bfloat16 becomes float32, which holds all its values.

    Raises:
      RefusedPickle: the file would import or call something.
      Exception: of many kinds, for a damaged file; `segjax.pretrained.files` names the file.
    """
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        if start.startswith(b"PK\x03\x04"):
            return _read_archive(file)
        if start[257:262] == b"ustar":
            raise ValueError(
                "it has the tar format of the first PyTorch; save it again with a newer one"
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
            return plain(_unpickle(pickled, _Storages(read)))


def _read_legacy(file: BinaryIO) -> Any:
    if ArrayUnpickler(file).load() != _LEGACY_MAGIC:
        raise ValueError("it does not begin as PyTorch's files do")
    if ArrayUnpickler(file).load() != _LEGACY_VERSION:
        raise ValueError("its version of PyTorch's format is unknown")
    ArrayUnpickler(file).load()  # sizes of C's types; the bytes are little-endian whatever it says
    raw = {}
    storages = _Storages(lambda key, dtype: _numbers(raw[key], dtype, "<"))
    value = _unpickle(file, storages)
    for key in ArrayUnpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        size = count * np.dtype(storages.types[key]).itemsize
        raw[key] = file.read(size)
        if len(raw[key]) != size:
            raise ValueError(f"it ends within storage {key}")
    return plain(value)


def _unpickle(file, storages: "_Storages"):
    def tensor(storage, offset, size, stride, *_):
        return _Tensor(storages, storage, offset, size, stride)

    names = {f"torch.{name}": dtype for name, dtype in _STORAGES.items()}
    names["torch.Size"] = Constructor(tuple)
    names["torch._utils._rebuild_tensor"] = Constructor(tensor)
    names["torch._utils._rebuild_tensor_v2"] = Constructor(tensor)
    names["torch._utils._rebuild_parameter"] = Constructor(lambda data, *_: data)
    return ArrayUnpickler(file, names=names, storage=storages.identify).load()


class _Storages:
    """The storages of a file, read when a tensor asks for one and held once."""

    def __init__(self, read: Callable[[str, str], np.ndarray]):
        self._read = read
        self._held = {}
        self.types = {}

    def identify(self, pid) -> tuple:
        """Turns a persistent id into (key, dtype, first element)."""
        kind, dtype, key, _, _, *view = pid
        if kind != "storage" or dtype not in {*_STORAGES.values()} or not isinstance(key, str):
            raise RefusedPickle(f"the pickle refers to {pid!r}; expected a storage of numbers")
        self.types[key] = dtype
        # Before 1.6, a storage may be a view of another: (its own key, first element, count).
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
        elements = self._storages.elements(key, dtype)
        offset, count = first + self._offset, int(np.prod(self._size, dtype=object))
        last = offset + sum(
            (n - 1) * step for n, step in zip(self._size, self._stride, strict=True)
        )
        numbers = (offset, *self._size, *self._stride)
        # An expanded tensor, of more elements than its storage, is no trained weight.
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
