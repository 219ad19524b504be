"""TensorFlow's checkpoints are read without TensorFlow."""

import shutil
import struct
import tarfile

import ml_dtypes
import numpy as np
import pytest

from segjax import pretrained
from segjax.pretrained import read_weights
from tests.fixtures.reference_weights import FOLDER, reference_state
from tests.pretrained.source_shapes import source_shapes
from tests.pretrained.test_files import assert_same

PREFIX = "tensorflow.ckpt-30000"


@pytest.fixture
def copied(tmp_path):
    """A folder with TensorFlow's own checkpoint, and the path of its index."""
    for path in FOLDER.glob(f"{PREFIX}.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / f"{PREFIX}.index"


def varint(number):
    groups = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def field(number, value):
    """A field of a message of protocol buffers; those that are 0 are left out."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value) if value else b""


def written(path, arrays, *, block=2, **extra):
    """Writes a checkpoint as TensorFlow does, with `block` variables in each block of the index.

    Args:
      extra: more of each entry's message: {"field7": bytes}.
    """
    dtypes = {"float32": 1, "int64": 9, "bfloat16": 14}
    entries, data = {b"": field(1, 1) + field(3, field(1, 1))}, b""
    for name, array in sorted(arrays.items()):
        shape = b"".join(field(2, field(1, length)) for length in array.shape)
        entry = field(1, dtypes[array.dtype.name]) + field(2, shape) + field(4, len(data))
        entry += field(5, array.nbytes) + varint(6 << 3 | 5) + b"\0\0\0\0"
        entries[name.encode()] = entry + b"".join(
            field(int(key.removeprefix("field")), value) for key, value in extra.items()
        )
        data += array.tobytes()
    table, handles = b"", {}

    def add(pairs):
        nonlocal table
        packed, last = b"", b""
        for key, value in pairs:
            shared = 0
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
            packed += varint(shared) + varint(len(key) - shared) + varint(len(value))
            packed += key[shared:] + value
            last = key
        packed += struct.pack("<II", 0, 1)
        handle = varint(len(table)) + varint(len(packed))
        table += packed + b"\0" * 5
        return handle

    pairs = list(entries.items())
    for first in range(0, len(pairs), block):
        handles[pairs[first : first + block][-1][0]] = add(pairs[first : first + block])
    footer = add([]) + add(handles.items())
    table += footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    path.write_bytes(table)
    path.with_name(f"{path.stem}.data-00000-of-00001").write_bytes(data)


def test_tensorflows_own_checkpoint_gives_its_arrays(copied):
    with np.load(FOLDER / "tensorflow_arrays.npz") as expected:
        expected = dict(expected)
    assert len(expected) > 16  # names are written in full every sixteen
    assert_same(read_weights(copied), expected)
    assert_same(read_weights(copied.parent), expected)
    assert_same(read_weights(copied.with_suffix("")), expected)


def test_an_archive_as_published_gives_the_same_arrays(copied, tmp_path):
    path = tmp_path / "model_2018_01_29.tar.gz"

    def packed(*names):
        with tarfile.open(path, "w:gz") as archive:
            for name in names:
                place = copied.with_name(name.rpartition("/")[2])
                archive.add(place if place.exists() else copied, arcname=name)

    data = [f"../model/{PREFIX}.data-0000{i}-of-00002" for i in (0, 1)]
    packed("model/frozen_inference_graph.pb", f"../model/{PREFIX}.index", *data, "model/._x.index")
    assert_same(read_weights(path), read_weights(copied))
    assert not (tmp_path.parent / "model").exists()
    packed(f"model/{PREFIX}.index", "model/other.index")
    with pytest.raises(ValueError, match=r"29\.tar\.gz: .*it holds 2 TensorFlow checkpoints"):
        read_weights(path)
    packed(f"model/{PREFIX}.index")
    with pytest.raises(
        ValueError, match=rf"29\.tar\.gz: .*it lacks a data file of {PREFIX}\.index"
    ):
        read_weights(path)
    path.write_text("<html>Not found</html>")
    with pytest.raises(ValueError, match=r"29\.tar\.gz: damaged or not a \.tar\.gz with one"):
        read_weights(path)


def test_an_index_of_many_blocks_and_long_numbers_is_read(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"layer_{i}/weights": rng.normal(size=(i, 70)).astype(np.float32) for i in range(9)}
    arrays |= {"step": np.array(2**40), "half": np.array([1.5, 0.1], ml_dtypes.bfloat16)}
    path = tmp_path / "model.ckpt.index"
    for block in (1, 2, 100):
        written(path, arrays, block=block)
        expected = arrays | {"half": arrays["half"].astype(np.float32)}
        assert_same(read_weights(path), expected)


def test_a_checkpoint_converts(tmp_path):
    name = "tf/mobilenet_v2"
    state = reference_state(source_shapes(name))
    written(tmp_path / "model.ckpt-1.index", state | {"global_step": np.array(1)}, block=40)
    found = pretrained.load(name, tmp_path / "model.ckpt-1.index").variables["params"]
    kernel = found["expanded_conv_16"]["project"]["convolution"]["kernel"]
    expected = state["MobilenetV2/expanded_conv_16/project/weights"]
    np.testing.assert_array_equal(kernel, expected)


def test_what_is_missing_or_not_read_is_named(copied, tmp_path):
    data = copied.with_name(f"{PREFIX}.data-00001-of-00002")
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"{PREFIX}\.index: damaged .*data-00001-of-00002 is too"):
        read_weights(copied)
    data.unlink()
    with pytest.raises(FileNotFoundError, match=r"data-00001-of-00002: no such file; it belongs"):
        read_weights(copied)
    shutil.copy(copied, tmp_path / "other.index")
    with pytest.raises(ValueError, match=rf": a folder; .*found 2: other\.index, {PREFIX}\.index"):
        read_weights(tmp_path)
    path = tmp_path / "parts.index"
    written(path, {"w": np.zeros(2, np.float32)}, field7=b"x")
    with pytest.raises(ValueError, match=r"parts\.index: .*the variable w is in parts"):
        read_weights(path)


def test_a_damaged_index_is_named_wherever_it_is_cut(copied):
    whole = copied.read_bytes()
    for length in [0, 10, 47, *range(48, len(whole), 40)]:
        copied.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"^{copied}: damaged or not a TensorFlow"):
            read_weights(copied)
    # The footer alone, with blocks that are not there.
    copied.write_bytes(whole[-48:])
    with pytest.raises(ValueError, match=r"a block exceeds the file|within a number"):
        read_weights(copied)
