"""Sources of examples with objects."""

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from segjax.data.instance_masks import InstancesToObjects
from segjax.data.sources.empty_images import choose_images, note_left_out
from segjax.data.sources.protocol import Source


@dataclass(frozen=True)
class ObjectSource:
    """Adds boxes, classes and masks of objects to the examples of a source.

    They are computed from the map of instances (`InstancesToObjects`), unless an example already
    has them.

    Attributes:
      source: examples with objects, or with a map of instances.
      empty_share: the largest share of images without objects, or with crowds alone; see
        `choose_images`. 0 leaves them all out, as detectron2 does (FILTER_EMPTY_ANNOTATIONS). Below
        1, the source needs `object_counts`.
      seed: decides which images without objects are chosen.
    """

    source: Source
    _: KW_ONLY
    empty_share: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.empty_share < 1 and self._object_counts is None:
            raise ValueError(
                f"{self._name} has no object_counts, which tell images without objects apart. If "
                " it was prepared before objects were counted, prepare it again with --overwrite"
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
        if self._object_counts is None:
            return np.arange(len(self.source))
        return choose_images(self._object_counts, empty_share=self.empty_share, seed=self.seed)

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
        if self._object_counts is None:
            return ()
        return tuple(note_left_out(self._object_counts, len(self), self.empty_share))

    @property
    def sizes(self) -> np.ndarray | None:
        """The height and width of each image, int32 [n, 2]; None if the source has none."""
        sizes = getattr(self.source, "sizes", None)
        return None if sizes is None else np.asarray(sizes)[self._places]
