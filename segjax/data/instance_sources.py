"""Sources of examples with objects."""

from dataclasses import dataclass

import numpy as np

from segjax.data.instance_masks import InstancesToObjects
from segjax.data.sources import Source


@dataclass(frozen=True)
class ObjectSource:
    """The examples of a source with boxes, classes and masks of their objects.

    Where the data set has a map of instances, they are made of it; see `InstancesToObjects`.
    """

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        example = self.source[index]
        return example if "boxes" in example else InstancesToObjects()(example, None)

    @property
    def sizes(self) -> np.ndarray | None:
        """Height and width of each image, int32 [n, 2]; None where the data set kept none."""
        return self.source.sizes
