"""Builds a data set once from the user's files, for `segjax data prepare`."""

import contextlib
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import tensorflow_datasets as tfds

from segjax.data.builder import SegmentationBuilder
from segjax.data.checks.check import check_source
from segjax.data.sources.catalog import make_builder
from segjax.data.sources.semantic import PreparedSource, is_prepared, open_dataset

PROBLEMS_SHOWN = 20


def prepare(
    name: str,
    *,
    data_dir: Path,
    source: Path | None = None,
    shards: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Prepares a data set for `open_dataset`, or prints that it is already prepared.

    All files are read and checked before anything is written. The data set is built in a folder
    "incomplete.*" and renamed at the end, so an interrupted build is never mistaken for a complete
    one, and an overwritten data set stays until the new one is complete. The next call removes the
    remains of an interrupted one. If several calls run at once, one builds and the others wait.

    Args:
      name: a data set of `segjax.data.sources.catalog.dataset_names()`.
      data_dir: the folder of prepared data sets.
      source: the user's folder in the official layout; None for a data set that segjax generates
        or TFDS downloads.
      shards: number of files of each split; None makes files of about 128 MB.
      overwrite: build a prepared data set again.

    Returns:
      The folder of the prepared data set.

    Raises:
      ValueError: no data set has this name, its files have problems (the message lists them), it is
        prepared in another number of shards, a split has fewer examples than shards, or building
        needs TensorFlow, which is not installed.
      FileNotFoundError: `source` is needed and not given, or is not a folder.
    """
    if shards is not None and shards < 1:
        raise ValueError(f"--shards {shards}; expected 1 or more")
    builder = make_builder(name, data_dir=data_dir)
    final = Path(builder.data_dir)
    if is_prepared(builder) and not overwrite:
        return _say_prepared(name, builder, shards)
    if source is None and builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise FileNotFoundError(f"{name} needs --source: {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    if builder.needs_tensorflow and find_spec("tensorflow") is None:
        raise ValueError(
            f"{name} is built by TFDS with TensorFlow, which is not installed: "
            "pip install 'segjax[tensorflow]'. Reading it needs no TensorFlow"
        )
    if source is not None:
        source = Path(source).expanduser().absolute()
        report = check_source(name, builder, source)
        if report.problems:
            raise ValueError(_refusal(name, source, report.problems))
        print(report.text())
    with _one_at_a_time(final.parent):
        if is_prepared(builder) and not overwrite:  # another call has built it while we waited
            return _say_prepared(name, builder, shards)
        for left_over in final.parent.glob("incomplete.*"):
            shutil.rmtree(left_over)
        with tempfile.TemporaryDirectory(prefix="incomplete.", dir=final.parent) as scratch:
            built = _build(name, Path(scratch), source, shards)
            if final.exists():
                final.rename(Path(scratch) / "replaced")
            built.rename(final)
    print(f"{name} is prepared in {final}")
    return final


def _build(name: str, folder: Path, source: Path | None, shards: int | None) -> Path:
    """Builds the data set with TFDS below `folder`, and returns its own folder."""
    builder = make_builder(name, data_dir=folder)
    builder.shards = shards
    config = tfds.download.DownloadConfig(
        manual_dir=source and os.fspath(source), try_download_gcs=False, num_shards=shards
    )
    # Our builders show their own progress bar; TFDS's bars show downloads and shuffles.
    tfds.disable_progress_bar()
    if builder.needs_tensorflow:
        print(f"TFDS downloads {name} and builds it, which takes minutes")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_dir=folder / "downloads",
                download_config=config,
                file_format="array_record",
            )
    except AssertionError as error:  # TFDS's own builders; ours raise ValueError
        if "number_of_shards" not in str(error):
            raise
        raise ValueError(f"{shards} shards need as many examples; a split has fewer") from error
    finally:
        tfds.enable_progress_bar()
    return Path(builder.data_dir)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Holds a lock, which the system releases when the process ends in any way."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say_prepared(name: str, builder: SegmentationBuilder, shards: int | None) -> Path:
    """Says that a data set is prepared; refuses if it has not the number of shards asked for."""
    folder = Path(builder.data_dir)
    for split, info in builder.info.splits.items():
        if shards not in (None, info.num_shards):
            raise ValueError(
                f"{name} is prepared in {folder}, and its {split} is not in {shards} shards "
                f"there but in {info.num_shards}; --overwrite builds it again"
            )
    print(f"{name} is already prepared in {folder}; --overwrite builds it again")
    return folder


def _refusal(name: str, source: Path | None, problems: list[str]) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:PROBLEMS_SHOWN])
    more = len(problems) - PROBLEMS_SHOWN
    rest = f"\n  … and {more} more: segjax data check {name} --source {source}" if more > 0 else ""
    return f"{name} is not prepared, {len(problems)} problems in {source}:\n{shown}{rest}"


def open_generated(name: str, split: str, *, data_dir: Path) -> PreparedSource:
    """Opens a split of a generated data set; generates the data set on first use."""
    if not is_prepared(make_builder(name, data_dir=data_dir)):
        prepare(name, data_dir=data_dir)
    return open_dataset(name, split, data_dir=data_dir)
