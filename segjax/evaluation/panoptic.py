"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from segjax.evaluation.confusion_matrix import contingency_table, mean_of_defined


@dataclass(frozen=True)
class Segments:
    """A panoptic segmentation: each pixel belongs to one segment, and each segment has a class.

    Attributes:
      ids: integers ≥ 0 [height, width]; 0 is void: unlabelled, or not predicted.
      classes: the class 0..K−1 of each id in the image. A stuff class has at most one segment.
      crowds: ids of true segments that are groups of objects. They need not be found.
    """

    ids: np.ndarray
    classes: Mapping[int, int]
    crowds: Collection[int] = ()


def panoptic_quality(
    truth: Segments, prediction: Segments, *, num_classes: int, things: Collection[int] = ()
) -> dict:
    """Computes the panoptic quality PQ = SQ · RQ of one image; see `PanopticQuality`."""
    quality = PanopticQuality(num_classes, things)
    quality.update(truth, prediction)
    return quality.result()


class PanopticQuality:
    """Running panoptic quality of a data set: `update` for each image, `result` at the end.

    A predicted and a true segment of one class match if their IoU is above 0.5; no segment can have
    two matches. As in panopticapi, the part of a predicted segment on void is left out of the IoU.
    An unmatched predicted segment is no false positive if more than half of it lies on void or on
    crowds of its class.

    Attributes:
      iou: float64 [num_classes], the summed IoU of matches.
      counts: int64 [3, num_classes], true positives, false positives and false negatives.
    """

    def __init__(self, num_classes: int, things: Collection[int] = ()):
        self.num_classes = num_classes
        self.things = np.isin(np.arange(num_classes), list(things))
        if self.things.sum() != len(set(things)):
            raise ValueError(f"things must be in [0, {num_classes}), found {sorted(things)}")
        self.iou = np.zeros(num_classes)
        self.counts = np.zeros((3, num_classes), np.int64)

    def update(self, truth: Segments, prediction: Segments) -> None:
        """Adds one image.

        Raises:
          ValueError: shapes differ, or a segment has no class or one outside [0, num_classes).
        """
        true_ids, true_map, true_classes = self._numbered(truth, "truth")
        _, predicted_map, predicted_classes = self._numbered(prediction, "prediction")
        table = contingency_table(true_map, predicted_map)
        table.resize(len(true_classes), len(predicted_classes))
        crowd = np.isin(true_ids, list(truth.crowds))
        true_areas, predicted_areas = table.sum(1), table.sum(0)
        on_void = table[[0]].toarray()[0]
        overlaps = table.tocoo()
        true, predicted = overlaps.coords

        union = true_areas[true] + predicted_areas[predicted] - overlaps.data - on_void[predicted]
        same = (true_classes[true] == predicted_classes[predicted]) & (true > 0)
        matched = same & ~crowd[true] & (predicted > 0) & (2 * overlaps.data > union)
        classes = true_classes[true[matched]]
        np.add.at(self.iou, classes, overlaps.data[matched] / union[matched])

        excused = on_void.copy()
        np.add.at(excused, predicted, overlaps.data * (same & crowd[true]))
        false_positive = 2 * excused <= predicted_areas
        false_positive[predicted[matched]] = False
        false_negative = ~crowd
        false_negative[true[matched]] = False
        for row, found in enumerate(
            (
                classes,
                predicted_classes[1:][false_positive[1:]],
                true_classes[1:][false_negative[1:]],
            )
        ):
            self.counts[row] += np.bincount(found, minlength=self.num_classes)

    def merge(self, other: "PanopticQuality") -> None:
        """Adds the counts of `other`, for instance those of another process."""
        if other.num_classes != self.num_classes or (other.things != self.things).any():
            raise ValueError("cannot merge panoptic qualities of different classes")
        self.iou += other.iou
        self.counts += other.counts

    def result(self) -> dict:
        """Computes the scores of everything counted so far.

        Returns:
          "PQ", "SQ" and "RQ": means over the classes that occur in the truth or as a false
          positive, NaN if there are none. "PQ_things", ..., "RQ_stuff": the same over things or
          stuff alone. SQ is the mean IoU of matches; as in panopticapi, it is 0 for a class
          without matches. "per_class_PQ", "per_class_SQ" and "per_class_RQ": lists by class, NaN
          for classes that do not occur.
        """
        found, false_positive, false_negative = self.counts
        with np.errstate(invalid="ignore"):
            recognition = found / (found + 0.5 * false_positive + 0.5 * false_negative)
        segmentation = np.where(np.isnan(recognition), np.nan, self.iou / np.maximum(found, 1))
        per_class = {"PQ": segmentation * recognition, "SQ": segmentation, "RQ": recognition}
        groups = {"": np.ones_like(self.things), "_things": self.things, "_stuff": ~self.things}
        result = {
            f"{name}{group}": mean_of_defined(values[members])
            for group, members in groups.items()
            for name, values in per_class.items()
        }
        return result | {f"per_class_{name}": v.tolist() for name, v in per_class.items()}

    def _numbered(self, segments: Segments, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the ids in use, with 0 (void) first; a map of their places; and their classes."""
        ids = np.asarray(segments.ids)
        if ids.dtype.kind not in "iu" or ids.min(initial=0) < 0:
            raise ValueError(f"{name}: expected ids ≥ 0 of segments, found {ids.dtype}")
        used = np.unique(np.append(ids, 0))
        classes = [segments.classes.get(number) for number in used.tolist()]
        for number, class_id in list(zip(used.tolist(), classes, strict=True))[1:]:
            if class_id is None or not 0 <= class_id < self.num_classes:
                raise ValueError(
                    f"{name}: expected a class in [0, {self.num_classes}) for segment {number}, "
                    f"found {class_id}"
                )
        # Ids may be 24-bit colours: places keep the table of overlaps small.
        places = np.searchsorted(used, ids)
        return used, places, np.array([-1, *classes[1:]], np.int64)
