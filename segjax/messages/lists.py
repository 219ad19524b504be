"""Lists of names and problems, cut to a few."""

from collections.abc import Sequence

PROBLEMS_NAMED = 5


def few(names: Sequence[str], *, most: int = 3) -> str:
    """Joins names to "a, b, c and 4 more": at most `most` of them, and the number of others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def list_problems(name: str, problems: Sequence[str]) -> str:
    """Joins problems to one message that names `PROBLEMS_NAMED` at most and counts the others."""
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        return f"{name}: {problems[0]}"
    shown = "".join(f"\n  {problem}" for problem in problems[:PROBLEMS_NAMED])
    more = len(problems) - PROBLEMS_NAMED
    return f"{len(problems)} problems in {name}:{shown}" + (
        f"\n  and {more} more" if more > 0 else ""
    )
