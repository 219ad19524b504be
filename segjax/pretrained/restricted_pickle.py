"""Unpickles arrays in plain containers, and nothing else.

A pickle is a program that may import and call anything. Here no name in a file is ever imported:
each is looked up in a short table of our own constructors, and a name that is not there is an
error. What the constructors make has no method of PyTorch's or NumPy's that a file could call.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np


class RefusedPickle(ValueError):
    """A pickle asks for something other than an array or a plain container."""


class Constructor:
    """A function that a pickle may call, and whose attributes it cannot set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setstate__(self, state):
        raise RefusedPickle("the pickle sets attributes of a function")


class ArrayUnpickler(pickle.Unpickler):
    """Reads one pickle of numbers, strings, lists, tuples, dicts and arrays.

    Arrays come as objects with a method `array()`, which `plain` calls.

    Args:
      file: open for reading in binary.
      names: further names than NumPy's that the pickle may use, "module.name" to what they become.
      storage: what a persistent id becomes; by default there may be none.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        names: Mapping[str, Any] | None = None,
        storage: Callable[[Any], Any] | None = None,
    ):
        # Of Python 2, NumPy's arrays are strings whose characters stand for bytes.
        super().__init__(file, encoding="latin1")
        self._names = _NAMES | (names or {})
        self._storage = storage

    def find_class(self, module: str, name: str):
        if f"{module}.{name}" not in self._names:
            raise RefusedPickle(
                f"the pickle uses {module}.{name}, which this reader neither imports nor calls; "
                "expected nothing but arrays in dicts, lists and tuples. If the file comes from "
                "where you trust it, load it where it was made and save the arrays alone"
            )
        return self._names[f"{module}.{name}"]

    def persistent_load(self, pid):
        if self._storage is None:
            raise RefusedPickle(f"the pickle refers to {pid!r}, which is not in it")
        return self._storage(pid)


def plain(value):
    """Returns the value with each array as a NumPy array, at any depth of dicts and lists."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value.array() if hasattr(value, "array") else value


class _Dict(dict):
    """An OrderedDict of the file; attributes, such as PyTorch's `_metadata`, are left out."""

    def __setstate__(self, state):
        pass


class _Dtype:
    """A `numpy.dtype` of plain numbers."""

    __slots__ = ("_kind", "_order")

    def __init__(self, kind, *_):
        self._kind, self._order = str(kind), "|"

    def __setstate__(self, state):
        self._order = state[1]

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self._kind)
        if dtype.kind not in "biufc":
            raise RefusedPickle(f"expected arrays of numbers, found one of {dtype}")
        return dtype.newbyteorder(self._order) if self._order in ("<", ">") else dtype


class _Array:
    """A `numpy.ndarray`: its state is version, shape, dtype, whether Fortran's order, and bytes."""

    __slots__ = ("_dtype", "_is_fortran", "_raw", "_shape")

    def __init__(self, *_):
        self._shape, self._dtype, self._is_fortran, self._raw = None, None, False, b""

    def __setstate__(self, state):
        self._shape, self._dtype, self._is_fortran, self._raw = state[-4:]

    def array(self) -> np.ndarray:
        order = "F" if self._is_fortran else "C"
        return _from_buffer(self._raw, self._dtype, self._shape, order).array()


class _Value:
    """An array that is whole at once."""

    __slots__ = ("_array",)

    def __init__(self, array):
        self._array = array

    def array(self) -> np.ndarray:
        return self._array


def _from_buffer(raw, dtype, shape, order="C") -> _Value:
    dtype = dtype.dtype() if isinstance(dtype, _Dtype) else None
    if dtype is None or not isinstance(raw, bytes | bytearray | str):
        raise RefusedPickle("expected arrays of numbers")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    native = np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="))
    return _Value(native.reshape(shape, order="F" if order == "F" else "C"))


def _scalar(dtype, raw) -> _Value:
    return _from_buffer(raw, dtype, ())


def _encode(text, encoding="latin1") -> bytes:
    """What Python 3 pickles bytes as in protocol 2."""
    if encoding != "latin1":
        raise RefusedPickle(f"the pickle uses the encoding {encoding}")
    return str.encode(text, "latin1")


_NAMES = {
    "collections.OrderedDict": Constructor(_Dict),
    "_codecs.encode": Constructor(_encode),
    "numpy.dtype": Constructor(_Dtype),
    "numpy.ndarray": "ndarray",  # an argument of _reconstruct alone
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray._reconstruct"] = Constructor(_Array)
    _NAMES[f"{_core}.multiarray.scalar"] = Constructor(_scalar)
    _NAMES[f"{_core}.numeric._frombuffer"] = Constructor(_from_buffer)
