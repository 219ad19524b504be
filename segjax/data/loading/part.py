"""The part of a source that one of several processes reads."""


def own_part(length: int, process_index: int, process_count: int) -> range:
    """Returns the indices of a process's contiguous part; parts differ by at most one example.

    Splits are cut into shards at the same places. So the part of a process is whole shards, if the
    number of shards is a multiple of the number of processes.

    Args:
      length: number of examples of the source.
      process_index: index of the process, below `process_count`.
      process_count: number of processes.

    Raises:
      ValueError: there is no such process.
    """
    check_process(process_index, process_count)
    first, last = (length * (process_index + k) // process_count for k in (0, 1))
    return range(first, last)


def check_process(process_index: int, process_count: int) -> None:
    """Raises ValueError if there is no such process."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} must be within 0..{process_count - 1}")
