"""Computes the elements of a random-access stream ahead of use, in grain's threads or processes.

grain's own iterator state is not used: a stream is a function of the index, and its reader counts.
"""

import atexit
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

import cv2
import grain
from absl import flags

_OPEN = weakref.WeakSet()


class Stream(Protocol):
    """Elements by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def read_ahead(
    stream: Stream, *, num_workers: int, num_threads: int, buffer_size: int
) -> Generator:
    """Yields stream[0], stream[1], ... in order, computed in threads or worker processes.

    Nothing starts before the first element is requested. Closing the iterator ends all threads and
    workers.

    Args:
      stream: has `__len__` and a thread-safe `__getitem__`; pickled to the workers.
      num_workers: processes that compute elements. With 0, threads of this process do it.
      num_threads: threads in each process that computes. With 0, the process itself computes.
      buffer_size: number of elements to keep ready.

    Yields:
      Elements. Large arrays from workers lie in shared memory, which is freed with the array.

    Raises:
      RuntimeError: a worker process died.
    """
    dataset = grain.MapDataset.source(cast(Sequence, stream)).to_iter_dataset(
        grain.ReadOptions(
            num_threads=num_threads,
            prefetch_buffer_size=num_threads if num_workers else max(buffer_size, num_threads),
        )
    )
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain fails if absl's flags are not parsed
        options = grain.MultiprocessingOptions(
            num_workers=num_workers, per_worker_buffer_size=-(-buffer_size // num_workers)
        )
        dataset = dataset.mp_prefetch(options, worker_init_fn=_prepare_worker)
    elements = _elements(dataset)
    _OPEN.add(elements)
    return elements


def _elements(dataset: grain.IterDataset) -> Generator:
    iterator = iter(dataset)
    try:
        yield from iterator
    except RuntimeError as error:
        if f"exit code -{signal.SIGBUS:d}" in str(error):
            error.add_note("Shared memory may be full: see df /dev/shm (in Docker, --shm-size)")
        raise
    finally:
        iterator.close()


@atexit.register
def _close_all() -> None:
    """Closes what was left open while grain can still clean up."""
    for elements in list(_OPEN):
        with suppress(ValueError):  # a stopped thread is still executing it
            elements.close()


def _prepare_worker(worker_index: int, worker_count: int) -> None:
    """Runs first in each worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends its workers
    cv2.setNumThreads(1)  # the processes already run in parallel
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker with its parent; grain's workers would outlive a killed parent for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def worker_count(asked: int | None) -> int:
    """Returns the processes to start: those asked for, or by default one per two cores.

    Machines with fewer than four cores need theirs for the training.
    """
    if asked is not None:
        return asked
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return 0 if cores < 4 else cores // 2
