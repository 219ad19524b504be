"""The overlap-tile strategy of the U-Net paper: prediction over images of any size, tile by tile.

Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015, section 1 and figure 2: a network of valid
convolutions predicts a centred window that is smaller than its input; the image is covered with
such windows, and what the inputs need beyond the border is mirrored.

Where the tiles stand decides whether they agree with a single pass over the whole image. A network
with `d` poolings of 2 × 2 moves its output with its input only for shifts by multiples of 2**d, so
all tiles begin on one grid of such multiples, the last ones included: they are not moved back
inside the image, but read further into its mirror image.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from segjax.inference.stitching import checked_outputs, image_size, weighted_mean

Weighting = Literal["uniform", "gaussian"]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """A `Covering` with tiles that are mirrored at the border; sizes are (height, width) in pixels.

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
      weighting: where outputs overlap, "uniform", the plain mean; or "gaussian", which trusts the
        middle of a tile more, as nnU-Net: standard deviation an eighth of the output's size.
        nnU-Net lifts zeros of its truncated filter to the smallest positive weight; here the
        Gaussian is evaluated, and none of its weights is zero.
    """

    input_size: tuple[int, int]
    output_size: tuple[int, int]
    multiple: int = 1
    overlap: float = 0.0
    weighting: Weighting = "uniform"

    def __post_init__(self):
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, found {self.multiple}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), found {self.overlap}")
        if self.weighting not in ("uniform", "gaussian"):
            raise ValueError(f'weighting must be "uniform" or "gaussian", found {self.weighting!r}')
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

    def positions(self, image_shape: Sequence[int]) -> list[tuple[int, int]]:
        """Where outputs begin; together they cover the image, and may end beyond it."""
        return list(itertools.product(*self._starts(image_shape)))

    def extract(self, image: np.ndarray, position: tuple[int, int]) -> np.ndarray:
        """The input for the output that begins at `position`, mirrored beyond the border.

        The mirror stands on the border pixels and does not repeat them (NumPy's "reflect",
        OpenCV's BORDER_REFLECT_101); an image smaller than its margin is mirrored again and again.
        """
        rows, columns = (
            _mirror(np.arange(start - margin, start - margin + size), length)
            for start, margin, size, length in zip(
                position, self.margin, self.input_size, image_size(image.shape), strict=True
            )
        )
        top, left = rows.min(), columns.min()
        visible = np.asarray(image[top : rows.max() + 1, left : columns.max() + 1])
        return visible.take(rows - top, axis=0).take(columns - left, axis=1)

    def stitch(self, outputs: Iterable[np.ndarray], image_shape: Sequence[int]) -> np.ndarray:
        count = len(self.positions(image_shape))
        return weighted_mean(
            checked_outputs(outputs, count=count, size=self.output_size, covering=self),
            image_size(image_shape),
            starts=self._starts(image_shape),
            weights=[_window(length, self.weighting) for length in self.output_size],
        )

    def kept_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """The input without the margin on each side."""
        return input_size[0] - 2 * self.margin[0], input_size[1] - 2 * self.margin[1]

    def scaled(self, scale: float) -> "Tiling":
        """The tiling itself: the network goes on seeing tiles of one size."""
        return self

    def single(self, image_shape: Sequence[int]) -> "Tiling":
        """The tiling of the same network that covers an image with one tile: one whole pass.

        Its output is the smallest that covers the image and differs from the tiling's by multiples
        of `multiple`, as the sizes that the network accepts do. Tiles equal it if the network sees
        no further than its context; group or instance normalisation, and pooling of whole images,
        see everything.
        """
        height, width = (
            length + (output - length) % self.multiple
            for length, output in zip(image_size(image_shape), self.output_size, strict=True)
        )
        input_size = height + 2 * self.margin[0], width + 2 * self.margin[1]
        return Tiling(input_size, (height, width), multiple=1)

    def _starts(self, image_shape: Sequence[int]) -> list[range]:
        """The rows, and the columns, at which outputs begin, until one reaches the end."""
        return [
            range(0, max(length - output, 0) + stride, stride)
            for length, output, stride in zip(
                image_size(image_shape), self.output_size, self.stride, strict=True
            )
        ]


def _mirror(index: np.ndarray, length: int) -> np.ndarray:
    """The pixel that each index, of any size and sign, means on an axis between two mirrors."""
    period = max(2 * length - 2, 1)
    index = index % period
    return np.minimum(index, period - index)


def _window(length: int, weighting: Weighting) -> np.ndarray:
    """How much each pixel of an output counts along one axis."""
    if weighting == "uniform":
        return np.ones(length)
    offset = np.arange(length) - (length - 1) / 2
    return np.exp(-0.5 * (offset / (length / 8)) ** 2)
