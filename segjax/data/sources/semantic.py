"""Opens prepared data sets for random access, without TensorFlow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segjax.data.builder import SegmentationBuilder
from segjax.data.sources.catalog import make_builder


@dataclass(frozen=True)
class Source:
    """The examples of a split, decoded when they are asked for.

    `source[i]` is a dict of NumPy arrays: "image" uint8 or uint16 [H, W, C], "labels" uint8 [H, W]
    (255 = ignored), "id" str and, where the data set has them, "instances" int32 [H, W],
    "field_of_view" bool [H, W] and "second_observer" uint8 [H, W] (255 = nothing drawn). A data
    set of objects that may overlap has them, as `segjax.data.sources.coco_files` gives them, and no
    "labels".

    It pickles to a few kilobytes and 8 bytes an example: files are opened again in the process
    that reads them.

    Attributes:
      name: data set, such as "cell_tracking/dic_c2dh_hela".
      split: split or slice, such as "train[:24]".
      class_names: name of each class id.
      split_sizes: number of examples of each whole split of the data set.
      sizes: height and width of each image, int32 [n, 2]; None where the data set was prepared
        without noting them.
      object_counts: objects of each image, crowds left out, int32 [n]; None likewise, and where
        the data set tells no objects apart.
      category_ids: the id that COCO's results have for the classes 1, 2, ...; None where there is
        none.
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

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)} in {self.name} {self.split}")
        try:
            record = self._records[index]
        except RuntimeError as error:
            raise ValueError(
                f"{self.name} {self.split}: example {index} is damaged on disk ({error}); "
                "prepare the data set again with --overwrite"
            ) from error
        return self._to_example(record)


def open_dataset(name: str, split: str, *, data_dir: Path) -> Source:
    """Opens a split of a prepared data set.

    Args:
      name: a data set of `segjax.data.sources.catalog.dataset_names()`.
      split: one of its splits, or TFDS's arithmetic on them: "train[:24]", "gold_01+gold_02".
      data_dir: the folder it was prepared in.

    Raises:
      ValueError: no such data set or split; the message lists those there are.
      FileNotFoundError: the data set is not prepared; the message says the command.
    """
    builder = make_builder(name, data_dir=data_dir)
    if not is_prepared(builder):
        raise FileNotFoundError(
            f"{name} is not prepared in {data_dir}. Run: {prepare_command(name, builder)}"
        )
    return open_builder(builder, split)


def open_builder(builder: SegmentationBuilder, split: str) -> Source:
    """Opens a split of what a builder of segjax has prepared, or of what TFDS's mocks make of it.

    Raises:
      ValueError: no such split (the message lists those there are), or a format that only
        TensorFlow reads.
    """
    config = builder.builder_config
    name = f"{builder.name}/{config.name}" if config else builder.name
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    try:
        records = builder.as_data_source(split)
    except NotImplementedError as error:
        raise ValueError(
            f"{name} is prepared as {builder.info.file_format.value}, which only TensorFlow reads; "
            "prepare it again with --overwrite"
        ) from error
    except (ValueError, KeyError, AssertionError) as error:
        known = ", ".join(f"{split} ({size})" for split, size in sizes.items())
        raise ValueError(
            f"{split!r} selects no examples of {name}. Splits: {known}, and slices of them such as "
            f"'{next(iter(sizes))}[:2]'"
        ) from error
    return Source(
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


def is_prepared(builder: SegmentationBuilder) -> bool:
    """Whether a builder's data set is complete on disk; it is moved there only when it is."""
    return (Path(builder.data_dir) / "dataset_info.json").is_file()


def prepare_command(name: str, builder: SegmentationBuilder) -> str:
    """The command that prepares a data set, with DIR for what the user must fill in."""
    source = " --source DIR" if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else ""
    return f"segjax data prepare {name}{source} --data-dir {builder.data_dir_root}"


def _noted(builder: SegmentationBuilder, split: str, note: str) -> np.ndarray | None:
    """What was noted of the examples of a split when the data set was prepared."""
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
