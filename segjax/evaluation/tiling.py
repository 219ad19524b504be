"""Prediction over images of any size, tile by tile: the overlap-tile strategy of the U-Net paper.

Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015, section 1 and figure 2: a network of valid
convolutions predicts a centred window that is smaller than its input; the image is covered with
such windows, and what the inputs need beyond the border is mirrored.

Where the tiles stand decides whether they agree with a single pass over the whole image. A network
with `d` poolings of 2 × 2 moves its output with its input only for shifts by multiples of 2**d, so
all tiles begin on one grid of such multiples, the last ones included: they are not moved back
inside the image, but read further into its mirror image.

The functions leave it to the caller how tiles are batched. Tiles of many images in one stream::

    tiles = (
        extract_tile(image, position, tiling)
        for image in images
        for position in tile_positions(image.shape, tiling)
    )
    outputs = predict(tiles)  # an iterator over probabilities, tile by tile
    for image in images:
        count = len(tile_positions(image.shape, tiling))
        probabilities = stitch(itertools.islice(outputs, count), image.shape, tiling)
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

Weighting = Literal["uniform", "gaussian"]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How one network covers an image with tiles; all sizes are (height, width) in pixels.

    The output is the centred window of the input that is kept: for a network of valid convolutions
    what it returns, for a padded one the input without a context around it, which its zero padding
    would disturb. With a context as wide as the receptive field reaches, tiles of a padded network
    equal a pass over the whole image; with less, or none, `overlap` hides the seams.

    Attributes:
      input_size: what the network reads, (572, 572) in the paper.
      output_size: what is kept of it, (388, 388) in the paper.
      multiple: tiles begin at multiples of this: 2**depth for a U-Net, the output stride for an
        encoder without a decoder; 1 only for a network that does not subsample.
      overlap: the least part of its height and width that an output shares with the next one,
        in [0, 1); nnU-Net uses 0.5.
    """

    input_size: tuple[int, int]
    output_size: tuple[int, int]
    multiple: int = 1
    overlap: float = 0.0

    def __post_init__(self):
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, found {self.multiple}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), found {self.overlap}")
        for axis, size, kept in zip(
            ("height", "width"), self.input_size, self.output_size, strict=True
        ):
            if not 1 <= kept <= size or (size - kept) % 2:
                raise ValueError(
                    f"the output must be a centred window of the input, smaller by an even number "
                    f"of pixels or equal; found input {axis} {size}, output {axis} {kept}"
                )
        if min(self.stride) < self.multiple:
            raise ValueError(
                f"outputs of {self.output_size} pixels with overlap {self.overlap} cannot begin at "
                f"multiples of {self.multiple}: take a larger output or a smaller overlap"
            )

    @property
    def margin(self) -> tuple[int, int]:
        """Rows and columns that the input extends beyond the output, on each side."""
        (height, width), (kept_height, kept_width) = self.input_size, self.output_size
        return (height - kept_height) // 2, (width - kept_width) // 2

    @property
    def stride(self) -> tuple[int, int]:
        """Rows and columns from a tile to the next: the largest multiple the overlap allows."""

        def largest_multiple(size: int) -> int:
            # 80 · (1 − 0.8) is 15.999999999999996: the tolerance keeps it a step of 16.
            steps = math.floor(size * (1 - self.overlap) / self.multiple + 1e-9)
            return steps * self.multiple

        return largest_multiple(self.output_size[0]), largest_multiple(self.output_size[1])


def tile_positions(image_shape: Sequence[int], tiling: Tiling) -> list[tuple[int, int]]:
    """Where in the image the outputs of its tiles begin, (row, column), row by row.

    `image_shape` is [height, width, ...]. The outputs cover the image and may end beyond it.
    Raises ValueError for an image without pixels.
    """
    rows, columns = (
        _starts(length, output, stride)
        for length, output, stride in zip(
            _image_size(image_shape), tiling.output_size, tiling.stride, strict=True
        )
    )
    return list(itertools.product(rows, columns))


def extract_tile(image: np.ndarray, position: tuple[int, int], tiling: Tiling) -> np.ndarray:
    """The network's input for the output that begins at `position`, mirrored beyond the border.

    Takes [height, width, ...] of any dtype, returns [input height, input width, ...] of the same.
    The mirror stands on the border pixels and does not repeat them (NumPy's "reflect", OpenCV's
    BORDER_REFLECT_101); an image smaller than its margin is mirrored again and again. Only the part
    that the tile sees is read, so that `image` may be a memory map.
    """
    rows, columns = (
        _mirror(np.arange(start - margin, start - margin + size), length)
        for start, margin, size, length in zip(
            position, tiling.margin, tiling.input_size, _image_size(image.shape), strict=True
        )
    )
    top, left = rows.min(), columns.min()
    visible = np.asarray(image[top : rows.max() + 1, left : columns.max() + 1])
    return visible.take(rows - top, axis=0).take(columns - left, axis=1)


def split(image: np.ndarray, tiling: Tiling) -> np.ndarray:
    """All tiles of an image, [tiles, input height, input width, ...], as `tile_positions` orders.

    For an image whose tiles do not fit in memory at once, call `extract_tile` for each position.
    """
    return np.stack(
        [extract_tile(image, position, tiling) for position in tile_positions(image.shape, tiling)]
    )


