"""Files of weights: every format's arrays, and what none of them may do."""

import io
import os
import pickle
import shutil
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from segjax.pretrained import read_weights
from tests.fixtures.reference_weights import FOLDER

ARRAYS = {
    "kernel": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "half": np.array([1.5, -2.25], np.float16),
    "count": np.array(7),
}
LEGACY_HEADER = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]


def write(path, values=ARRAYS):
    """Writes arrays in the format of the suffix; "legacy.pth" is PyTorch's before 1.6."""
    if path.suffix == ".npz":
        np.savez(path, **values)
    elif path.suffix == ".safetensors":
        save_file({name: np.array(array, order="C") for name, array in values.items()}, path)
    elif path.suffix == ".pth":
        shutil.copy(
            FOLDER / ("torch_legacy.pth" if "legacy" in path.name else "torch_zip.pth"), path
        )
    else:
        path.write_bytes(pickle.dumps(values))
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_both_formats_of_pytorch_give_the_arrays_that_were_saved(name):
    with np.load(FOLDER / "torch_arrays.npz") as expected:
        assert_same(read_weights(FOLDER / name), dict(expected))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_arrays_come_back_as_they_were_written(tmp_path, suffix):
    assert_same(read_weights(write(tmp_path / f"weights{suffix}")), ARRAYS)


def test_bfloat16_becomes_the_float32_of_the_same_value(tmp_path):
    values = np.array([1.5, -3e38, 0.1], ml_dtypes.bfloat16)
    save_file({"x": values}, tmp_path / "half.safetensors")
    assert_same(read_weights(tmp_path / "half.safetensors"), {"x": values.astype(np.float32)})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays_come_back_in_every_protocol(tmp_path, protocol):
    path = tmp_path / "zoo.pkl"
    values = ARRAYS | {"big": np.arange(3, dtype=">i4"), "scalar": np.float32(2)}
    path.write_bytes(pickle.dumps({"model": values, "__author__": "a zoo"}, protocol))
    expected = values | {"big": np.arange(3, dtype=np.int32), "scalar": np.array(2, np.float32)}
    assert_same(read_weights(path), expected)


def test_pickles_of_python_2_keep_their_bytes(tmp_path):
    class Python2Pickler(pickle._Pickler):
        def save_string(self, value):
            self.write(b"T" + struct.pack("<i", len(value)) + value)

        dispatch = pickle._Pickler.dispatch | {bytes: save_string}

    file = io.BytesIO()
    values = {"blobs": {"conv1_w": np.arange(-3, 3, dtype=np.float32)}}
    Python2Pickler(file, protocol=2).dump(values)
    (tmp_path / "R-50.pkl").write_bytes(file.getvalue())
    assert_same(read_weights(tmp_path / "R-50.pkl"), values["blobs"])


def test_the_models_arrays_are_found_within_a_checkpoint(tmp_path):
    def read(values):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(values))
        return read_weights(tmp_path / "x.pkl")

    inner = {f"module.{name}": array for name, array in ARRAYS.items()}
    for key in ("state_dict", "model", "model_state_dict"):
        assert_same(read({key: inner, "epoch": 3}), ARRAYS)
    for values, named in (
        (
            {"a": ARRAYS["half"], "rate": 0.1},
            r"x.pkl: .*nothing but arrays, found 'rate' \(a float",
        ),
        ([ARRAYS["half"]], "x.pkl: expected a dict of arrays, found a list"),
        ({}, "x.pkl: expected a dict of arrays, found an empty dict"),
    ):
        with pytest.raises(ValueError, match=named):
            read(values)


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker):
    """Pickles that would write a file, or lead there, and what of them the error names."""
    text = f"open({str(marker)!r}, 'w').close()"
    return {
        "builtins.eval": pickle.dumps({"model": Calls(eval, text)}),
        "posix.system": pickle.dumps(Calls(os.system, f"touch {marker}")),
        "builtins.getattr": pickle.dumps(Calls(getattr, "", "join")),
        "numpy.load": pickle.dumps(np.load),
        "builtins.exec": f"cbuiltins\nexec\n(S{text!r}\ntR.".encode(),
        "os.system": f"(S'touch {marker}'\nios\nsystem\n.".encode(),  # the opcode INST
        "OrderedDict.fromkeys": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
        "sets attributes of a function": b"ccollections\nOrderedDict\n}S'x'\nK\x01sb.",
        "refers to 'storage'": b"S'storage'\nQ.",
    }


