"""The user's own images and masks as folders: settings, splits, and defaults that fit them."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import tyro

from segjax.data.checks.folders import check_folders
from segjax.data.checks.report import CheckReport
from segjax.data.folders.contents import FolderContents, read_folders
from segjax.data.folders.division import DivisionConfig
from segjax.data.folders.mask_format import Holds, MaskFormat, read_color_table
from segjax.data.folders.source import FolderSource
from segjax.data.orientation import Orientation
from segjax.data.sources.splits import Splits
from segjax.labels import BACKGROUND, check_classes
from segjax.messages.lists import list_problems
from segjax.recipes.fitting import batch_size, describe_balance, number_of_steps
from segjax.training.configuration import ExperimentConfig


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
    colour of its own, 0 or black is the background."""
    values: tuple[str, ...] = ()
    """The value in the masks of each class: numbers (0 255) or colours ('#000000' '#ff0000')."""
    ignored: tuple[str, ...] = ()
    """Values or colours of pixels that neither train nor count; 255 is ignored unless it is a
    class."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their values. One named "background" is left out of
    scores of the foreground."""
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

    def __post_init__(self):
        for name in ("", "val_", "test_"):
            images, masks = (getattr(self, f"{name}{kind}") for kind in ("images", "masks"))
            if (images is None) != (masks is None):
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}images and --{flag}masks go together; one is missing")
        if self.color_table is not None and self.values:
            raise ValueError("color_table and values both give the colours; give one of them")
        if self.holds == "instances" and self.values:
            raise ValueError(
                f"values={' '.join(self.values)} gives classes, but holds is instances; give one"
            )
        if self.classes and self.values and len(self.classes) != len(self.values):
            raise ValueError(
                f"{len(self.classes)} classes ({', '.join(self.classes)}), but {len(self.values)} "
                f"values ({', '.join(self.values)}); expected as many"
            )
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels={self.channels}; expected at least 1")
        check_classes(self.classes)
        _ = self._format  # refuses wrong values

    @property
    def _format(self) -> MaskFormat | None:
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
        if contents.problems or contents.mask_format is None:
            raise ValueError(list_problems("the folders", contents.problems))
        found = contents.mask_format
        count = 2 if found.holds == "instances" else len(found.values)
        if known.classes and len(known.classes) != count:
            raise ValueError(
                f"{len(known.classes)} classes ({', '.join(known.classes)}), but the masks hold "
                f"{count}: {contents.notes[-1]}"
            )
        return dataclasses.replace(
            known,
            holds=found.holds,
            values=found.values,
            ignored=found.ignored,
            classes=known.classes or class_names(found),
            channels=contents.channels,
            found=contents.digest,
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
        classes = len(self.classes) if self.holds != "instances" else 0
        return read_folders(
            places,
            self.division,
            suffix=self.mask_suffix,
            mask_format=self._format,
            num_classes=classes,
            ignored=self.ignored,
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
        classes = class_names(found)
    report = check_folders(
        contents,
        classes=classes,
        images=data.images,
        masks=data.masks,
        contact_sheet=contact_sheet,
    )
    if found is not None and found.holds == "classes" and contents.pixels:
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
    source = contents.sources[split]
    for note in source.notes:
        print(note)
    return source


def class_names(found: MaskFormat) -> tuple[str, ...]:
    """Names classes that nobody named. Two are the background and the rest; many are numbered."""
    if found.holds == "instances":
        return (BACKGROUND, "object")
    if len(found.values) == 2:
        return (BACKGROUND, "foreground")
    return tuple(f"class {number}" for number in range(len(found.values)))


@dataclass(frozen=True, kw_only=True)
class FolderConfig(ExperimentConfig):
    """Settings common to the experiments on the user's own folders."""

    data: Annotated[FolderData, tyro.conf.OmitArgPrefixes] = FolderData()

    def with_data(
        self, *, holds: Holds | None = None, channels: int | None = None, otherwise: str = ""
    ) -> Self:
        """Reads the folders, prints what they hold, and fills in what follows from them.

        Args:
          holds: what the masks must hold; None takes both.
          channels: the channels that the network takes; None takes 1 and 3.
          otherwise: what to do with masks that hold something else, for the error.

        Raises:
          ValueError: a folder is missing or has problems, which the message lists, or the network
            cannot learn what the masks hold.
        """
        data = self.data
        if channels is not None and data.channels not in (None, channels):
            raise ValueError(f"channels={data.channels}; this network takes images of {channels}")
        try:
            data = dataclasses.replace(data, channels=data.channels or channels).resolved()
        except OSError as error:
            raise ValueError(error) from error
        if holds is not None and data.holds != holds:
            raise ValueError(f"the masks hold {data.holds}, and this network learns {otherwise}")
        config = dataclasses.replace(self, data=data)
        contents = config.data.read()
        for note in contents.notes:
            print(note)
        print(f"examples: {config.data.found}; classes: {', '.join(config.data.classes)}")
        rare = describe_balance(contents.pixels, config.data.classes)
        if config.data.holds == "classes" and rare:
            print(rare)
        return config

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each training image, [n, 2]."""
        sizes = self.data.read().sources["train"].sizes
        assert sizes is not None
        return sizes

    def fitted(self, given: Collection[str], bytes_per_example: float) -> Self:
        """Fills in batch size and number of steps where they are not given, and prints them.

        Args:
          given: the settings on the command line.
          bytes_per_example: the memory that a training example takes, estimated.
        """
        train, examples = self.train, len(self.sizes)
        if "train.batch_size" not in given:
            size = batch_size(bytes_per_example, examples)
            train = dataclasses.replace(train, batch_size=size)
        if "train.num_steps" not in given:
            train = dataclasses.replace(
                train, num_steps=number_of_steps(examples, train.batch_size)
            )
        for name in ("eval_every", "checkpoint_every"):
            if f"train.{name}" not in given:
                train = dataclasses.replace(train, **{name: max(train.num_steps // 10, 1)})
        print(
            f"fitted to {examples} images of {_spread(self.sizes)} pixels, where not given: batch "
            f"size {train.batch_size}, {train.num_steps} steps"
        )
        return dataclasses.replace(self, train=train)


def _spread(sizes: np.ndarray) -> str:
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    first = f"{low[0]} × {low[1]}"
    return first if (low == high).all() else f"{first} to {high[0]} × {high[1]}"
