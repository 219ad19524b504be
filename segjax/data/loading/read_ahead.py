"""Computes the elements of a random-access stream ahead of use, in threads or processes, by grain.

grain's own iterator state is not used: a stream is a function of its index, so that whoever reads
it knows where they are.
"""

import atexit
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Generator, Sequence
from contextlib import suppress

import cv2
import grain
from absl import flags

_OPEN = weakref.WeakSet()


def read_ahead(
    stream: Sequence, *, num_workers: int, num_threads: int, buffer_size: int
) -> Generator:
    """Yields stream[0], stream[1], ... in order, whoever computed them.

    Nothing is started before the first element is asked for. Closing the iterator ends what was.

    Args:
      stream: has `__len__` and a thread-safe `__getitem__`; pickled to the workers.
      num_workers: processes that compute elements; 0 = none, threads of this process do.
      num_threads: in each process that computes; 0 = no thread beside the process's own.
      buffer_size: elements to keep ready.

    Yields:
      Elements; from workers, large arrays in them lie in shared memory, freed with the array.

    Raises:
      RuntimeError: a worker process died.
    """
    dataset = grain.MapDataset.source(stream).to_iter_dataset(
        grain.ReadOptions(
            num_threads=num_threads,
            prefetch_buffer_size=num_threads if num_workers else max(buffer_size, num_threads),
        )
    )
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain fails on flags of absl that nobody has parsed
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
    """Ends what was left open, while grain can still clean up after itself."""
    for elements in list(_OPEN):
        with suppress(ValueError):  # a thread that is cut off is waiting for it
            elements.close()


def _prepare_worker(worker_index: int, worker_count: int) -> None:
    """Runs first in each worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    cv2.setNumThreads(1)  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone: grain's workers outlive a killed one for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