def as_file(path, pickled):
    """Writes a pickle as the main one of a file of that suffix."""
    if path.name == "zip.pth":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
    elif path.suffix == ".pth":
        path.write_bytes(b"".join(map(pickle.dumps, LEGACY_HEADER)) + pickled + pickle.dumps([]))
    else:
        path.write_bytes(pickled)
    return path


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "zoo.pkl"])
def test_no_file_can_run_code(tmp_path, name):
    marker = tmp_path / "ran"
    for named, pickled in attacks(marker).items():
        path = as_file(tmp_path / name, pickled)
        with pytest.raises(ValueError, match=named.replace(".", r"\.")) as refused:
            read_weights(path)
        assert str(refused.value).startswith(f"{path}: "), named
    assert not marker.exists()


def test_the_attacks_work_on_an_ordinary_unpickler(tmp_path):
    marker = tmp_path / "ran"
    for named in ("builtins.eval", "posix.system", "builtins.exec", "os.system"):
        pickle.loads(attacks(marker)[named])
        assert marker.exists(), named
        marker.unlink()


def test_arrays_of_objects_are_refused(tmp_path):
    objects = np.array([Calls(os.system, f"touch {tmp_path / 'ran'}")])
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"x": objects}))
    np.savez(tmp_path / "x.npz", x=objects, allow_pickle=True)
    for name, named in (
        ("x.pkl", r"x\.pkl: expected arrays of numbers, found one of object"),
        ("x.npz", r"x\.npz: damaged or not"),
    ):
        with pytest.raises(ValueError, match=named):
            read_weights(tmp_path / name)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"x": np.array([None])}))
    with pytest.raises(
        ValueError, match=r"x\.pkl: expected arrays of numbers, found one of object"
    ):
        read_weights(tmp_path / "x.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "x.safetensors", "x.npz", "x.pkl"])
def test_a_damaged_file_is_named_wherever_it_is_cut(tmp_path, name):
    whole = write(tmp_path / name).read_bytes()
    for length in [0, 1, 10, *range(20, len(whole), len(whole) // 40), len(whole) - 1]:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"^{tmp_path / name}: ") as error:
            read_weights(tmp_path / name)
        assert "not a" in str(error.value), length
    (tmp_path / name).write_text("<html>Not found</html>" * 50)
    with pytest.raises(ValueError, match=r"damaged or not a"):
        read_weights(tmp_path / name)


def test_a_tensor_larger_than_its_storage_is_an_error(tmp_path):
    path = tmp_path / "short.pth"
    with zipfile.ZipFile(FOLDER / "torch_zip.pth") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            raw = old.read(name)
            new.writestr(name, raw[:-4] if name.endswith("data/0") else raw)
    with pytest.raises(ValueError, match=r"short\.pth: .*shape \(2, 3, 4\) exceeds its storage 0"):
        read_weights(path)


def test_big_endian_archives_hold_the_same_numbers(tmp_path):
    path = tmp_path / "big.pth"
    with zipfile.ZipFile(FOLDER / "torch_zip.pth") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            raw = old.read(name)
            if name.endswith("byteorder"):
                raw = b"big"
            elif name.endswith("data/0"):
                raw = np.frombuffer(raw, "<f4").astype(">f4").tobytes()
            new.writestr(name, raw)
    expected = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(read_weights(path)["float32"], expected)


def test_other_files_and_missing_ones_are_named(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights\.h5: .* \.pth, .*\.pkl"):
        read_weights(tmp_path / "weights.h5")
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        read_weights(tmp_path / "none.pth")
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(ValueError, match=r"single\.npz: .*without a name"):
        read_weights(tmp_path / "single.npz")
