"""Whether the statistics of a batch are over enough values."""

import math

from segjax.ops.devices import device_count


class SingleValueStatistics(ValueError):
    """Batch norm would normalise each channel by the statistics of one value."""


def check_statistics(shape: tuple[int, ...], *, name: str):
    """Raises SingleValueStatistics if a channel has one value in the batch on all devices.

    Its mean is then the value itself and its variance 0: the layer's output is its bias, whatever
    the image, until prediction uses the running statistics. PyTorch refuses this as well.

    Args:
      shape: of a device's share of the batch, channels last.
      name: of the layer, for the message.
    """
    if math.prod(shape[:-1]) * (device_count() or 1) == 1:
        raise SingleValueStatistics(
            f"batch norm {name} has one value per channel in training (its input is "
            f"{list(shape)}), so that its output would not depend on the image"
        )
