"""Sources of examples with objects."""

from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np

from segjax.data.instance_masks import InstancesToObjects
from segjax.data.sources.semantic import Source


@dataclass(frozen=True)
class ObjectSource:
    """The examples of a source with boxes, classes and masks of their objects.

    Where the data set has a map of instances, they are made of it; see `InstancesToObjects`.

    Attributes:
      source: examples of a data set that tells objects apart.
      drop_empty: leave images without objects, or with crowds alone, out: there is little to learn
        from them (detectron2's FILTER_EMPTY).
    """

    source: Source
    _: KW_ONLY
    drop_empty: bool = False

    def __post_init__(self):
        if self.drop_empty and self.source.object_counts is None:
            raise ValueError(
                f"{self.source.name} was prepared before objects were counted: prepare it again, "
                "with --overwrite"
            )

    @cached_property
    def _places(self) -> np.ndarray:
        """Where the examples are in the source."""
        places = np.arange(len(self.source))
        return places[self.source.object_counts > 0] if self.drop_empty else places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)} in {self.source.name}")
        example = self.source[int(self._places[index])]
        return example if "boxes" in example else InstancesToObjects()(example, None)

    @property
    def object_counts(self) -> np.ndarray | None:
        """The objects of each example, crowds left out, int [n]; None if they are not counted."""
        counts = self.source.object_counts
        return None if counts is None else counts[self._places]

    @property
    def category_ids(self) -> tuple[int, ...] | None:
        """COCO's ids of the classes 1, 2, ...; None if the data set has none."""
        return self.source.category_ids

    @property
    def notes(self) -> tuple[str, ...]:
        """The number of images that are left out, as a sentence; empty if there are none."""
        left_out = len(self.source) - len(self)
        if not left_out:
            return ()
        return (
            f"{left_out} of {len(self.source)} images left out: no objects (input.keep_empty keeps "
            "them)",
        )

    @property
    def sizes(self) -> np.ndarray | None:
        """Height and width of each image, int32 [n, 2]; None where the data set kept none."""
        sizes = self.source.sizes
        return None if sizes is None else sizes[self._places]
