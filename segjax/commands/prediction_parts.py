"""`segjax predict` of images larger than memory: read, predicted and written part by part."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from segjax.commands.errors import UserError, user_errors
from segjax.commands.prediction_names import ProbabilityFormat, probability_names
from segjax.data.orientation import Orientation
from segjax.pictures.overlays import overlay, overlay_instances, with_legend, write_png

if TYPE_CHECKING:
    from segjax.commands.prediction_files import LabelFiles
    from segjax.commands.prediction_inputs import ImageFile
    from segjax.data.image_windows import Windows
    from segjax.data.label_tiffs import PageTags
    from segjax.trained.parts import PartPredictor

PICTURE_SIDE = 2000  # pixels of the longer side of a reduced picture
_BAND = 512  # rows that are read at once from a file of labels


@dataclass(frozen=True, eq=False)
class LargeImage:
    """An image that is predicted in parts.

    Attributes:
      image: as `segjax.data.image_windows.open_images` returns it.
      step: rows and columns of the image for each pixel of the picture.
      picture: the image reduced by `step` (means), [height, width, bands] in the image's type.
      whole: why the file was decoded as a whole, or None.
    """

    image: "Windows"
    step: int
    picture: np.ndarray
    whole: str | None


def is_large(path: Path, whole_pixels: int) -> bool:
    """Whether an image of a file has more pixels than are predicted as a whole.

    This is the rule that decides; all images of a file are treated alike.
    """
    from segjax.data.image_windows import stored_sizes

    return any(height * width > whole_pixels for height, width in stored_sizes(path))


def refuse_in_parts(
    path: Path, task: Any, *, whole_pixels: int, probabilities: ProbabilityFormat | None
) -> None:
    """Raises UserError if a model cannot predict a large file in parts; the message says why."""
    from segjax.trained.parts import why_not_in_parts

    limit = f"images of more than {whole_pixels:,} pixels are predicted in parts"
    raised = f"{path}: {limit}; --whole-pixels N raises the limit, for a machine with the memory"
    if reason := why_not_in_parts(task):
        raise UserError(f"{raised}. This model cannot: {reason}")
    if probabilities == "png":
        raise UserError(f"{raised}. --probabilities png cannot be written in parts; npy can")
    try:
        import tifffile  # noqa: F401
    except ImportError:
        raise UserError(
            f"{path}: {limit}, and tifffile writes their label maps; pip install 'segjax[tiff]'"
        ) from None


def open_large(path: Path, orientation: Orientation) -> Iterator[LargeImage]:
    """Opens the images of a file, and reads each once in windows, which finds damaged files.

    Raises:
      ValueError: the file is damaged; the message names it.
    """
    from segjax.data.image_windows import open_images

    images, whole = open_images(path, orientation=orientation)
    for image in images:
        height, width = image.shape[:2]
        step = max(1, min(-(-max(height, width) // PICTURE_SIDE), height, width))
        yield LargeImage(image, step, _reduced(image, step, path.name), whole)


def note_large(files: Iterable["ImageFile"], *, whole_pixels: int) -> list[str]:
    """Says which images are predicted in parts, and how their files differ."""
    notes = []
    for file in files:
        for name, large in zip(file.names, file.large, strict=bool(file.large)):
            height, width = large.image.shape[:2]
            note = f"{name}: {height * width:,} pixels are more than {whole_pixels:,} "
            note += "(--whole-pixels), so it is predicted in parts: its maps are TIFF files only"
            if large.step > 1:
                note += f", and its picture is reduced by {large.step}"
            notes.append(f"{note}; {large.whole}" if large.whole else note)
    return notes


def write_large(
    predictor: "PartPredictor",
    task: Any,
    large: LargeImage,
    files: "LabelFiles",
    *,
    name: str,
    path: Path,
    tags: "PageTags",
    probabilities: ProbabilityFormat | None,
) -> None:
    """Predicts an image part by part and writes its files as it goes.

    Args:
      predictor: the compiled model.
      task: its task.
      large: the image.
      files: the folders to write to.
      name: the name of the image's files.
      path: the file, for errors.
      tags: the tags that label maps keep.
      probabilities: "npy" also writes the probabilities.
    """
    from segjax.data.image_arrays import for_network
    from segjax.data.image_windows import Mapped
    from segjax.data.instance_bands import rows_of_parts
    from segjax.data.label_tiffs import write_label_tiff_in_parts

    height, width = large.image.shape[:2]
    size = height, width
    seen = Mapped(large.image, lambda pixels: for_network(pixels, task.channels, path=path))
    drawn: dict[str, list[np.ndarray]] = {}

    def write(kind: str, bands: Iterable[np.ndarray], dtype: Any) -> None:
        kept = drawn.setdefault(kind, [])
        folder = files.folder(f"{kind}_tiff")
        with user_errors():
            write_label_tiff_in_parts(
                folder / f"{name}.tif", _thinned(bands, large.step, kept), size, dtype, tags
            )

    with tempfile.TemporaryDirectory(dir=files.output, prefix=".parts_") as scratch:
        parts = predictor(seen, scratch=Path(scratch), name=name)
        if probabilities is not None:
            (file_name,) = probability_names(name, task.classes, probabilities)
            parts = _saved(parts, files.folder("probabilities") / file_name, size)
        labels = rows_of_parts(
            ((row, column, part.argmax(axis=-1).astype(np.uint8)) for row, column, part in parts),
            size[1],
        )
        if task.decode is None:
            write("labels", labels, np.uint8)
        else:
            found, objects = (
                RowFile(Path(scratch) / name, size[1]) for name in ("found", "objects")
            )
            for band in labels:
                found.append(band)
            count, bands = task.decode.instances_in_bands(found.read)
            dtype = np.uint16 if count < 2**16 else np.uint32
            write("instances", _noted(bands(), objects), dtype)
            write("labels", objects.read(), np.uint8)
    image = large.picture  # has whole cells only
    shown = {
        kind: np.concatenate(bands)[: image.shape[0], : image.shape[1]]
        for kind, bands in drawn.items()
    }
    background = getattr(task, "background_class", None)
    if "instances" in shown:
        picture = overlay_instances(image, shown["instances"].astype(np.int64))
    else:
        picture = overlay(image, shown["labels"], background=background)
        picture = with_legend(picture, shown["labels"], task.classes, background=background)
    write_png(files.folder("overlays") / f"{name}.png", picture)


def _reduced(image: "Windows", step: int, name: str) -> np.ndarray:
    """Reads an image once, and returns the means of its cells of `step` × `step` pixels."""
    from segjax.data.image_windows import BLOCK, blocks

    height, width = (length // step for length in image.shape[:2])
    reduced = np.zeros((height, width, *image.shape[2:]), image.dtype)
    side = max(BLOCK // step, 1) * step
    windows = [*blocks(image, side)]
    for rows, columns in tqdm(windows, desc=f"reading {name}", unit="window", disable=None):
        pixels = image[rows, columns]
        down, across = pixels.shape[0] // step, pixels.shape[1] // step
        if down and across:
            cells = pixels[: down * step, : across * step]
            cells = cells.reshape(down, step, across, step, -1).mean(axis=(1, 3), dtype=np.float64)
            cells = np.rint(cells) if image.dtype.kind in "iu" else cells
            top, left = rows.start // step, columns.start // step
            reduced[top : top + down, left : left + across] = cells.astype(image.dtype)
    return reduced


def _thinned(
    bands: Iterable[np.ndarray], step: int, kept: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """Passes bands on, and keeps the pixel in the middle of each cell of `step` × `step`."""
    row = 0
    for band in bands:
        first = (step // 2 - row) % step
        kept.append(np.array(band[first::step, step // 2 :: step]))
        row += len(band)
        yield band


def _saved(
    parts: Iterable[tuple[int, int, np.ndarray]], path: Path, size: tuple[int, int]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Passes parts on, and writes them to a NumPy file."""
    array = None
    for row, column, part in parts:
        if array is None:
            array = np.lib.format.open_memmap(
                path, mode="w+", dtype=np.float32, shape=(*size, part.shape[2])
            )
        array[row : row + part.shape[0], column : column + part.shape[1]] = part
        yield row, column, part


def _noted(bands: Iterable[np.ndarray], objects: "RowFile") -> Iterator[np.ndarray]:
    """Passes bands of object numbers on, and writes where there are objects."""
    for band in bands:
        objects.append(band > 0)
        yield band


class RowFile:
    """Rows of uint8 in a file, which are written once and read again and again.

    Args:
      path: the file, which does not exist.
      width: pixels in a row.
    """

    def __init__(self, path: Path, width: int):
        self._path, self._width = path, width

    def append(self, band: np.ndarray) -> None:
        """Writes the rows of a band, [rows, width]."""
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(band, np.uint8).data)

    def read(self) -> Iterator[np.ndarray]:
        """Yields all rows as bands."""
        with self._path.open("rb") as file:
            while data := file.read(_BAND * self._width):
                yield np.frombuffer(data, np.uint8).reshape(-1, self._width)
