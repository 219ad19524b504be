"""Unpickles arrays in plain containers, and nothing else.

A pickle is a program that may import and call anything. This reader imports no name from a file: it
looks each one up in a short table of its own constructors. The constructors' results have no
methods of PyTorch or NumPy that a file could call. Every other name becomes an `Inert` class, which
does nothing: checkpoints hold callbacks and settings beside the arrays. `plain` refuses it.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np


class RefusedPickle(ValueError):
    """A pickle holds something other than arrays in plain containers."""


class Constructor:
    """A function that a pickle may call, but whose attributes it cannot set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setstate__(self, state):
        raise RefusedPickle("the pickle sets attributes of a function")


class ArrayUnpickler(pickle.Unpickler):
    """Reads one pickle of numbers, strings, lists, tuples, dicts and arrays.

    Arrays are returned as objects with a method `array()`; `plain` turns them into NumPy arrays.
    Objects of any other kind are returned as `Inert` ones.

    Args:
      file: a file opened for reading in binary mode.
      names: replacements by "module.name" of names that the pickle may use besides NumPy's.
      storage: maps a persistent id to its replacement; by default, persistent ids are errors.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        names: Mapping[str, Any] | None = None,
        storage: Callable[[Any], Any] | None = None,
    ):
        # NumPy arrays pickled by Python 2 are strings with one character for each byte.
        super().__init__(file, encoding="latin1")
        self._names = {**_NAMES, **(names or {})}
        self._storage = storage

    def find_class(self, module: str, name: str):
        full = f"{module}.{name}"
        if full in self._names:
            return self._names[full]
        return type("Inert", (Inert,), {"__slots__": (), "source": full})

    def persistent_load(self, pid):
        if self._storage is None:
            raise RefusedPickle(f"the pickle refers to {pid!r}, which it does not hold")
        return self._storage(pid)


class Inert:
    """Stands for a name that a pickle uses: takes any arguments, state and entries; keeps none.

    It is a class, because a pickle makes most objects by a class's `__new__`.

    Attributes:
      source: the name in the pickle, "module.name".
    """

    __slots__ = ()
    source = ""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return self

    def __setitem__(self, key, value):
        pass

    # A pickle may set the state of the class, too.
    @staticmethod
    def __setstate__(state):
        pass

    @staticmethod
    def append(entry):
        """Ignores an entry of a list."""

    extend = add = append


def plain(value: Any) -> Any:
    """Replaces the arrays in nested dicts and lists by NumPy arrays.

    Raises:
      RefusedPickle: something is not a number, a string, a container of those, or an array.
    """
    if isinstance(value, Inert) or (isinstance(value, type) and issubclass(value, Inert)):
        raise RefusedPickle(
            f"the pickle uses {value.source}, which this reader does not import or call; "
            "expected only arrays in dicts, lists and tuples. If you trust the file, load it "
            "with the program that wrote it and save only the arrays"
        )
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value.array() if hasattr(value, "array") else value


class _Dict(dict):
    """An OrderedDict without its attributes, such as PyTorch's `_metadata`."""

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
    """A `numpy.ndarray`. Its pickled state is version, shape, dtype, Fortran order, and bytes."""

    __slots__ = ("_dtype", "_is_fortran", "_raw", "_shape")

    def __init__(self, *_):
        self._shape, self._dtype, self._is_fortran, self._raw = None, None, False, b""

    def __setstate__(self, state):
        self._shape, self._dtype, self._is_fortran, self._raw = state[-4:]

    def array(self) -> np.ndarray:
        order = "F" if self._is_fortran else "C"
        return _Buffer(self._raw, self._dtype, self._shape, order).array()


class _Buffer:
    """An array as bytes, which are decoded only if the array is wanted."""

    __slots__ = ("_dtype", "_order", "_raw", "_shape")

    def __init__(self, raw, dtype, shape, order="C"):
        self._raw, self._dtype, self._shape, self._order = raw, dtype, shape, order

    def array(self) -> np.ndarray:
        dtype = self._dtype.dtype() if isinstance(self._dtype, _Dtype) else None
        if dtype is None or not isinstance(self._raw, bytes | bytearray | str):
            raise RefusedPickle("expected arrays of numbers")
        raw = self._raw.encode("latin1") if isinstance(self._raw, str) else self._raw
        native = np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="))
        return native.reshape(self._shape, order="F" if self._order == "F" else "C")


def _scalar(dtype, raw) -> _Buffer:
    return _Buffer(raw, dtype, ())


def _encode(text, encoding="latin1") -> bytes:
    """Encodes text as bytes: how protocol 2 stores the bytes of Python 3."""
    if encoding != "latin1":
        raise RefusedPickle(f"the pickle uses the encoding {encoding}")
    return str.encode(text, "latin1")


_NAMES = {
    "collections.OrderedDict": Constructor(_Dict),
    "_codecs.encode": Constructor(_encode),
    "numpy.dtype": Constructor(_Dtype),
    "numpy.ndarray": "ndarray",  # only an argument of _reconstruct
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray._reconstruct"] = Constructor(_Array)
    _NAMES[f"{_core}.multiarray.scalar"] = Constructor(_scalar)
    _NAMES[f"{_core}.numeric._frombuffer"] = Constructor(_Buffer)
