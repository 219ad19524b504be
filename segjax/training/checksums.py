"""Checksums of checkpoints, by which damage is found.

A checkpoint's folder has an item `checksums/` beside Orbax's own. Its `arrays.json` holds the type,
shape and CRC-32 of each array of the state in memory; its `files.json` holds the size and CRC-32 of
each file written. The files are checked before a checkpoint is read, and the arrays after it.
Checkpoints of earlier versions have no checksums and are read without a check.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals

from segjax.files.atomic import write_json

ITEM = "checksums"
ARRAYS = Path(ITEM) / "arrays.json"
FILES = Path(ITEM) / "files.json"
CHECKED = ("state", "data")
# Written with the scores of an evaluation, after the checkpoint is complete.
METRICS = Path("metrics") / "metrics"
METRICS_CHECKSUM = Path("metrics") / "checksum.json"


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are missing, truncated or changed since they were written."""


def array_checksums(tree) -> dict[str, str]:
    """Returns the checksum of each array of a tree, by its path: "float32[3,64] 1c291ca3"."""
    return {
        "/".join(_name(key) for key in path): _array_checksum(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _name(key) -> str:
    """Names a key of a path: an attribute, an index or a dict's key."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"no name for the key {key!r} of a state")


def _array_checksum(array: np.ndarray) -> str:
    shape = ",".join(map(str, array.shape))
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return f"{array.dtype.name}[{shape}] {zlib.crc32(data):08x}"


def on_host(state):
    """Returns a state as NumPy arrays; all processes must call it for one that they share."""

    def whole(x):
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        if x.is_fully_addressable:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(whole, state)


class ChecksumHandler(ocp.AsyncCheckpointHandler):
    """Writes the checksums of a checkpoint in the background.

    It must be the last of Orbax's handlers, because `finalize` reads the files that the others have
    written. `async_save` returns once the arrays are on the host, because the next step overwrites
    them on the device.
    """

    async def async_save(self, directory, args: "ChecksumSave"):
        arrays = jax.tree.leaves(args.state)
        shared = not all(x.is_fully_replicated or x.is_fully_addressable for x in arrays)
        if jax.process_index() != 0 and not shared:
            return []
        state = on_host(args.state)
        if jax.process_index() != 0:
            return []

        async def write():
            (directory / ARRAYS.name).write_text(json.dumps(array_checksums(state), indent=1))

        return [CommitFutureAwaitingContractedSignals(write(), name="checksums")]

    def finalize(self, directory):
        if jax.process_index() != 0:
            return
        folder = Path(directory).parent
        files = {ARRAYS.as_posix(): _file_checksum(Path(directory) / ARRAYS.name)}
        for item in CHECKED:
            for path in sorted(p for p in (folder / item).rglob("*") if p.is_file()):
                files[path.relative_to(folder).as_posix()] = _file_checksum(path)
        (directory / FILES.name).write_text(json.dumps(files, indent=1))

    def save(self, directory, args):
        raise NotImplementedError("checkpoints are saved in the background")

    def restore(self, directory, args=None):
        return json.loads((directory / ARRAYS.name).read_text())


@ocp.args.register_with_handler(ChecksumHandler, for_save=True)
@dataclasses.dataclass
class ChecksumSave(ocp.args.CheckpointArgs):
    """Orbax's argument to save checksums.

    Attributes:
      state: arrays that are whole on each device or divided over devices.
    """

    state: Any


@ocp.args.register_with_handler(ChecksumHandler, for_restore=True)
@dataclasses.dataclass
class ChecksumRestore(ocp.args.CheckpointArgs):
    """Orbax accepts no handler without an argument to restore."""


def _file_checksum(path: Path) -> str:
    size, checksum = 0, 0
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
    return f"{size} bytes {checksum:08x}"


def write_metrics(folder: Path, metrics: dict[str, float]):
    """Writes the scores of a checkpoint's evaluation where Orbax looks for them.

    The checksum is written first. A kill between the two leaves the empty metrics that the
    checkpoint was saved with, which count as no evaluation.
    """
    write_json(folder / METRICS_CHECKSUM, _json_checksum(metrics))
    write_json(folder / METRICS, metrics)


def _json_checksum(values) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def damage(folder: Path) -> str | None:
    """Says what is wrong with the files of a complete checkpoint, or returns None.

    Args:
      folder: the checkpoint's folder, named after its step.

    Raises:
      OSError: the files cannot be read at present, for example without permission. They may be
        intact.
    """
    folder = Path(folder)
    problem = _entries_damage(folder) or metrics_damage(folder)
    if problem or not (folder / ITEM).is_dir():
        return problem
    expected, problem = _read(folder, FILES)
    if problem:
        return problem
    for name, checksum in expected.items():
        if not (folder / name).is_file():
            return f"it has no {name}"
        found = _file_checksum(folder / name)
        if found != checksum:
            sizes = [text.partition(" bytes")[0] for text in (found, checksum)]
            how = "has changed" if sizes[0] == sizes[1] else "has {} bytes instead of {}"
            return f"its {name} {how.format(*sizes)}"
    return None


def metrics_damage(folder: Path) -> str | None:
    """Says what is wrong with the scores of a checkpoint; see `damage`."""
    if not (folder / METRICS).exists():
        return None  # the run ranks by no metric
    values, problem = _read(folder, METRICS)
    if problem or not values or not (folder / METRICS_CHECKSUM).exists():
        return problem
    expected, problem = _read(folder, METRICS_CHECKSUM, kind=str)
    if problem is None and _json_checksum(values) != expected:
        return f"its {METRICS} has changed"
    return problem


def _entries_damage(folder):
    """Compares the entries with Orbax's own list of them."""
    values, problem = _read(folder, Path("_CHECKPOINT_METADATA"))
    if problem:
        return problem
    items = values.get("item_handlers")
    if not isinstance(items, dict):
        return "its _CHECKPOINT_METADATA lists no items"
    missing = [name for name in items if not (folder / name).is_dir()]
    return f"it has no {missing[0]}" if missing else None


def refuse(folder: Path, check: Callable[[Path], str | None] = damage):
    """Raises DamagedCheckpoint if a check finds damage; the default checks all files."""
    problem = check(folder)
    if problem is None:
        return
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} was removed while it was read: its run goes on")
    raise DamagedCheckpoint(f"the checkpoint {folder} is damaged: {problem}")


def refuse_arrays(folder: Path, state):
    """Raises DamagedCheckpoint if the arrays read differ from the arrays saved.

    Args:
      state: the arrays that were read.
    """
    if not (folder / ITEM).is_dir():
        return
    saved, found = json.loads((folder / ARRAYS).read_text()), array_checksums(on_host(state))
    changed = [name for name in {**saved, **found} if saved.get(name) != found.get(name)]
    if changed:
        more = f" and {len(changed) - 1} more differ" if len(changed) > 1 else " differs"
        raise DamagedCheckpoint(
            f"the checkpoint {folder} is damaged: its array {changed[0]}{more} from what was saved"
        )


def _read(folder: Path, name: Path, *, kind: type = dict) -> tuple[Any, str | None]:
    """Reads a JSON file of a checkpoint; returns its values and what is wrong with it, or None.

    Args:
      kind: the expected type of the values.
    """
    try:
        values = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        return None, f"it has no {name}"
    except ValueError:
        return None, f"its {name} is no JSON any more"
    return (values, None) if isinstance(values, kind) else (None, f"its {name} has changed")
