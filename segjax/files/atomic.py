"""Atomic writing: a reader sees the old file or the whole new one, even after a kill."""

import contextlib
import json
import os
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


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Writes text as UTF-8; see `write_bytes`."""
    return write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 2) -> Path:
    """Writes a value as JSON; see `write_bytes`."""
    return write_text(path, json.dumps(value, indent=indent) + "\n")
