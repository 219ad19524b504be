"""What labels mean, for data, losses, scores and pictures alike: ignored pixels, the background."""

from collections.abc import Sequence

IGNORE_LABEL = 255
BACKGROUND = "background"


def background_class(classes: Sequence[str], name: str = BACKGROUND) -> int | None:
    """Finds the id of the class that is the background; None if there is none.

    Capitals do not count, nor do underscores at the ends: labelme writes "_background_".

    Args:
      classes: the name of each class id.
      name: the name of the background. Classes without one called "background" have none.

    Raises:
      ValueError: another name is given, and no class has it.
    """
    plain = [each.casefold().strip("_") for each in classes]
    wanted = name.casefold().strip("_")
    if wanted in plain:
        return plain.index(wanted)
    if wanted != BACKGROUND:
        raise ValueError(
            f"background={name!r} is none of the classes {', '.join(classes)}; without a "
            f"background, leave it at {BACKGROUND!r}"
        )
    return None
