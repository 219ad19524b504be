"""U-Net: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image
Segmentation", MICCAI 2015 (arXiv:1505.04597).

The default is the network of the paper's figure 1: 3×3 convolutions without padding, 2×2 max
pooling, learned 2×2 up-convolutions, centre-cropped skip connections, 23 convolutional layers and
31,030,658 parameters for one input channel and two classes. `output_size`, `input_size_for` and
`nearest_valid_sizes` relate the sides of input and output.
"""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from segjax.models.layers import Convolution, UpConvolution, max_pool
from segjax.models.network import Network
from segjax.models.normalization import GroupNorm, Norm, NormName, norm_of
from segjax.ops.convolution import Padding
from segjax.ops.initializers import he_normal_fan_in

# Section 3: weights drawn from a Gaussian of standard deviation sqrt(2 / N), N the number of
# incoming nodes of one neuron.
he_normal = he_normal_fan_in


def output_size(input_size: int, *, depth: int = 4, padding: Padding = "VALID") -> int:
    """Returns the side of the output for a side of the input, in pixels (572 → 388).

    Raises:
      ValueError: a map to be pooled would have an odd side, or the output none; the message names
        the nearest valid sizes.
    """
    size = _output_size_or_none(input_size, depth, padding)
    if size is None:
        below, above = nearest_valid_sizes(input_size, depth=depth, padding=padding)
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"an input side of {input_size} does not fit a U-Net of depth {depth} with {padding} "
            f"padding: every pooled map must have an even side; the nearest valid size is {nearest}"
        )
    return size


def input_size_for(output: int, *, depth: int = 4, padding: Padding = "VALID") -> int:
    """Returns the smallest valid side of the input whose output has at least `output` pixels."""
    size = max(output, 1)
    while (_output_size_or_none(size, depth, padding) or 0) < output:
        size += 1
    return size


def nearest_valid_sizes(
    size: int, *, depth: int = 4, padding: Padding = "VALID"
) -> tuple[int | None, int]:
    """Returns the largest valid input side ≤ `size`, or None, and the smallest one ≥ it."""
    below = next((s for s in range(size, 0, -1) if _output_size_or_none(s, depth, padding)), None)
    above = max(size, 1)
    while not _output_size_or_none(above, depth, padding):
        above += 1
    return below, above


def _output_size_or_none(size, depth, padding):
    lost = 4 if padding == "VALID" else 0  # two 3×3 convolutions
    for _ in range(depth):
        size -= lost
        if size < 2 or size % 2:
            return None
        size //= 2
    size -= lost
    for _ in range(depth):
        size = 2 * size - lost
    return size if size > 0 else None


class Conv(Convolution):
    """A `Convolution` whose layers Linen names "Conv_0", "Conv_1" …, as in saved networks."""


class UNet(Network):
    """The paper's U-Net by default; its arguments give the later padded and normalised ones.

    A subclass may override `block` and `skip`; see `experiments/extending/attention_unet.py`.

    Attributes:
      num_classes: number of classes, background included.
      features: channels of the first level; each deeper level has twice as many.
      depth: number of 2×2 poolings.
      padding: "VALID" as in the paper (572 → 388), or "SAME": the output is as large as the input,
        whose sides must be multiples of 2**depth.
      norm: norm between each 3×3 convolution and its ReLU: None as in the paper, a name, or a
        module class.
      dropout_rate: dropout at the end of the contracting path (section 3.1): after each of the last
        two levels and before the skip is taken, as in the authors' released network.
      dtype: computation dtype, such as `jnp.bfloat16`; parameters and logits are float32.
    """

    num_classes: int
    features: int = 64
    depth: int = 4
    padding: Padding = "VALID"
    norm: NormName | Norm | None = None
    dropout_rate: float = 0.5
    dtype: Any = None

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Maps float images [batch, height, width, channels] to a dict of arrays.

        Returns:
          "logits": [batch, out_height, out_width, num_classes] float32. Each output side is
            `output_size(side)`; with VALID padding the output is the centre of the image.

        Raises:
          ValueError: a side of the images does not fit; see `output_size`.
        """
        chex.assert_rank(images, 4, custom_message="images")
        chex.assert_type(images, float, custom_message="images")
        for side in images.shape[1:3]:
            output_size(side, depth=self.depth, padding=self.padding)
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        x = images
        skips = []
        for level in range(self.depth + 1):
            x = self.block(x, level, train)
            if level >= self.depth - 1:
                x = dropout(x)
            if level < self.depth:
                skips.append(x)
                x = max_pool(x, size=2, stride=2)
        for level in reversed(range(self.depth)):
            x = UpConvolution(self.features * 2**level, dtype=self.dtype)(x)
            x = self.skip(skips[level], x, level, train)
            x = self.block(x, level, train)
        logits = Conv(
            self.num_classes,
            kernel_size=1,
            use_bias=True,
            kernel_init=he_normal,
            dtype=self.dtype,
            name="logits",
        )(x)
        return {"logits": logits.astype(jnp.float32)}

    def block(self, x, level: int, train: bool):
        """Applies two 3×3 convolutions, each followed by a ReLU; level 0 is the finest."""
        norm = self._norm()
        for _ in range(2):
            x = Conv(
                self.features * 2**level,
                padding=self.padding,
                kernel_init=he_normal,
                use_bias=norm is None,
                dtype=self.dtype,
            )(x)
            if norm is not None:
                x = norm(dtype=self.dtype)(x, train)
            x = nn.relu(x)
        return x

    def skip(self, skip, x, level: int, train: bool):
        """Joins the map of the contracting path with the upsampled map of the expanding path.

        Args:
          skip: [batch, height, width, features], not yet cropped.
          x: the upsampled map, no larger.
          level: 0 is the finest.
          train: whether this is a training step.

        Returns:
          [batch, height of x, width of x, 2 · features].
        """
        del level, train
        return jnp.concatenate([center_crop(skip, x.shape[1:3]), x], axis=-1)

    def _norm(self) -> Norm | None:
        norm = self.norm
        if norm == "group":
            return partial(GroupNorm, epsilon=1e-6)
        return norm if norm is None or callable(norm) else norm_of(norm)


def center_crop(x, size: tuple[int, int]):
    """Crops [batch, height, width, channels] to the centre of this height and width."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]
