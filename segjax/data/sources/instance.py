"""Sources of examples with objects."""

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from segjax.data.instance_masks import InstancesToObjects
from segjax.data.sources.protocol import Source


@dataclass(frozen=True)
class ObjectSource:
    """Adds boxes, classes and masks of objects to the examples of a source.

    They are computed from the map of instances (`InstancesToObjects`), unless an example already
    has them.

    Attributes:
      source: examples with objects, or with a map of instances.
      drop_empty: leave out images without objects or with crowds alone, which teach little
        (detectron2's FILTER_EMPTY). The source needs `object_counts`.
    """

    source: Source
    _: KW_ONLY
    drop_empty: bool = False

    def __post_init__(self):
        if self.drop_empty and self._object_counts is None:
            raise ValueError(
                f"{self._name} has no object_counts, so images without objects cannot be left out. "
                "If it was prepared before objects were counted, prepare it again with --overwrite"
            )

    @property
    def _name(self) -> str:
        return getattr(self.source, "name", type(self.source).__name__)

    @property
    def _object_counts(self) -> Any:
        return getattr(self.source, "object_counts", None)

    @cached_property
    def _places(self) -> np.ndarray:
        """The index of each example in the source."""
        places = np.arange(len(self.source))
        return places[np.asarray(self._object_counts) > 0] if self.drop_empty else places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)} in {self._name}")
        example = self.source[int(self._places[index])]
        return example if "boxes" in example else InstancesToObjects()(example, None)

    @property
    def object_counts(self) -> np.ndarray | None:
        """The objects of each example, crowds left out, int [n]; None if they are not counted."""
        counts = self._object_counts
        return None if counts is None else np.asarray(counts)[self._places]

    @property
    def category_ids(self) -> tuple[int | str, ...] | None:
        """COCO's ids of the classes 1, 2, ...; None if the data set has none."""
        return getattr(self.source, "category_ids", None)

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
        """The height and width of each image, int32 [n, 2]; None if the source has none."""
        sizes = getattr(self.source, "sizes", None)
        return None if sizes is None else np.asarray(sizes)[self._places]
