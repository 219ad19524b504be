"""The report of `segjax data check`: counts, sizes, label values, problems and notes."""

import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np

from segjax.labels import IGNORE_LABEL

SIZES_SHOWN = 6
MEDIUM, LARGE = 32**2, 96**2  # pixels from which COCO's scores call an object medium or large


@dataclass
class SplitReport:
    """The contents of a split.

    Attributes:
      num_examples: number of examples that have all their files, readable or not.
      images: number of images of each size and type, such as "512×512×1 uint8".
      value_range: lowest and highest value of all images.
      label_pixels: number of pixels of each label value, including 255.
      label_examples: number of examples with each label value.
      instances: number of instances in each example; empty for a set without instances.
      objects: number of objects of each class, including crowds; empty for a set with label maps.
      object_examples: number of examples with objects of each class.
      crowds: number of objects that are crowds.
      box_only: number of objects with a box and no mask.
      areas: pixels of each object that is no crowd.
      with_box_and_mask: number of objects that have both.
      apart: number of these whose box has an IoU below 0.5 with the box of the mask.
    """

    num_examples: int
    images: Counter = field(default_factory=Counter)
    value_range: tuple[int, int] | None = None
    label_pixels: Counter = field(default_factory=Counter)
    label_examples: Counter = field(default_factory=Counter)
    instances: list[int] = field(default_factory=list)
    objects: Counter = field(default_factory=Counter)
    object_examples: Counter = field(default_factory=Counter)
    crowds: int = 0
    box_only: int = 0
    areas: array = field(default_factory=partial(array, "d"))
    with_box_and_mask: int = 0
    apart: int = 0

    def add(self, example: Mapping) -> None:
        """Counts one example."""
        image = example["image"]
        self.images[f"{'×'.join(map(str, image.shape))} {image.dtype}"] += 1
        low, high = self.value_range or (image.min(), image.max())
        self.value_range = (int(min(low, image.min())), int(max(high, image.max())))
        if "labels" in example:
            pixels = np.bincount(example["labels"].ravel())  # np.unique sorts, ten times slower
            values = np.flatnonzero(pixels)
            counts = pixels[values]
            self.label_pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            self.label_examples.update(values.tolist())
        if "crowd" in example:
            self.crowds += int(np.count_nonzero(example["crowd"]))
        if "classes" in example:
            classes = example["classes"].tolist()
            self.objects.update(classes)
            self.object_examples.update(set(classes))
            self.instances.append(len(classes))
            if "has_mask" in example:
                self.box_only += int(np.count_nonzero(~example["has_mask"]))
            if "areas" in example and "crowd" in example:
                self.areas.extend(example["areas"][~example["crowd"]].tolist())
            if "boxes" in example and "masks" in example:
                self._compare(example)
        elif "instances" in example:
            ids = np.unique(example["instances"])
            self.instances.append(int(np.count_nonzero(ids)))

    def merge(self, other: "SplitReport") -> None:
        """Adds the counts over other examples of the same split."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if each.name == "value_range":
                ends = [*(mine or ()), *(theirs or ())]
                self.value_range = (min(ends), max(ends)) if ends else None
            elif isinstance(mine, Counter):
                mine.update(theirs)
            else:  # numbers add up, and sequences follow one another
                setattr(self, each.name, mine + theirs)

    def digest(self, length: int) -> str:
        """Describes a split of this length by a checksum of what was read, for comparisons."""
        counts = (self.images, self.value_range, self.label_pixels, self.instances, self.objects)
        return f"{length} examples, checksum {zlib.crc32(repr(counts).encode()):08x}"

    def pixels(self) -> dict[str, list]:
        """Returns the images' "types", such as ["uint8"], and their "range" of values, for JSON."""
        types = sorted({size.rpartition(" ")[2] for size in self.images})
        return {"types": types, "range": list(self.value_range or ())}

    def _compare(self, example: Mapping) -> None:
        """Counts the objects whose boxes do not fit their masks."""
        boxes = example["boxes"].astype(np.float64)
        has_mask = np.array([mask.pixels.size > 0 for mask in example["masks"]], bool)
        has_mask &= example.get("has_mask", True)
        tight = np.array([mask.box for mask in example["masks"]], np.float64).reshape(-1, 4)
        shared = np.minimum(boxes, tight)[:, 2:] - np.maximum(boxes, tight)[:, :2]
        shared = np.prod(np.maximum(shared, 0), axis=1)
        sizes = sum(np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (boxes, tight))
        self.with_box_and_mask += int(np.count_nonzero(has_mask))
        self.apart += int(np.count_nonzero(has_mask & (shared < 0.5 * (sizes - shared))))


@dataclass
class CheckReport:
    """The findings about a data set.

    Attributes:
      name: the data set.
      origin: the folder that was checked.
      class_names: name of each class id.
      splits: a report for each split.
      problems: errors to fix before training; each names its file or example.
      notes: unusual findings that are no errors.
    """

    name: str
    origin: str
    class_names: tuple[str, ...]
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report for a terminal."""
        lines = [f"{self.name} in {self.origin}"]
        for name, split in self.splits.items():
            lines += [f"  {name}: {split.num_examples} examples", *self._split_lines(split)]
        for title, findings in (("problems", self.problems), ("notes", self.notes)):
            lines.append(f"  {title}: {len(findings) or 'none'}")
            lines += [f"    {finding}" for finding in findings]
        return "\n".join(lines)

    def _split_lines(self, split: SplitReport) -> Iterator[str]:
        if not split.images or split.value_range is None:
            return
        sizes = ", ".join(
            f"{size} ({count})" for size, count in split.images.most_common(SIZES_SHOWN)
        )
        if len(split.images) > SIZES_SHOWN:
            sizes += f", {len(split.images) - SIZES_SHOWN} other sizes"
        low, high = split.value_range
        yield f"    images     {sizes}, values {low} to {high}"
        pixels = split.label_pixels.total()
        for value, count in sorted(split.label_pixels.items()):
            share = f"{100 * count / pixels:6.2f} % of pixels"
            yield (
                f"    label {value:3d}  {share}, in {split.label_examples[value]} examples: "
                f"{self._class_name(value)}"
            )
        for number, count in sorted(split.objects.items()):
            where = f"in {split.object_examples[number]} examples"
            yield f"    class {number:3d}  {count} {where}: {self._class_name(number)}"
        if split.crowds:
            yield f"    crowds     {split.crowds}"
        if split.box_only:
            yield f"    box only   {split.box_only} objects without a mask"
        if any(split.instances):
            low, middle, high = np.percentile(split.instances, (0, 50, 100))
            yield f"    instances  {low:.0f} to {high:.0f} an image, median {middle:g}"
        if split.objects:
            empty = split.instances.count(0)
            yield f"    no objects {empty} of {len(split.instances)} images"
        if split.areas:
            areas = np.asarray(split.areas)
            small, large = np.count_nonzero(areas < MEDIUM), np.count_nonzero(areas >= LARGE)
            yield (
                f"    sizes      {small} small (below 32² pixels), {len(areas) - small - large} "
                f"medium, {large} large (from 96²), median {np.median(areas):.0f} pixels"
            )

    def _class_name(self, value: int) -> str:
        if value == IGNORE_LABEL:
            return "ignored"
        return self.class_names[value] if value < len(self.class_names) else "no such class"
