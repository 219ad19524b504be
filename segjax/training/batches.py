"""Batches on their way to the devices, whatever spreads them there."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator


def put_ahead(
    batches: Iterable[dict], put: Callable[[dict], dict], size: int
) -> Iterator[tuple[dict, dict]]:
    """Yields (host batch, device batch), and puts `size` batches on the devices ahead of use."""
    queue = deque()
    for batch in batches:
        queue.append((batch, put(batch)))
        if len(queue) > size:
            yield queue.popleft()
    while queue:
        yield queue.popleft()


def refuse_batch_size(batch_size: int, shares: int, micro_batches: int, *, of: str):
    """Raises a ValueError unless a batch divides over shares and micro-batches.

    Args:
      of: what the shares are, as in "4 devices".
    """
    parts = shares * micro_batches
    if batch_size % parts:
        lower, upper = batch_size // parts * parts, math.ceil(batch_size / parts) * parts
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        raise ValueError(
            f"a batch of {batch_size} does not divide over {of} × {micro_batches} micro-batches; "
            f"the nearest that does is {nearest}"
        )
