"""The user's own images and masks as folders: settings, splits, and their check."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import tyro

from segjax.data.checks.folders import check_folders
from segjax.data.checks.report import CheckReport
from segjax.data.folders.contents import FolderContents, read_folders
from segjax.data.folders.division import DivisionConfig
from segjax.data.folders.mask_format import Holds, MaskFormat, read_color_table
from segjax.data.folders.source import FolderSource
from segjax.data.orientation import Orientation
from segjax.data.sources.splits import Splits
from segjax.labels import BACKGROUND, background_class, check_classes
from segjax.messages.lists import list_problems
from segjax.recipes.fitting import class_weights, describe_balance


@dataclass(frozen=True)
class FolderData:
    """Folders of images and masks. What is not given is found in the masks, and recorded."""

    images: Path | None = None
    """Folder of the images, sub-folders included."""
    masks: Path | None = None
    """Folder of the masks. A mask has the name of its image, with or without more before or behind
    it; it may be the folder of the images."""
    val_images: Path | None = None
    """Folder of the validation images, if they are kept apart."""
    val_masks: Path | None = None
    """Folder of their masks."""
    test_images: Path | None = None
    """Folder of the test images, if they are kept apart."""
    test_masks: Path | None = None
    """Folder of their masks."""
    mask_suffix: str | None = None
    """What the names of masks have behind the name of the image, such as "_mask"; None finds it."""
    unmatched: Literal["refuse", "skip"] = "refuse"
    """What to do with images without a mask and masks without an image."""
    holds: Holds | None = None
    """classes: the value or colour of a pixel is its class. instances: each object has a number or
    colour of its own, 0 or black is the background. components: as classes, the background first,
    and each connected region of a class is an object. Pixels are connected over their edges, not
    over corners; objects of a class that touch are one object."""
    class_masks: Path | None = None
    """Folder of masks with the classes of the objects that `masks` number (SegmentationClass beside
    SegmentationObject in CVAT, labelme and VOC). `values`, `ignored`, `classes` and `color_table`
    are then about these masks. An object has the class of most of its pixels."""
    val_class_masks: Path | None = None
    """The same for the validation images, if they are kept apart."""
    test_class_masks: Path | None = None
    """The same for the test images, if they are kept apart."""
    values: tuple[str, ...] = ()
    """The value in the masks of each class: numbers (0 255) or colours ('#000000' '#ff0000')."""
    ignored: tuple[str, ...] = ()
    """Values or colours of pixels that neither train nor count; 255 is ignored unless it is a
    class."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their values; of objects, the background first. One
    named "background" is left out of scores of the foreground."""
    color_table: Path | None = None
    """Text file with a class and its colour on each line, such as road,#804080 or road,128,64,128.
    Classes that `classes` leaves out are ignored."""
    channels: int | None = None
    """Channels that the images are read with: 1, grey, or 3, colour; None takes 3 if any image has
    colours. Images of other numbers of bands keep them."""
    orientation: Orientation = "upright"
    """How files with an EXIF orientation are read. upright: turned, as viewers show them; masks
    belong to the upright image. stored: as they are stored."""
    division: Annotated[DivisionConfig, tyro.conf.OmitArgPrefixes] = DivisionConfig()
    found: Annotated[str, tyro.conf.Suppress] = ""
    """The examples of each split and a hash of their names, filled in from the folders."""
    proposed_class_weights: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()
    """The weights that `--loss.class-weights root` takes, filled in from the training masks."""

    def __post_init__(self):
        for name in ("", "val_", "test_"):
            images, masks = (getattr(self, f"{name}{kind}") for kind in ("images", "masks"))
            if (images is None) != (masks is None):
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}images and --{flag}masks go together; one is missing")
            has_classes = getattr(self, f"{name}class_masks") is not None
            if images is not None and has_classes != (self.class_masks is not None):
                flag = name.replace("_", "-")
                raise ValueError(
                    f"--class-masks and --{flag}class-masks go together; one is missing"
                )
        if self.class_masks is not None and self.holds not in (None, "instances"):
            raise ValueError(
                f"--class-masks gives the classes of numbered objects, but holds is {self.holds}"
            )
        if self.color_table is not None and self.values:
            raise ValueError("color_table and values both give the colours; give one of them")
        if self.holds == "instances" and self.values and self.class_masks is None:
            raise ValueError(
                f"values={' '.join(self.values)} gives classes, but holds is instances: numbered "
                "objects get classes by a second folder of masks, --class-masks DIR"
            )
        if self.classes and self.values and len(self.classes) != len(self.values):
            raise ValueError(
                f"{len(self.classes)} classes ({', '.join(self.classes)}), but {len(self.values)} "
                f"values ({', '.join(self.values)}); expected as many"
            )
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels={self.channels}; expected at least 1")
        check_classes(self.classes)
        if self.has_objects and background_class(self.classes) not in (None, 0):
            raise ValueError(
                f"the classes of objects begin with the background; found {', '.join(self.classes)}"
            )
        _ = self._format  # refuses wrong values

    @property
    def has_objects(self) -> bool:
        """Whether the masks are known to tell objects apart."""
        return self.class_masks is not None or self.holds in ("instances", "components")

    @property
    def _format(self) -> MaskFormat | None:
        """What is given of the meaning of the masks that hold the classes; None finds it."""
        if self.class_masks is not None:
            return MaskFormat("classes", self.values, self.ignored) if self.values else None
        if self.holds == "instances" or self.values:
            return MaskFormat(self.holds or "classes", self.values, self.ignored)
        return None

    def resolved(self) -> Self:
        """Reads the folders and fills in what they tell.

        Raises:
          OSError, ValueError: the folders are missing or have problems, which the message lists.
        """
        if self.images is None or self.masks is None:
            raise ValueError("give the folders by --images DIR and --masks DIR")
        known = self._with_table()
        contents = known.read()
        if contents.problems or contents.mask_format is None or contents.label_format is None:
            raise ValueError(list_problems("the folders", contents.problems))
        found, holds = contents.label_format, contents.mask_format.holds
        count = class_count(contents)
        if known.classes and len(known.classes) != count:
            raise ValueError(
                f"{len(known.classes)} classes ({', '.join(known.classes)}), but the masks hold "
                f"{count}: {', '.join(found.values) or 'the background and numbered objects'}"
            )
        return dataclasses.replace(
            known,
            holds=holds,
            values=found.values,
            ignored=found.ignored,
            classes=known.classes or class_names(holds, count),
            channels=contents.channels,
            found=contents.digest,
            proposed_class_weights=class_weights("root", contents.pixels, count),
        )

    def _with_table(self) -> Self:
        """Takes the classes and their colours from the colour table, if there is one."""
        if self.color_table is None:
            return self
        table = read_color_table(self.color_table)
        names = self.classes or tuple(table)
        if missing := [name for name in names if name not in table]:
            raise ValueError(f"{self.color_table}: no colour for {', '.join(missing)}")
        others = tuple(color for name, color in table.items() if name not in names)
        return dataclasses.replace(
            self,
            color_table=None,
            classes=names,
            values=tuple(table[name] for name in names),
            ignored=(*self.ignored, *others),
        )

    def read(self) -> FolderContents:
        """Reads the folders, without refusing their problems.

        Raises:
          OSError, ValueError: see `read_folders`.
        """
        given = {
            "train": (self.images, self.masks),
            "val": (self.val_images, self.val_masks),
            "test": (self.test_images, self.test_masks),
        }
        places = {name: (a, b) for name, (a, b) in given.items() if a is not None and b is not None}
        numbered = self.holds == "instances" and self.class_masks is None
        classes = {
            "train": self.class_masks,
            "val": self.val_class_masks,
            "test": self.test_class_masks,
        }
        return read_folders(
            places,
            self.division,
            class_masks={name: folder for name, folder in classes.items() if folder is not None},
            suffix=self.mask_suffix,
            holds=self.holds,
            mask_format=self._format,
            num_classes=0 if numbered else len(self.classes),
            ignored=self.ignored,
            classes=self.classes,
            channels=self.channels,
            orientation=self.orientation,
            skip_unmatched=self.unmatched == "skip",
        )

    def splits(self) -> Splits:
        """Returns the splits, which open when they are asked for; classes must be known.

        Raises:
          ValueError: the classes are not known, or no split is left for evaluation.
        """
        if not self.classes or self.channels is None:
            raise ValueError(
                "the classes are read from the masks: give --images DIR and --masks DIR, or call "
                "resolved()"
            )
        division = self.division
        has_val = self.val_images or division.val_list or division.val_share or division.folds
        has_test = self.test_images or division.test_list or division.test_share
        if not (has_val or has_test):
            raise ValueError("nothing is held out for evaluation: give --val-share or --val-images")
        names = ("val",) * bool(has_val) + ("test",) * bool(has_test)
        return Splits(
            classes=self.classes,
            channels=self.channels,
            train=partial(_open, self, "train"),
            evaluation={name: partial(_open, self, name) for name in names},
            orientation=self.orientation,
            background=self.classes[0] if self.has_objects else BACKGROUND,
        )


def check_data(data: FolderData, *, contact_sheet: Path | None = None) -> CheckReport:
    """Reads every image and mask, and reports what training would find and refuse.

    Args:
      data: the folders of images and masks.
      contact_sheet: PNG file to write.

    Raises:
      OSError, ValueError: a folder or the colour table is missing or does not fit.
    """
    whole = dataclasses.replace(data._with_table(), division=DivisionConfig(val_share=0.0))
    contents = whole.read()
    assert data.images is not None
    assert data.masks is not None
    found, classes = contents.mask_format, whole.classes
    if found is not None and not classes:
        classes = class_names(found.holds, class_count(contents))
    report = check_folders(
        contents,
        classes=classes,
        images=data.images,
        masks=data.masks,
        contact_sheet=contact_sheet,
    )
    if found is not None and found.holds == "classes" and contents.pixels and not contents.problems:
        rare = describe_balance(contents.pixels, classes)
        report.notes += [rare] if rare else []
    return report


def _open(data: FolderData, split: str) -> FolderSource:
    """Opens a split, and refuses folders that have changed since they were recorded."""
    contents = data.read()
    if contents.problems:
        raise ValueError(list_problems("the folders", contents.problems))
    if data.found and contents.digest != data.found:
        raise ValueError(
            f"{data.images}: the images or their division have changed since the run began: "
            f"{data.found} then, {contents.digest} now. Restore them, or start a new run"
        )
    if split not in contents.sources:
        raise ValueError(f"{data.images}: no images for {split}")
    return contents.sources[split]


def class_count(contents: FolderContents) -> int:
    """Counts the classes that masks hold, the background included; numbered objects are of one."""
    found = contents.label_format
    return len(found.values) if found is not None and found.holds != "instances" else 2


def class_names(holds: Holds, count: int) -> tuple[str, ...]:
    """Names classes that nobody named. Two are the background and the rest; many are numbered."""
    if count == 2:
        return (BACKGROUND, "foreground" if holds == "classes" else "object")
    first = "class 0" if holds == "classes" else BACKGROUND
    return (first, *(f"class {number}" for number in range(1, count)))
