"""Opens prepared data sets for random access, without TensorFlow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from segjax.data.builder import SegmentationBuilder
from segjax.data.loading.part import own_part
from segjax.data.sources.catalog import make_builder


@dataclass(frozen=True)
class PreparedSource:
    """The examples of a split of a prepared data set, decoded on demand.

    An example is as `segjax.data.sources.protocol.Source` says: "id" str, "image" uint8 or uint16
    [H, W, C], "labels" uint8 [H, W] (255 = ignored) and, if the data set has them, "instances"
    int32 [H, W], "field_of_view" bool [H, W] and "second_observer" uint8 [H, W] (255 = nothing
    drawn). A data set of objects that may overlap has the entries of objects instead of "labels".

    It pickles to a few kilobytes and 8 bytes an example; each process opens the files itself.

    Attributes:
      name: the data set, such as "cell_tracking/dic_c2dh_hela".
      split: the split or slice, such as "train[:24]".
      class_names: the name of each class id.
      split_sizes: the number of examples of each whole split of the data set.
      sizes: the height and width of each image, int32 [n, 2]; None if the data set was prepared
        before sizes were recorded.
      object_counts: the number of objects of each image without crowds, int32 [n]; None if the
        data set was prepared before they were recorded, or does not tell objects apart.
      category_ids: COCO's ids of the classes 1, 2, ...; None if there are none.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    split_sizes: dict[str, int]
    _records: Sequence = field(repr=False)
    _to_example: Callable[[dict], dict] = field(repr=False)
    sizes: np.ndarray | None = field(default=None, repr=False, compare=False)
    object_counts: np.ndarray | None = field(default=None, repr=False, compare=False)
    category_ids: tuple[int, ...] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)} in {self.name} {self.split}")
        try:
            record = self._records[index]
        except RuntimeError as error:
            where = f"{self.name} {self.split}: example {index}"
            _, missing, path = str(error).partition("No such file or directory; opening ")
            if missing:
                raise ValueError(
                    f"{where} is in a shard that is not here, {path}. If this machine holds a part "
                    "of the data, segjax data shards lists the shards that it needs, and training "
                    "reads them with --train.part-only True; otherwise prepare the data set again "
                    "with --overwrite"
                ) from error
            raise ValueError(
                f"{where} is damaged on disk ({error}); prepare the data set again with --overwrite"
            ) from error
        return self._to_example(record)


def open_dataset(name: str, split: str, *, data_dir: Path) -> PreparedSource:
    """Opens a split of a prepared data set.

    Args:
      name: a data set of `segjax.data.sources.catalog.dataset_names()`.
      split: one of its splits, or TFDS's arithmetic on them: "train[:24]", "gold_01+gold_02".
      data_dir: the folder of prepared data sets.

    Raises:
      ValueError: no data set or split has this name; the message lists the names.
      FileNotFoundError: the data set is not prepared; the message gives the command.
    """
    return open_builder(prepared_builder(name, data_dir=data_dir), split)


def prepared_builder(name: str, *, data_dir: Path) -> SegmentationBuilder:
    """Returns the builder of a data set that is prepared; see `open_dataset`."""
    builder = make_builder(name, data_dir=data_dir)
    if not is_prepared(builder):
        raise FileNotFoundError(
            f"{name} is not prepared in {data_dir}. Run: {prepare_command(name, builder)}"
        )
    return builder


def open_builder(builder: SegmentationBuilder, split: str) -> PreparedSource:
    """Opens a split that one of segjax's builders has prepared, or a mock of it made by TFDS.

    Raises:
      ValueError: there is no such split (the message lists the splits), or only TensorFlow can
        read the format.
    """
    config = builder.builder_config
    name = f"{builder.name}/{config.name}" if config else builder.name
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    try:
        records = cast(Any, builder).as_data_source(split=split)  # typed without its arguments
    except NotImplementedError as error:
        found = builder.info.file_format
        raise ValueError(
            f"{name} is prepared as {found and found.value}, which only TensorFlow reads; "
            "prepare it again with --overwrite"
        ) from error
    except (ValueError, KeyError, AssertionError) as error:
        known = ", ".join(f"{split} ({size})" for split, size in sizes.items())
        raise ValueError(
            f"{split!r} selects no examples of {name}. Splits: {known}, and slices of them such as "
            f"'{next(iter(sizes))}[:2]'"
        ) from error
    return PreparedSource(
        name,
        split,
        builder.class_names,
        sizes,
        records,
        builder.to_example,
        sizes=_noted(builder, split, "sizes"),
        object_counts=_noted(builder, split, "objects"),
        category_ids=getattr(builder, "category_ids", None),
    )


def shards_of_parts(
    name: str, *, data_dir: Path, processes: int
) -> dict[str, list[tuple[range, list[str]]]]:
    """Finds the shards that processes need which each read their own part of a data set.

    Args:
      name: the data set, as `open_dataset` takes it.
      data_dir: the folder of prepared data sets.
      processes: number of processes.

    Returns:
      For each split, for each process: the indices of its examples, and the names of the files in
      the folder of the data set that hold them.

    Raises:
      ValueError: there is no process, or no such data set.
      FileNotFoundError: the data set is not prepared.
    """
    if processes < 1:
        raise ValueError(f"--processes {processes}; expected 1 or more")
    builder = prepared_builder(name, data_dir=data_dir)

    def shards(split, part):
        starts = np.cumsum([0, *split.shard_lengths])
        return [
            path.name
            for path, start, stop in zip(split.filepaths, starts[:-1], starts[1:], strict=True)
            if start < part.stop and part.start < stop
        ]

    found = {}
    for key, split in builder.info.splits.items():
        parts = [own_part(split.num_examples, index, processes) for index in range(processes)]
        found[key] = [(part, shards(split, part)) for part in parts]
    return found


def is_prepared(builder: SegmentationBuilder) -> bool:
    """Whether a builder's data set is on disk; `prepare` moves only complete ones there."""
    return (Path(builder.data_dir) / "dataset_info.json").is_file()


def prepare_command(name: str, builder: SegmentationBuilder) -> str:
    """The command that prepares a data set; the user replaces DIR."""
    source = " --source DIR" if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else ""
    return f"segjax data prepare {name}{source} --data-dir {builder.data_dir_root}"


def _noted(builder: SegmentationBuilder, split: str, note: str) -> np.ndarray | None:
    """The notes of one kind about the examples of a split, from when it was prepared."""
    noted = (builder.info.metadata or {}).get(note)
    if noted is None or any(value is None for values in noted.values() for value in values):
        return None
    of_file = {}
    for name, info in builder.info.splits.items():
        stops = np.cumsum(info.shard_lengths)
        parts = np.split(np.array(noted[name], np.int32), stops[:-1])
        of_file.update(zip(map(str, info.filepaths), parts, strict=True))
    return np.concatenate(
        [
            of_file[str(read.filename)][read.skip : read.skip + read.take]
            for read in builder.info.splits[split].file_instructions
        ]
    )
