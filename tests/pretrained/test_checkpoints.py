"""Checkpoints of training scripts: the arrays alone are read, and prefixes of names are removed."""

import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from segjax import pretrained
from segjax.pretrained import read_weights
from segjax.pretrained.state_dict import without_prefixes
from tests.fixtures.reference_weights import FOLDER
from tests.pretrained.source_shapes import source_shapes, zeros
from tests.pretrained.test_files import Calls, as_file, assert_same

VGG = "torchvision/vgg16"


class Callback:
    """Pickles by its class's `__new__`, with state, entries of a list and of a dict."""

    def __reduce_ex__(self, protocol):
        made = (object.__new__, (Callback,)) if protocol < 2 else (Callback, ())
        return *made, {"best": 0.5}, iter([1, Namespace(x=2)]), iter([("k", {3})])

    def __setstate__(self, state):
        raise AssertionError("the callback was restored")

    __setitem__ = append = __setstate__


def test_lightnings_checkpoint_gives_the_modules_arrays():
    with np.load(FOLDER / "lightning_arrays.npz") as expected:
        assert_same(read_weights(FOLDER / "lightning.ckpt"), dict(expected))
    with zipfile.ZipFile(FOLDER / "lightning.ckpt") as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        pickled = archive.read(name)
    for other in (b"argparse\nNamespace", b"pathlib\nPosixPath", b"loss\nL1Loss"):
        assert other in pickled


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("suffix", [".pkl", ".ckpt"])
def test_what_lies_beside_the_arrays_is_neither_restored_nor_run(tmp_path, protocol, suffix):
    marker = tmp_path / "ran"
    arrays = {} if suffix == ".ckpt" else {"kernel": np.arange(6.0).reshape(2, 3)}
    beside = {
        "callbacks": {"saver": Callback(), "path": Path("a/b"), "kinds": [Callback, os.system]},
        "hyper_parameters": Namespace(text="t", scalar=np.float64(2), name=np.str_("n")),
        "objects": np.array([Calls(os.system, f"touch {marker}")]),
        "hook": Calls(eval, f"open({str(marker)!r}, 'w')"),
        "state": {"state_dict": Calls(os.system, f"touch {marker}")},
    }
    pickled = pickle.dumps({"state_dict": arrays, **beside}, protocol)
    path = tmp_path / f"x{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickled)
        assert_same(read_weights(path), arrays)
    else:
        as_file(tmp_path / "zip.pth", pickled).rename(path)
        with pytest.raises(ValueError, match=r"x\.ckpt: expected a dict of arrays, found an empty"):
            read_weights(path)
    assert not marker.exists()


def test_an_object_among_the_arrays_is_named(tmp_path):
    path = tmp_path / "x.pkl"
    for entry, named in ((Callback(), "test_checkpoints.Callback"), (Path, "pathlib")):
        path.write_bytes(pickle.dumps({"state_dict": {"a": np.zeros(2), "b": entry}, "epoch": 1}))
        with pytest.raises(ValueError, match=rf"x\.pkl: the pickle uses .*{named}.* save only"):
            read_weights(path)


def test_a_storage_of_unknown_type_does_no_harm_beside_the_arrays(tmp_path):
    def tensor(kind):
        pid = f"(S'storage'\nctorch\n{kind}\nS'0'\nS'cpu'\nI1\ntQ"
        return f"ctorch._utils\n_rebuild_tensor_v2\n({pid}I0\n(I1\nt(I1\nttR"

    def read(arrays, beside):
        inner = f"S'state_dict'\n(dS'a'\n{tensor(arrays)}ss"
        pickled = f"(d{inner}S'beside'\n{tensor(beside)}s.".encode()
        path = as_file(tmp_path / "zip.pth", pickled)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data/0", np.float32(1.5).tobytes())
        return read_weights(path)

    assert_same(read("FloatStorage", "ComplexFloatStorage"), {"a": np.array([1.5], np.float32)})
    with pytest.raises(ValueError, match=r"zip\.pth: the pickle uses torch\.ComplexFloatStorage"):
        read("ComplexFloatStorage", "FloatStorage")


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "module.", "_orig_mod.", "model._orig_mod.", "module.net.model."]
)
def test_prefixes_of_wrappers_are_removed(prefix):
    state = zeros(source_shapes(VGG))
    bias = "features.0.bias"
    state[bias] = np.arange(64, dtype=np.float32)
    renamed = {prefix + name: array for name, array in state.items()}
    renamed |= {"criterion.weight": np.zeros(2), "train_metrics.iou": np.zeros(1)}
    found = pretrained.convert(VGG, renamed).variables["params"]["block1_conv1"]["bias"]
    np.testing.assert_array_equal(found, state[bias])


def test_a_prefix_stays_if_the_names_do_not_fit_without_it():
    state = zeros(source_shapes(VGG))
    others = {
        "a name without the prefix": {f"model.{k}": v for k, v in state.items()}
        | {"teacher.features.0.weight": np.zeros(1)},
        "another prefix": {f"student.{k}": v for k, v in state.items()},
        "two networks": {f"{p}.{k}": v for k, v in state.items() for p in ("model", "net")},
        "a loss beside names without prefixes": state | {"criterion.weight": np.zeros(2)},
    }
    for arrays in others.values():
        with pytest.raises(ValueError, match=rf"do not fit {VGG}:\n  .*\n?.* not of this model"):
            pretrained.convert(VGG, arrays)
    # A name that begins with a prefix by itself.
    assert [len(arrays) for arrays in without_prefixes({"model.a": 1, "b": 2})] == [2]
    assert list(without_prefixes({})) == [{}]


def test_a_misfit_is_listed_by_the_names_without_prefix():
    state = {f"model.{name}": array for name, array in zeros(source_shapes(VGG)).items()}
    state["model.features.0.bias"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"1 of another shape: features\.0\.bias \[3\]") as error:
        pretrained.convert(VGG, state)
    assert "missing" not in str(error.value)
