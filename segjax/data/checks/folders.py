"""Checks folders of images and masks before training."""

from functools import partial
from pathlib import Path

from segjax.data.checks.check import check_sheet, fill_report
from segjax.data.checks.report import CheckReport
from segjax.data.folders.contents import FolderContents
from segjax.data.folders.source import SETTING
from segjax.data.orientation import note_turned
from segjax.data.sources.instance import ObjectSource


def check_folders(
    contents: FolderContents,
    *,
    classes: tuple[str, ...],
    images: Path,
    masks: Path,
    contact_sheet: Path | None = None,
) -> CheckReport:
    """Reads every image and mask of folders, and lists what training would refuse.

    If the values of the masks could mean two things, the likelier is shown.

    Args:
      contents: what the folders hold, read with a division that holds nothing out.
      classes: the names of the classes.
      images, masks: the folders, for the report's title.
      contact_sheet: PNG file to write, with examples and their masks.

    Raises:
      ValueError: the contact sheet is no PNG.
    """
    check_sheet(contact_sheet)
    report = CheckReport(
        f"{images.name} with the masks of {masks.name}",
        str(images.parent),
        classes,
        problems=[*contents.problems],
        notes=[*contents.notes],
    )
    sources = contents.sources
    if not sources:
        return report
    # Objects of several classes are counted by class, and drawn with their names.
    several = len(classes) > 2 and contents.has_objects
    readers = {}
    for split, source in sources.items():
        read = (ObjectSource(source) if several else source).__getitem__
        readers[split] = [partial(read, index) for index in range(len(source))]
    for source in sources.values():
        files = [pair.image for pair in source.pairs]
        report.notes += note_turned(files, orientation=source.orientation, setting=SETTING)
    return fill_report(report, readers, find_copies=True, contact_sheet=contact_sheet)
