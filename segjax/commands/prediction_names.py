"""The names of the files that `segjax predict` writes, none of which replaces another file."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segjax.commands.errors import UserError

if TYPE_CHECKING:
    from segjax.commands.prediction_inputs import ImageFile

ProbabilityFormat = Literal["npy", "png"]


def output_names(paths: Sequence[Path], page_counts: Sequence[int]) -> list[tuple[str, ...]]:
    """Names the outputs of each page of each file; no two names are equal, ignoring case.

    A name is the file's without suffix. Where names clash, the suffix is added, and if they still
    clash, as many parent folders as it takes. Pages are numbered from 0.
    """
    paths = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        for with_suffix in (False, True):
            names = []
            for path, count in zip(paths, page_counts, strict=True):
                stem = path.stem + path.suffix.replace(".", "_") * with_suffix
                stem = "_".join([*path.parts[:-1][-depth + 1 or len(path.parts) :], stem])
                digits = len(str(count - 1))
                pages = [f"{stem}_page{page:0{digits}d}" for page in range(count)]
                names.append((stem,) if count == 1 else tuple(pages))
            flat = [name.casefold() for pages in names for name in pages]
            if len(set(flat)) == len(flat):
                return names
    raise UserError(f"the names of {len(paths)} images clash; predict them in separate calls")


def class_file_names(classes: Sequence[str]) -> list[str]:
    """Returns a name for each class that any file system takes; no two are equal, ignoring case.

    Letters, digits, "_" and "-" stay. Other characters become "_". If names clash, or nothing is
    left of one, each begins with the class's number.
    """
    names = [re.sub(r"[^\w-]+", "_", name).strip("_") for name in classes]
    if all(names) and len({name.casefold() for name in names}) == len(names):
        return names
    return [f"{number}_{name}".rstrip("_") for number, name in enumerate(names)]


def probability_names(name: str, classes: Sequence[str], kind: ProbabilityFormat) -> list[str]:
    """Returns the names of an image's probability maps: one of all classes, or one for each."""
    if kind == "npy":
        return [f"{name}.npy"]
    return [f"{name}_{of_class}.png" for of_class in class_file_names(classes)]


def planned_files(
    files: Sequence["ImageFile"],
    output: Path,
    *,
    classes: Sequence[str],
    probabilities: ProbabilityFormat | None,
) -> list[Path]:
    """Returns all files that predictions of any model may write.

    Raises:
      UserError: the probability maps of two images would have one name.
    """
    planned = [output / "detections.json", output / "images.json"]
    for file in files:
        for page, name in enumerate(file.names):
            folders = ("overlays",) if file.large else ("labels", "instances", "overlays")
            planned += [output / folder / f"{name}.png" for folder in folders]
            if file.large or (file.tags and file.tags[page]):
                folders = ("labels_tiff", "instances_tiff")
                planned += [output / folder / f"{name}.tif" for folder in folders]
    if probabilities is not None:
        maps = [
            each
            for file in files
            for name in file.names
            for each in probability_names(name, classes, probabilities)
        ]
        twice = [name for name, n in Counter(map(str.casefold, maps)).items() if n > 1]
        if twice:
            raise UserError(
                f"two images would have the probability map {twice[0]}; predict them in separate "
                "calls"
            )
        planned += [output / "probabilities" / name for name in maps]
    return planned


def refuse_to_replace(
    planned: Sequence[Path], output: Path, *, inputs: Sequence[Path], overwrite: bool
) -> None:
    """Raises UserError if an output would replace an existing file."""
    own = {path.resolve() for path in inputs}
    if any(path.resolve() in own for path in planned):
        raise UserError(f"--output {output}: the predictions would replace the images themselves")
    existing = [path for path in planned if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} exists already"
            + (f", and {len(existing) - 1} more" if len(existing) > 1 else "")
            + "; choose another --output, or replace with --overwrite"
        )
