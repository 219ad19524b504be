"""The overlap-tile strategy of the U-Net paper: predicts images of any size tile by tile.

Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015, section 1 and figure 2: a network of valid
convolutions predicts a centred window that is smaller than its input. Such windows cover the image.
Where an input reaches beyond the border, the image is mirrored.

Tiles agree with a single pass over the whole image only if they stand on the right grid. With `d`
poolings of 2 × 2, a network's output moves with its input only for shifts by multiples of 2**d. So
all tiles begin at such multiples. The last ones are not moved back inside the image; they read
further into its mirror image.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from segjax.inference.stitching import (
    checked_outputs,
    image_size,
    mean_in_parts,
    mean_of_windows,
)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """A `Covering` by tiles, mirrored at the border; sizes are (height, width) in pixels.

    The output is the centred window of the input that is kept. A network of valid convolutions
    returns just that. A padded network's result has a border that zero padding disturbs; it is cut
    off. If this border is as wide as the receptive field reaches, tiles of a padded network equal
    a pass over the whole image. If it is narrower, seams may show.

    Attributes:
      input_size: size of the network's input, (572, 572) in the paper.
      output_size: size of the output that is kept, (388, 388) in the paper.
      multiple: tiles begin at multiples of this: 2**depth for a U-Net, the output stride for an
        encoder without a decoder, and 1 only for a network that does not subsample.
    """

    input_size: tuple[int, int]
    output_size: tuple[int, int]
    multiple: int = 1

    def __post_init__(self):
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, found {self.multiple}")
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
                f"outputs of {self.output_size} pixels that begin at multiples of {self.multiple} "
                "leave gaps: take a larger output"
            )

    @property
    def margin(self) -> tuple[int, int]:
        """Rows and columns that the input extends beyond the output, on each side."""
        (height, width), (kept_height, kept_width) = self.input_size, self.output_size
        return (height - kept_height) // 2, (width - kept_width) // 2

    @property
    def stride(self) -> tuple[int, int]:
        """Rows and columns from one tile to the next: the largest multiples within an output."""
        height, width = (length // self.multiple * self.multiple for length in self.output_size)
        return height, width

    def positions(self, image_shape: Sequence[int]) -> list[tuple[int, int]]:
        """Returns where outputs begin. They cover the image; the last ones may end beyond it."""
        rows, columns = self._starts(image_shape)
        return list(itertools.product(rows, columns))

    def extract(self, image: np.ndarray, position: tuple[int, int]) -> np.ndarray:
        """Returns the input for the output that begins at `position`, mirrored at the border.

        The border pixels are not repeated (NumPy's "reflect", OpenCV's BORDER_REFLECT_101). An
        image smaller than the margin is mirrored again and again.
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
        return mean_of_windows(
            checked_outputs(outputs, count=count, size=self.output_size, covering=self),
            image_size(image_shape),
            starts=self._starts(image_shape),
            window=self.output_size,
        )

    def stitch_parts(
        self, outputs: Iterable[np.ndarray], image_shape: Sequence[int]
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Joins as `stitch`, part by part; see `segjax.inference.stitching.mean_in_parts`."""
        count = len(self.positions(image_shape))
        return mean_in_parts(
            checked_outputs(outputs, count=count, size=self.output_size, covering=self),
            image_size(image_shape),
            starts=self._starts(image_shape),
            window=self.output_size,
        )

    def kept_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of the input without the margin on each side."""
        return input_size[0] - 2 * self.margin[0], input_size[1] - 2 * self.margin[1]

    def scaled(self, scale: float) -> "Tiling":
        """Returns the tiling itself: the network still sees tiles of one size."""
        return self

    def single(self, image_shape: Sequence[int]) -> "Tiling":
        """Returns the tiling of the same network that covers an image with a single tile.

        Its output is the smallest one that covers the image and differs from this tiling's by
        multiples of `multiple`, as the network requires. Tiles agree with it if the network sees no
        further than the margin. Group or instance normalisation and global pooling see the whole
        image.
        """
        height, width = (
            length + (output - length) % self.multiple
            for length, output in zip(image_size(image_shape), self.output_size, strict=True)
        )
        input_size = height + 2 * self.margin[0], width + 2 * self.margin[1]
        return Tiling(input_size, (height, width), multiple=1)

    def _starts(self, image_shape: Sequence[int]) -> list[range]:
        """Returns the rows and the columns at which outputs begin, until one reaches the end."""
        return [
            range(0, max(length - output, 0) + stride, stride)
            for length, output, stride in zip(
                image_size(image_shape), self.output_size, self.stride, strict=True
            )
        ]


def _mirror(index: np.ndarray, length: int) -> np.ndarray:
    """Maps indices of any size and sign to pixels of an axis that is mirrored at both ends."""
    period = max(2 * length - 2, 1)
    index = index % period
    return np.minimum(index, period - index)
