"""Lists of names, cut to a few."""

from collections.abc import Sequence


def few(names: Sequence[str], *, most: int = 3) -> str:
    """Joins names to "a, b, c and 4 more": at most `most` of them, and the number of others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
