"""Prepares data sets for benchmarks without printing anything."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from segjax.data.prepare import prepare


def prepare_quietly(name: str, data_dir: Path, *, source: Path | None = None) -> None:
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        prepare(name, data_dir=data_dir, source=source)
