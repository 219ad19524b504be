"""Reads the arrays of a weights file without running any code in it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from segjax.messages.lists import few
from segjax.pretrained.restricted_pickle import ArrayUnpickler, RefusedPickle, plain
from segjax.pretrained.state_dict import unwrapped
from segjax.pretrained.tf_checkpoint import read_tf_archive, read_tf_checkpoint
from segjax.pretrained.torch_file import read_torch_file


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by their names in it.

    - .pth, .pt, .bin, .ckpt: files of `torch.save`, in either of its formats; .ckpt is Lightning's.
    - .safetensors, .npz.
    - .pkl: a pickle of NumPy arrays, as in detectron2's model zoo.
    - .index: a TensorFlow checkpoint, with its .data files beside it. The name without .index, as
      TensorFlow takes it, and the folder with one checkpoint do too.
    - .gz: a .tar.gz with one TensorFlow checkpoint, as TensorFlow DeepLab's model zoo has them.

    A dict such as {"model": {...}, "optimizer": ...} gives the model's arrays; whatever else is in
    it, such as a Lightning module's callbacks, is neither read nor run. If all names begin with
    "module.", which PyTorch's DataParallel adds, that prefix is removed; for others see
    `segjax.pretrained.convert`. Arrays keep their type, except that bfloat16 becomes float32.

    Raises:
      FileNotFoundError: there is no such file, or a checkpoint's data file is missing.
      ValueError: the suffix is none of these; the file is damaged or not what its suffix says; or
        the model's part holds anything but arrays. The message names the file.
    """
    path = Path(path)
    index = path.with_name(f"{path.name}.index")
    if path.is_dir():
        path = _checkpoint_in(path)
    elif not path.exists() and index.is_file():
        path = index
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"{path}: expected a file of weights ending in {', '.join(_READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    expected, read = _READERS[path.suffix.lower()]
    try:
        value = read(path)
    except RefusedPickle as error:
        raise ValueError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise
    # A damaged pickle or archive can raise anything from KeyError to MemoryError.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: damaged or not {expected} ({reason})") from error
    return _named_arrays(value, path)


def _checkpoint_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.index"))
    if len(found) != 1:
        names = f": {few([file.name for file in found], most=5)}" if found else ""
        raise ValueError(
            f"{folder}: a folder; expected a file of weights, or a folder with one TensorFlow "
            f"checkpoint (NAME.index), found {len(found)}{names}"
        )
    return found[0]


def _read_npz(path: Path) -> dict:
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("a single array without a name")
        return dict(archive)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return plain(unwrapped(ArrayUnpickler(file).load()))


def _read_safetensors(path: Path) -> dict:
    arrays = load_file(path)
    halves = {name for name, array in arrays.items() if array.dtype == ml_dtypes.bfloat16}
    return arrays | {name: arrays[name].astype(np.float32) for name in halves}


def _named_arrays(value: Any, path: Path) -> dict[str, np.ndarray]:
    found = unwrapped(value)
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path}: expected a dict of arrays, found {_kind(found)}")
    others = [
        f"{name!r} ({_kind(entry)})"
        for name, entry in found.items()
        if not isinstance(entry, np.ndarray)
    ]
    if others:
        raise ValueError(f"{path}: expected nothing but arrays, found {few(others, most=5)}")
    names = {str(name): entry for name, entry in found.items()}
    if all(name.startswith("module.") for name in names):
        names = {name.removeprefix("module."): entry for name, entry in names.items()}
    return names


def _kind(value: Any) -> str:
    return "an empty dict" if value == {} else f"a {type(value).__name__}"


_TORCH = ("a file of torch.save", read_torch_file)
_READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    ".pth": _TORCH,
    ".pt": _TORCH,
    ".bin": _TORCH,
    ".ckpt": _TORCH,
    ".safetensors": ("a file of safetensors", _read_safetensors),
    ".npz": ("an archive of np.savez", _read_npz),
    ".pkl": ("a pickle of arrays", _read_pickle),
    ".index": ("a TensorFlow checkpoint", read_tf_checkpoint),
    ".gz": ("a .tar.gz with one TensorFlow checkpoint", read_tf_archive),
}
