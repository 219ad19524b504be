"""The image files that `segjax predict` reads, and the names of what it writes of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from segjax.commands.errors import UserError, user_errors
from segjax.data.orientation import Orientation
from segjax.messages.lists import list_problems

if TYPE_CHECKING:
    from segjax.pretrained import Pretrained


@dataclass(frozen=True)
class ImageFile:
    """A file to segment.

    Attributes:
      path: the file.
      names: the name of each page's outputs, without suffix.
      channels: the numbers of channels of the pages, 1 and 3.
      dtypes: the pixel types of the pages, "uint8" and "uint16".
      sizes: the sizes (height, width) of the pages.
    """

    path: Path
    names: tuple[str, ...]
    channels: set[int]
    dtypes: set[str]
    sizes: set[tuple[int, int]]


def find_all(images: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Finds the image files, and counts the other files of the given folders in notes."""
    if not images:
        raise UserError(
            "no images given; expected files or folders after the run directory or name"
        )
    with user_errors():
        from segjax.data.images import find_images, note_other_files

        return find_images(images), [note for path in images for note in note_other_files(path)]


def read_all(paths: Sequence[Path], orientation: Orientation) -> list[ImageFile]:
    """Reads every image once, to find damaged files before anything is written."""
    from segjax.data.images import read_images

    kinds, problems = [], []
    for path in tqdm(paths, desc="reading", unit="file", leave=False, disable=None):
        try:
            pages = read_images(path, orientation=orientation)
            kinds.append([(x.shape[2], x.dtype.name, x.shape[:2]) for x in pages])
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(list_problems("the images", problems))
    names = output_names(paths, [len(pages) for pages in kinds])
    return [
        ImageFile(path, page_names, *map(set, zip(*pages, strict=True)))
        for path, page_names, pages in zip(paths, names, kinds, strict=True)
    ]


def refuse_other_bits(files: Sequence[ImageFile], trained: "Pretrained") -> None:
    """Raises UserError for 16-bit images if the model reads 8-bit photographs only.

    The model's normalisation takes 255 for white, so that 16-bit pixels would all be glare.
    """
    if getattr(trained.task, "pixel_range", None) is not None:
        return
    for file in files:
        if file.dtypes - {*trained.dtypes}:
            raise UserError(
                f"{file.path} has 16 bits; the model is for photographs of 8 bits. --pixel-range "
                "LOW HIGH maps other values to them, such as --pixel-range 0 65535"
            )


def note_other_types(files: Sequence[ImageFile], seen: Mapping[str, list]) -> list[str]:
    """Notes images of another type than those of the training, which the model takes as well."""
    types = {*seen["types"]} if seen else set()
    others = [file for file in files if types and file.dtypes - types]
    if not others:
        return []
    trained = f"{' and '.join(seen['types'])} with values {seen['range'][0]} to {seen['range'][1]}"
    kind = " and ".join(sorted(others[0].dtypes))
    return [
        f"the model was trained on images of {trained}; {len(others)} of {len(files)} are {kind}, "
        f"such as {others[0].path}"
    ]


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


def refuse_to_replace(files: Sequence[ImageFile], output: Path, *, overwrite: bool) -> None:
    """Raises UserError if an output would replace an existing file."""
    planned = [
        output / folder / f"{name}.png"
        for folder in ("labels", "instances", "overlays")
        for file in files
        for name in file.names
    ]
    planned += [output / "detections.json", output / "images.json"]
    inputs = {file.path.resolve() for file in files}
    if any(path.resolve() in inputs for path in planned):
        raise UserError(f"--output {output}: the predictions would replace the images themselves")
    existing = [path for path in planned if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} exists already"
            + (f", and {len(existing) - 1} more" if len(existing) > 1 else "")
            + "; choose another --output, or replace with --overwrite"
        )
