"""VGG-16 without its fully connected layers: Simonyan and Zisserman, "Very Deep Convolutional
Networks for Large-Scale Image Recognition", ICLR 2015 (arXiv:1409.1556), configuration D.

At output stride 8 it is the trunk of DeepLab v1 (section 3.1, arXiv:1412.7062) and v2: pool4 and
pool5 take no stride, and block 5 runs at rate 2. `deeplab_v1.py` and `deeplab_v2.py` replace fc6
and fc7. The released DeepLab-LargeFOV also averages over 3×3 windows before fc6 ("pool5a"), which
is in `deeplab_v1.py`; v2's network on the same trunk does not.
"""

from typing import Any, Literal

import flax.linen as nn

from segjax.models.layers import Convolution, atrous_units, check_multi_grid, max_pool
from segjax.models.network import Network


class VGG16(Network):
    """VGG-16's thirteen convolutions with biases, 14,714,688 parameters.

    Parameters: "block1_conv1" … "block5_conv3", each with "kernel" and "bias". Initialisation is
    He's; the paper initialises from a shallower network, or as Glorot does.

    Attributes:
      stage_sizes: convolutions of each block.
      width: channels of the first block; each of the next three doubles them, the fifth has the
        fourth's.
      pool_size: 2 as in the paper, or 3 as in the released DeepLab models, where position i stays
        centred on pixel i · stride. With 3, as there, pool5's window is not widened to rate 2 at
        output stride 8; in this one case the map, subsampled, is not that of output stride 16.
    """

    stage_sizes: tuple[int, int, int, int, int] = (2, 2, 3, 3, 3)
    width: int = 64
    pool_size: Literal[2, 3] = 2
    dtype: Any = None

    def __post_init__(self):
        if self.pool_size not in (2, 3):
            raise ValueError(f"pool_size is 2 or 3; got {self.pool_size!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images, *, output_stride: int = 32, multi_grid=None, train: bool = False):
        """Computes the maps after each max pooling.

        Args:
          images: [batch, height, width, channels]; BGR minus the mean for the public weights.
          output_stride: 8, 16 or 32.
          multi_grid: rates of the last block's convolutions, multiplied by the rate that the output
            stride gives.
          train: changes nothing.

        Returns:
          "pool1" … "pool4", and "features", the map after pool5. "low_level" is pool2, "auxiliary"
          pool4. Sides are rounded up; PyTorch's VGG-16 rounds them down.

        Raises:
          ValueError: `output_stride` or `multi_grid` does not fit.
        """
        del train
        check_multi_grid(multi_grid, length=self.stage_sizes[-1])
        pools = atrous_units([2] * len(self.stage_sizes), output_stride=output_stride)
        x, rate, maps = images, 1, {}
        for block, (size, pool) in enumerate(zip(self.stage_sizes, pools, strict=True), 1):
            is_last = block == len(self.stage_sizes)
            for i in range(size):
                x = Convolution(
                    self.width * min(2 ** (block - 1), 8),
                    rate=rate * multi_grid[i] if is_last and multi_grid else rate,
                    use_bias=True,
                    dtype=self.dtype,
                    name=f"block{block}_conv{i + 1}",
                )(x)
                x = nn.relu(x)
            pool_rate = pool.rate if self.pool_size == 2 else 1
            x = max_pool(x, size=self.pool_size, stride=pool.stride, rate=pool_rate)
            maps[f"pool{block}"] = x
            rate = pool.rate_after
        features = maps.pop(f"pool{len(self.stage_sizes)}")
        return {
            **maps,
            "low_level": maps["pool2"],
            "auxiliary": maps["pool4"],
            "features": features,
        }
