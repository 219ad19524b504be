"""Label values and class names, as data, losses, scores and pictures share them."""

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
    wanted, plain = _plain(name), [_plain(each) for each in classes]
    if wanted in plain:
        return plain.index(wanted)
    if wanted != BACKGROUND:
        raise ValueError(
            f"background={name!r} is none of the classes {', '.join(classes)}; without a "
            f"background, leave it at {BACKGROUND!r}"
        )
    return None


def check_classes(classes: Sequence[str]) -> None:
    """Checks that classes can be told apart by their names.

    Raises:
      ValueError: a name is no text, is empty or occurs twice, or the background occurs twice.
    """
    for name in classes:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"a class is named {name!r}; expected a text")
        if classes.count(name) > 1:
            raise ValueError(f"two classes are named {name!r}; expected different names")
    backgrounds = [name for name in classes if _plain(name) == BACKGROUND]
    if len(backgrounds) > 1:
        raise ValueError(
            f"the classes {' and '.join(map(repr, backgrounds))} both name the background; name it "
            "once"
        )


def _plain(name: str) -> str:
    return name.casefold().strip("_")
