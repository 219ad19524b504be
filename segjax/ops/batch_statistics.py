"""Refuses batch statistics over a single value."""

import math

from segjax.ops.devices import device_count


class SingleValueStatistics(ValueError):
    """Batch norm would normalise each channel by the statistics of one value."""


def check_statistics(shape: tuple[int, ...], *, name: str):
    """Raises SingleValueStatistics if a channel has one value in the batch on all devices.

    The channel's mean is then the value itself and its variance is 0, so the layer's output in
    training is its bias, whatever the image. PyTorch refuses this as well.

    Args:
      shape: the shape of one device's share of the batch, channels last.
      name: the layer's name, for the message.
    """
    if math.prod(shape[:-1]) * (device_count() or 1) == 1:
        raise SingleValueStatistics(
            f"batch norm {name} has one value per channel in training (its input is "
            f"{list(shape)}), so that its output would not depend on the image"
        )
