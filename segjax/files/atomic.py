"""Atomic writing: a reader sees the old file or the whole new one, even after a kill."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Writes a hidden file beside `path` and renames it; creates folders, returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        return partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()  # a full disk needs the space
        raise


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a hidden folder beside `path` to write to, and renames it after the block.

    If the block fails, the hidden folder is removed.

    Raises:
      FileExistsError: `path` exists and is not an empty folder.
    """
    path = Path(path)
    refuse_full_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())  # mkdtemp's folders are private
        partial.rename(path)  # also onto an empty folder
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_full_folder(path: Path) -> None:
    """Raises FileExistsError unless `path` is free or an empty folder."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already; choose another folder, or remove it")


def _umask() -> int:
    mask = os.umask(0o022)  # reading it means setting it
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes text as UTF-8; see `write_bytes`."""
    return write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 2) -> Path:
    """Writes a value as JSON; see `write_bytes`."""
    return write_text(path, json.dumps(value, indent=indent) + "\n")
