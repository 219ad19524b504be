"""Reads TensorFlow's checkpoints (since 0.12) without TensorFlow: NAME.index and NAME.data-….

The format is that of tensorflow/core/util/tensor_bundle and lib/io/format.cc: the index is a sorted
table as in LevelDB, from each variable's name to a message of protocol buffers with its dtype,
shape, data file, offset and size. The data files hold the bytes alone.
"""

import shutil
import struct
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401 adds "bfloat16" to NumPy
import numpy as np

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48  # two handles, padded, and the magic number
_TRAILER = 5  # of a block: the kind of compression, and a checksum

# NumPy's dtype of each number in tensorflow/core/framework/types.proto.
_DTYPES = {
    **{1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 9: "int64"},
    **{10: "bool", 14: "bfloat16", 17: "uint16", 19: "float16", 22: "uint32", 23: "uint64"},
}


def read_tf_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint by the names of their variables.

    Variables of other types than numbers, such as the text that describes a Keras model's objects,
    are left out. bfloat16 becomes float32, which holds all its values.

    Args:
      path: the file NAME.index; the data files are beside it.

    Raises:
      FileNotFoundError: a data file is missing.
      Exception: any kind, for a damaged file; `segjax.pretrained.files` names the file.
    """
    entries = dict(_entries(path.read_bytes()))
    header = _message(entries.pop(b""))
    if header.get(2, [0])[0] != 0:
        raise ValueError("its numbers are big-endian")
    shards = header[1][0]
    data = [
        path.with_name(f"{path.stem}.data-{shard:05d}-of-{shards:05d}") for shard in range(shards)
    ]
    for file in data:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; it belongs to {path}")
    arrays = {}
    for name, raw in entries.items():
        entry = _message(raw)
        if entry[1][0] not in _DTYPES:
            continue
        if 7 in entry:
            raise ValueError(f"the variable {name.decode()} is in parts, which are not read")
        arrays[name.decode()] = _array(entry, data[entry.get(3, [0])[0]])
    return arrays


def read_tf_archive(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of the checkpoint in a .tar.gz; see `read_tf_checkpoint`.

    Its files are unpacked into a temporary folder, under their last names.
    """
    with tarfile.open(path) as archive, tempfile.TemporaryDirectory() as folder:
        files = {Path(each.name).name: each for each in archive if each.isfile()}
        found = [name for name in files if name.endswith(".index") and name[0] != "."]
        if len(found) != 1:
            raise ValueError(f"it holds {len(found)} TensorFlow checkpoints (NAME.index)")
        prefix = found[0].removesuffix("index")
        for name, member in files.items():
            content = archive.extractfile(member) if name.startswith(prefix) else None
            if content is not None:
                with (Path(folder) / name).open("wb") as file:
                    shutil.copyfileobj(content, file)
        try:
            return read_tf_checkpoint(Path(folder) / found[0])
        except FileNotFoundError as error:
            raise ValueError(f"it lacks a data file of {found[0]}") from error


def _array(entry: dict, file: Path) -> np.ndarray:
    # A field of 0 is left out of a message. Dimensions are messages of their own.
    shape = [_message(dimension).get(1, [0])[0] for dimension in _message(entry[2][0]).get(2, [])]
    dtype, count = np.dtype(_DTYPES[entry[1][0]]), int(np.prod(shape, dtype=object))
    if count * dtype.itemsize != entry.get(5, [0])[0]:
        raise ValueError(f"an array of shape {shape} has {entry.get(5, [0])[0]} bytes")
    with file.open("rb") as opened:
        array = np.fromfile(opened, dtype, count, offset=entry.get(4, [0])[0])
    if array.size != count:
        raise ValueError(f"{file.name} is too short")
    array = array.reshape(shape)
    return array.astype(np.float32) if dtype.name == "bfloat16" else array


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a table: an index block names the blocks that hold them."""
    footer = table[-_FOOTER:]
    if len(footer) < _FOOTER or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError("it does not end as TensorFlow's checkpoints do")
    _, _, offset, size = _varints(footer, 4)
    for _, handle in _block(table, offset, size):
        yield from _block(table, *_varints(handle, 2))


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a block. A key leaves out what it shares with the one before.

    After them the block has an array of positions, which readers of single keys need.
    """
    block = table[offset : offset + size]
    if len(table) < offset + size + _TRAILER:
        raise ValueError("a block exceeds the file")
    if table[offset + size] != 0:
        raise ValueError("its index is compressed")
    (restarts,) = struct.unpack("<I", block[-4:])
    place, end, key = 0, size - 4 * (restarts + 1), b""
    while place < end:
        shared, rest, length = _varints(block[place : place + 30], 3)
        place += sum(map(_varint_length, (shared, rest, length)))
        key = key[:shared] + block[place : place + rest]
        place += rest + length
        yield key, block[place - length : place]


def _message(raw: bytes) -> dict[int, list]:
    """Returns the values of a message by the numbers of their fields: ints or bytes."""
    fields, place = {}, 0
    while place < len(raw):
        (tag,) = _varints(raw[place:], 1)
        place += _varint_length(tag)
        field, kind = tag >> 3, tag & 7
        if kind in (0, 2):
            (value,) = _varints(raw[place:], 1)
            place += _varint_length(value)
            if kind == 2:
                place += value
                value = raw[place - value : place]
        elif kind in (1, 5):  # eight or four bytes
            length = 8 if kind == 1 else 4
            place += length
            value = raw[place - length : place]
        else:
            raise ValueError(f"a message has a field of kind {kind}")
        fields.setdefault(field, []).append(value)
    return fields


def _varints(raw: bytes, count: int) -> list[int]:
    """Returns the first numbers, each in groups of seven bits from the lowest."""
    numbers, number, shift = [], 0, 0
    for byte in raw:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number = shift = 0
            if len(numbers) == count:
                return numbers
    raise ValueError("it ends within a number")


def _varint_length(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))
