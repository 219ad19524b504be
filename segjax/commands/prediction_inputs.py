"""The image files that `segjax predict` reads, and the names of what it writes of each."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from segjax.commands.errors import UserError, user_errors
from segjax.commands.prediction_names import output_names
from segjax.commands.prediction_parts import LargeImage, open_large
from segjax.data.orientation import Orientation
from segjax.messages.lists import list_problems

if TYPE_CHECKING:
    from segjax.data.label_tiffs import PageTags
    from segjax.pretrained import Pretrained


@dataclass(frozen=True)
class ImageFile:
    """A file to segment.

    Attributes:
      path: the file.
      names: the name of each page's outputs, without suffix.
      channels: the numbers of channels of the pages.
      dtypes: the pixel types of the pages, as networks read them: "uint8", "uint16" or "float32".
      sizes: the sizes (height, width) of the pages.
      tags: the tags of each page that its label map keeps; empty if the file is no TIFF.
      large: the pages, if they are predicted in parts; else empty.
    """

    path: Path
    names: tuple[str, ...]
    channels: set[int]
    dtypes: set[str]
    sizes: set[tuple[int, int]]
    tags: tuple["PageTags", ...]
    large: tuple["LargeImage", ...] = ()


def find_all(images: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Finds the image files, and counts the other files of the given folders in notes."""
    if not images:
        raise UserError(
            "no images given; expected files or folders after the run directory or name"
        )
    with user_errors():
        from segjax.data.image_arrays import ARRAY_SUFFIXES
        from segjax.data.images import find_images, note_other_files

        notes = [x for path in images for x in note_other_files(path, suffixes=ARRAY_SUFFIXES)]
        return find_images(images, suffixes=ARRAY_SUFFIXES), notes


def read_all(
    paths: Sequence[Path],
    orientation: Orientation,
    *,
    channels: int,
    large: Collection[Path] = (),
) -> list[ImageFile]:
    """Reads every image once, to find damaged files before anything is written.

    Args:
      paths: the files.
      orientation: how they are read.
      channels: the bands that the model takes.
      large: files that are read in windows; see `prediction_parts.is_large`.

    Raises:
      UserError: files are damaged, or have other bands than the model's `channels`.
    """
    from segjax.data.image_arrays import for_network, read_arrays
    from segjax.data.label_tiffs import read_page_tags

    kinds, tags, parts, problems = [], [], [], []
    for path in tqdm(paths, desc="reading", unit="file", leave=False, disable=None):
        try:
            kinds.append([])
            parts.append(tuple(open_large(path, orientation)) if path in large else ())
            pages = (
                ((page.image.shape, page.image[:1, :1]) for page in parts[-1])
                if parts[-1]
                else ((page.shape, page) for page in read_arrays(path, orientation=orientation))
            )
            for shape, pixels in pages:
                dtype = for_network(pixels, channels, path=path).dtype.name
                kinds[-1].append((shape[2], dtype, shape[:2]))
            tags.append(read_page_tags(path, len(kinds[-1]), orientation=orientation))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(list_problems("the images", problems))
    names = output_names(paths, [len(pages) for pages in kinds])
    return [
        ImageFile(
            path, page_names, *map(set, zip(*pages, strict=True)), tags=(*page_tags,), large=of_file
        )
        for path, page_names, pages, page_tags, of_file in zip(
            paths, names, kinds, tags, parts, strict=True
        )
    ]


def refuse_other_bits(files: Sequence[ImageFile], trained: "Pretrained") -> None:
    """Raises UserError for 16-bit images if the model reads 8-bit photographs only.

    The model's normalisation takes 255 for white, so that 16-bit pixels would all be glare.
    """
    if getattr(trained.task, "pixel_range", None) is not None:
        return
    for file in files:
        if file.dtypes - {*trained.dtypes}:
            kind = "16 bits" if "uint16" in file.dtypes else "pixels of more than 16 bits"
            raise UserError(
                f"{file.path} has {kind}; the model is for photographs of 8 bits. --pixel-range "
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


def note_tags_left_out(files: Sequence[ImageFile]) -> list[str]:
    """Notes what label maps do not keep of the tags of TIFF files, one sentence a reason."""
    losers: dict[str, list[Path]] = {}
    for file in files:
        for reason in {reason for tags in file.tags for reason in tags.left_out}:
            losers.setdefault(reason, []).append(file.path)
    return [
        f"the label maps of {len(paths)} of {len(files)} files do not keep {reason}, such as "
        f"{paths[0]}"
        for reason, paths in losers.items()
    ]
