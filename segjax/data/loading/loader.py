"""Makes batches for training and evaluation: reads, augments and stacks examples ahead of use.

The training stream is a pure function of (source, transforms, seed, position). Position p is
place p mod n of epoch p div n. The order of an epoch is a permutation drawn from (seed, epoch), and
an example is augmented by a generator made from (seed, epoch, index). So the numbers of threads,
worker processes and training processes change nothing, and one number says where to resume. With
groups the same holds for each group, and a fixed schedule mixes their batches
(`segjax.data.loading.aspect_ratio`).
"""

import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np

from segjax.data.loading.aspect_ratio import GroupSchedule
from segjax.data.loading.read_ahead import read_ahead

# The entries that enter a batch and their types; other entries of an example are dropped.
BATCH_DTYPES = {
    "image": np.float32,
    "labels": np.int32,
    "weights": np.float32,
    "instances": np.int32,
    "size": np.int32,
    "boxes": np.float32,
    "classes": np.int32,
    "masks": np.uint8,
    "has_mask": np.bool_,
    "dropped": np.int32,
}


def training_batches(
    source: Sequence[dict],
    transforms: Sequence,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    groups: np.ndarray | None = None,
    num_workers: int = 0,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's share of batches `start`, `start + 1`, ... without end.

    Each epoch holds each example once, and batches run on across the end of an epoch. With groups,
    this holds within each group. `.close()`, an exception or dropping the iterator ends the threads
    or worker processes behind it.

    Args:
      source: examples by index; pickled to the worker processes.
      transforms: applied to each example in turn, as `transform(example, rng)`.
      batch_size: examples in a batch over all training processes. Process k takes the k-th
        contiguous part of each batch.
      seed: seed of order and augmentation, 0 <= seed < 2³².
      start: number of batches to skip; skipping costs nothing.
      groups: int [n], the group of each example, such as `orientation_groups(source.sizes)`. All
        examples of a batch then belong to one group. None makes one group of all.
      num_workers: processes that read and augment, started on first use in about 2 seconds. With 0,
        threads of this process do it; OpenCV and NumPy mostly let them run in parallel.
      num_threads: threads in each process that reads. 0 without workers reads on demand.
      process_index: index of this training process.
      process_count: number of training processes.

    Yields:
      Dicts of `BATCH_DTYPES` arrays, [share, ...] each, for the entries that the examples have,
      and "index" int32 [share], their indices in the source.

    Raises:
      ValueError: the source is empty, sizes do not divide, groups do not match the examples, or
        examples of a batch differ in shape.
      RuntimeError: an example cannot be read or transformed (the message names it), or a worker
        died.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be within 0..2³² − 1, got {seed}")
    if start < 0:
        raise ValueError(f"start must not be negative, got {start}")
    if num_workers < 0:
        raise ValueError(f"num_workers must not be negative, got {num_workers}")
    _check_not_empty(source)
    share = _share(batch_size, process_index, process_count)
    groups = np.zeros(len(source), np.int32) if groups is None else np.asarray(groups)
    if groups.shape != (len(source),):
        raise ValueError(f"groups of shape {groups.shape} for {len(source)} examples")
    stream = _TrainingStream(
        source,
        tuple(transforms),
        batch_size,
        seed,
        start,
        GroupSchedule(groups),
        process_index,
        process_count,
    )
    rows = read_ahead(
        stream, num_workers=num_workers, num_threads=num_threads, buffer_size=2 * share
    )

    def batches():
        try:
            while True:
                yield _stack(list(islice(rows, share)))
        finally:
            rows.close()

    return batches()


def evaluation_examples(
    source: Sequence[dict],
    transforms: Sequence = (),
    *,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[int, dict]]:
    """Yields (index, example) for each example, once over all processes.

    Process k takes the k-th contiguous part of the source, in order; parts differ by at most one
    example. Transforms get a generator made from the index, so that all evaluations are alike.

    Raises:
      RuntimeError: an example cannot be read or transformed; the message names it.
    """
    _check_process(process_index, process_count)
    first, last = (len(source) * (process_index + k) // process_count for k in (0, 1))
    stream = _EvaluationStream(source, tuple(transforms), range(first, last))
    return read_ahead(stream, num_workers=0, num_threads=num_threads, buffer_size=2 * num_threads)


@dataclass(frozen=True)
class _EvaluationStream:
    """Random access to (index, transformed example) for some indices of a source."""

    source: Sequence[dict]
    transforms: tuple
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[int, dict]:
        index = self.indices[number]
        return index, _read(self.source, self.transforms, index, np.random.default_rng(index))


@dataclass(frozen=True)
class _TrainingStream:
    """Random access to the endless stream of rows that one training process consumes."""

    source: Sequence[dict]
    transforms: tuple
    batch_size: int
    seed: int
    start: int
    schedule: GroupSchedule
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return sys.maxsize  # grain requires a length

    def __getitem__(self, number: int) -> dict:
        share = self.batch_size // self.process_count
        batch, place = divmod(number, share)
        index, epoch = self._example(self.start + batch, self.process_index * share + place)
        rng = np.random.default_rng((self.seed, epoch, index))
        return _row(index, _read(self.source, self.transforms, index, rng))

    def _example(self, batch: int, place: int) -> tuple[int, int]:
        """The index of the example at a place of a batch, and the epoch of its group."""
        group, batches_before = self.schedule.of_batch(batch)
        members = self.schedule.members(group)
        epoch, place = divmod(batches_before * self.batch_size + place, len(members))
        order = _order(len(members), self.seed, epoch, len(self.source) + group)
        return int(members[order[place]]), epoch


@lru_cache(maxsize=8)
def _order(size: int, seed: int, epoch: int, key: int) -> np.ndarray:
    """The order of the examples of a group in an epoch; `key` tells groups apart.

    It takes 4 bytes an example. grain's `index_shuffle` takes none, but its permutations of few
    examples are visibly not uniform (20 examples: χ² of 500 at 361 degrees of freedom).
    """
    # No example has the index `key`, so that no example shares this generator.
    return np.random.default_rng((seed, epoch, key)).permutation(size).astype(np.int32)


def _read(source, transforms, index: int, rng: np.random.Generator) -> dict:
    """Reads and transforms an example; any error names it."""
    name, doing = f"example {index} of {len(source)}", "reading"
    try:
        example = source[index]
        name = f"{name}, id {example.get('id')!r}"
        for transform in transforms:
            doing = type(transform).__name__
            example = transform(example, rng)
    # A user's own source and transforms may raise anything.
    except Exception as error:
        failure = RuntimeError(f"{name}: {doing} failed: {type(error).__name__}: {error}")
        # A cause would be lost on the way from a worker process, and not every error pickles.
        failure.add_note(traceback.format_exc())
        raise failure from None
    return example


def _row(index: int, example: dict) -> dict:
    """The entries of an example that enter a batch, and its id for messages."""
    row = {key: example[key] for key in BATCH_DTYPES if key in example}
    return {**row, "index": index, "id": str(example.get("id"))}


def _stack(rows: list[dict]) -> dict[str, np.ndarray]:
    """Stacks rows to a batch in ordinary memory (workers pass rows in shared memory)."""
    batch = {"index": np.array([row["index"] for row in rows], np.int32)}
    for key, dtype in BATCH_DTYPES.items():
        shapes = [np.shape(row[key]) if key in row else None for row in rows]
        for row, shape in zip(rows, shapes, strict=True):
            if shape != shapes[0]:
                raise ValueError(
                    f"{key!r} differs in one batch: {rows[0]['id']!r} has shape {shapes[0]} but "
                    f"{row['id']!r} has {shape}; bring all to one size by a transform"
                )
        if shapes[0] is not None:
            batch[key] = np.empty((len(rows), *shapes[0]), dtype)
            for place, row in enumerate(rows):
                batch[key][place] = row[key]
    return batch


def _share(batch_size: int, process_index: int, process_count: int) -> int:
    _check_process(process_index, process_count)
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} must be a positive multiple of process_count {process_count}"
        )
    return batch_size // process_count


def _check_process(process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} must be within 0..{process_count - 1}")


def _check_not_empty(source) -> None:
    if len(source) == 0:
        raise ValueError(f"no examples in {source}")
