"""Which arguments of a command go together."""

from collections.abc import Mapping, Sequence

from segjax.commands.errors import UserError

Way = tuple[Sequence[str], Sequence[str]]  # the arguments needed, and those that may join them


def check_combination(command: str, arguments: Mapping[str, object], ways: Sequence[Way]) -> None:
    """Raises UserError unless the arguments that are given are one of the ways.

    Args:
      command: the command's name, for the message.
      arguments: the value of each argument by name; None if it is not given.
      ways: the combinations.
    """
    given = [name for name, value in arguments.items() if value is not None]
    for needed, optional in ways:
        if set(needed) <= set(given) <= {*needed, *optional}:
            return
    listed = " or ".join(
        f"{' and '.join(needed)} (with or without {', '.join(optional)})"
        for needed, optional in ways
    )
    raise UserError(f"{command} takes {listed}, but got {', '.join(given) or 'none of them'}")