def stitch(
    outputs: Iterable[np.ndarray],
    image_shape: Sequence[int],
    tiling: Tiling,
    *,
    weighting: Weighting = "uniform",
) -> np.ndarray:
    """The prediction for an image from those for its tiles, averaged where they overlap.

    Args:
      outputs: one array [output height, output width, ...] for each of `tile_positions`, in that
        order: an array [tiles, ...] or an iterator, of which one tile is held at a time. Outputs
        as large as the input, which padded networks return, are cropped to their centre. Give
        probabilities rather than logits unless the mean of logits is what you want.
      image_shape: [height, width, ...] of the image.
      tiling: the one that made the tiles.
      weighting: "uniform", the plain mean, as mmsegmentation; or "gaussian", which trusts the
        middle of a tile more, as nnU-Net: standard deviation an eighth of the output's size.
        nnU-Net lifts zeros of its truncated filter to the smallest positive weight; here the
        Gaussian is evaluated, and none of its weights is zero.

    Returns:
      [height, width, ...], float32 (float64 for float64 outputs).

    Raises:
      ValueError: too few or too many outputs, or one of the wrong size.
      TypeError: integer outputs, which would be class ids: these have no mean.
    """
    if weighting not in ("uniform", "gaussian"):
        raise ValueError(f'weighting must be "uniform" or "gaussian", found {weighting!r}')
    height, width = _image_size(image_shape)
    positions = tile_positions(image_shape, tiling)
    # Tiles stand on a product grid and windows are products, so the sum of weights that a mean
    # divides by is a product too: normalised by axis, the weights of every pixel sum to one.
    row_weights, column_weights = (
        _normalised_weights(length, output, stride, weighting)
        for length, output, stride in zip(
            (height, width), tiling.output_size, tiling.stride, strict=True
        )
    )
    stitched = None
    for position, output in itertools.zip_longest(positions, outputs):
        if position is None or output is None:
            raise ValueError(
                f"an image of {height} × {width} pixels has {len(positions)} tiles with {tiling}; "
                f"found {'fewer' if output is None else 'more'} outputs"
            )
        output = np.asarray(output)
        if output.shape[:2] == tuple(tiling.input_size):
            top, left = tiling.margin
            output = output[top:, left:][: tiling.output_size[0], : tiling.output_size[1]]
        if output.shape[:2] != tuple(tiling.output_size):
            raise ValueError(
                f"expected outputs of {tiling.output_size[0]} × {tiling.output_size[1]} pixels, "
                f"found shape {output.shape}"
            )
        if output.dtype.kind in "biu":
            raise TypeError(f"expected probabilities or logits to average, found {output.dtype}")
        if stitched is None:
            dtype = np.result_type(output.dtype, np.float32)
            stitched = np.zeros((height, width, *output.shape[2:]), dtype)
        row, column = position
        weights = np.outer(row_weights[row], column_weights[column])
        window = stitched[row : row + output.shape[0], column : column + output.shape[1]]
        inside = np.s_[: window.shape[0], : window.shape[1]]
        window += output[inside] * np.expand_dims(weights[inside], tuple(range(2, output.ndim)))
    return stitched


def single_tile(image_shape: Sequence[int], tiling: Tiling) -> Tiling:
    """The tiling of the same network that covers an image with one tile: the whole-image pass.

    Its output is the smallest that covers the image and differs from the tiling's by multiples of
    `multiple`, as the sizes that the network accepts do. `split` then pads the image for the pass,
    and `stitch` crops the result. Tiles equal it if the network sees no further than its context;
    group or instance normalisation, and pooling of whole images, see everything.
    """
    output_size = tuple(
        length + (output - length) % tiling.multiple
        for length, output in zip(_image_size(image_shape), tiling.output_size, strict=True)
    )
    input_size = tuple(
        output + 2 * margin for output, margin in zip(output_size, tiling.margin, strict=True)
    )
    return Tiling(input_size, output_size, multiple=1)


def _image_size(image_shape: Sequence[int]) -> tuple[int, int]:
    if len(image_shape) < 2 or min(image_shape[:2]) < 1:
        raise ValueError(f"expected an image [height, width, ...], found shape {image_shape}")
    return image_shape[0], image_shape[1]


def _starts(length: int, output: int, stride: int) -> range:
    """Where along one axis outputs begin, until one reaches the end."""
    return range(0, max(length - output, 0) + stride, stride)


def _mirror(index: np.ndarray, length: int) -> np.ndarray:
    """The pixel that each index, of any size and sign, means on an axis between two mirrors."""
    period = max(2 * length - 2, 1)
    index = index % period
    return np.minimum(index, period - index)


def _normalised_weights(
    length: int, output: int, stride: int, weighting: Weighting
) -> dict[int, np.ndarray]:
    """Along one axis, each tile's weights over the sum of all tiles' weights, by start."""
    if weighting == "gaussian":
        offset = np.arange(output) - (output - 1) / 2
        window = np.exp(-0.5 * (offset / (output / 8)) ** 2)
    else:
        window = np.ones(output)
    starts = _starts(length, output, stride)
    total = np.zeros(starts[-1] + output)
    for start in starts:
        total[start : start + output] += window
    return {start: (window / total[start : start + output]).astype(np.float32) for start in starts}
