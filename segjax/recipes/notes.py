"""Prints what is unusual about the splits of an experiment with objects."""

import numpy as np

from segjax.messages.lists import few


def open_with_notes(opener, *, most: int, classes: tuple[str, ...] = ()):
    """Opens a split and prints what is unusual about it.

    Args:
      opener: opens the split.
      most: how many objects of an image training keeps, or prediction finds.
      classes: for training, the names of the classes, background first.
    """
    source = opener()
    data = getattr(source, "source", source)  # of an `ObjectSource`
    name = getattr(data, "annotations", None) or getattr(data, "name", type(data).__name__)
    notes = [*getattr(source, "notes", ())]
    counts = getattr(source, "class_counts", None)
    if classes and counts is not None:
        unused = [name for name, count in zip(classes[1:], counts, strict=True) if not count]
        if unused:
            notes.append(f"no object is annotated as: {few(unused, most=5)}")
    counts = getattr(source, "object_counts", None)
    if counts is not None and len(counts) and max(counts) > most:
        consequence = (
            "training keeps the largest (input.max_objects)"
            if classes
            else "prediction finds no more (network.detections.max_detections)"
        )
        crowded = int(np.count_nonzero(np.asarray(counts) > most))
        notes.append(
            f"{crowded} of {len(counts)} images hold more than {most} objects, at most "
            f"{max(counts)}: {consequence}"
        )
    for note in notes:
        print(f"{name}: {note}")
    return source
