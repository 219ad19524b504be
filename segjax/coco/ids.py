"""Ids of images, categories and annotations, as different tools write them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Id = int | str
_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")


def id_key(value) -> Id:
    """Returns the value by which ids are compared: 7 for 7, 7.0 and "7", other text as it is.

    Raises:
      ValueError: the value is neither a whole number nor a text.
    """
    if type(value) is int:
        return value
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return int(text) if _WHOLE.fullmatch(text) else text
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError(f"{value!r:.40} is no id; expected a whole number or a text")


def own_id(value) -> Id:
    """Returns an id as results must hold it: COCO's tools tell 7 from "7", but not from 7.0."""
    return value if isinstance(value, str) else id_key(value)


def id_order(key: Id) -> tuple[bool, Id]:
    """Returns the key for sorting ids: numbers first, then texts."""
    return isinstance(key, str), key


@dataclass(frozen=True)
class ResultIds:
    """The category ids of a model's classes in results.

    Attributes:
      ids: the id of each class, without the background.
      made_up: names of the classes whose ids no data set gives.
      listed: whether an annotation file gives the ids.
    """

    ids: tuple[Id, ...]
    made_up: tuple[str, ...]
    listed: bool = False


def result_ids(
    names: Sequence[str],
    *,
    own: Sequence[Id] | None = None,
    listed: Mapping[Id, str] | None = None,
) -> ResultIds:
    """Chooses the category ids of classes in results.

    An annotation file decides about the classes that it lists by name. Another class keeps the id
    that it was trained with, unless the file gives this id to another category. The remaining
    classes get new numbers, which the file does not have: COCO's tools ignore them.

    Args:
      names: the names of the classes, without the background.
      own: the category ids of the training data.
      listed: the categories of an annotation file, names by id.
    """
    listed = listed or {}
    by_name = {name: number for number, name in listed.items()}
    taken = {id_key(number) for number in listed}
    ids: list[Id | None] = [by_name.get(name) for name in names]
    for place, number in enumerate(own or ()):
        if ids[place] is None and id_key(number) not in taken:
            ids[place] = number
    taken |= {id_key(number) for number in ids if number is not None}
    free = _free_numbers(taken)
    chosen = tuple(next(free) if number is None else number for number in ids)
    made_up = tuple(name for name, number in zip(names, ids, strict=True) if number is None)
    return ResultIds(chosen, made_up, listed=any(name in by_name for name in names))


def _free_numbers(taken: set[Id]) -> Iterator[int]:
    """Yields numbers above all that are taken, from 1 on."""
    number = max((key for key in taken if isinstance(key, int)), default=0)
    number = max(number, 0)
    while True:
        number += 1
        yield number
