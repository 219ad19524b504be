"""The data of an experiment: class names, channels, and splits that open lazily."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from segjax.data.builder import features_of
from segjax.data.orientation import Orientation
from segjax.data.prepare import open_generated
from segjax.data.sources.catalog import make_builder
from segjax.data.sources.instance import ObjectSource
from segjax.data.sources.protocol import Source
from segjax.data.sources.semantic import open_dataset
from segjax.labels import BACKGROUND

Open = Callable[[], Source]


@dataclass(frozen=True)
class Splits:
    """The sources of an experiment, one for each split.

    A source is any object with `__len__` and `__getitem__`; `segjax.data.sources.protocol.Source`
    says what its examples hold. Sources open when training or evaluation asks for them, so
    prediction needs no data.

    Attributes:
      classes: the name of each class id; for objects, the background first.
      channels: the number of channels of the images.
      train: opens the training examples.
      evaluation: opens each evaluation split, by name; the first is scored during training.
      category_ids: COCO's ids of the classes 1, 2, ...; None numbers them from 1.
      orientation: how the image files are read; prediction then reads them alike. See
        `segjax.data.orientation`.
      background: the name of the class that is the background. Without a class "background", such
        as in street scenes, there is none, and no score leaves one out.
    """

    classes: tuple[str, ...]
    channels: int
    train: Open
    evaluation: Mapping[str, Open]
    category_ids: tuple[int | str, ...] | None = None
    orientation: Orientation = "upright"
    background: str = BACKGROUND


def prepared_splits(
    name: str,
    *,
    data_dir: Path,
    train: str = "train",
    evaluation: Mapping[str, str] = MappingProxyType({"val": "val"}),
) -> Splits:
    """Returns splits of a data set that `segjax data prepare` prepares before they open.

    Args:
      name: the data set, as `segjax data list` names it.
      data_dir: the folder of prepared data sets.
      train: the training split, or TFDS's arithmetic on splits, such as "train[:24]".
      evaluation: each evaluation split, by its name in the results.

    Raises:
      ValueError: no data set has this name.
    """
    return _catalog_splits(open_dataset, name, data_dir, train, evaluation)


def generated_splits(
    name: str, *, data_dir: Path, train: str, evaluation: Mapping[str, str]
) -> Splits:
    """Returns splits of a data set that is generated on first use; see `prepared_splits`."""
    return _catalog_splits(open_generated, name, data_dir, train, evaluation)


def _catalog_splits(opener, name, data_dir, train, evaluation):
    builder = make_builder(name, data_dir=data_dir)
    open_split = partial(opener, name, data_dir=data_dir)
    return Splits(
        classes=builder.class_names,
        channels=features_of(builder)["image"].shape[-1],
        train=partial(open_split, train),
        evaluation={name: partial(open_split, split) for name, split in evaluation.items()},
        category_ids=getattr(builder, "category_ids", None),
        background=builder.background,
    )


def as_objects(splits: Splits, *, empty_share: float = 0.0, seed: int = 0) -> Splits:
    """Adds boxes, classes and masks of objects to the examples of all splits.

    Args:
      splits: the splits, with objects or maps of instances.
      empty_share: the largest share of images without objects in training; see `choose_images`.
        Below 1, it needs the source's `object_counts`. 0 leaves them out, as detectron2 does.
      seed: decides which images without objects are trained on.
    """

    def objects(opener, **options):
        return ObjectSource(opener(), **options)

    return replace(
        splits,
        train=partial(objects, splits.train, empty_share=empty_share, seed=seed),
        evaluation={name: partial(objects, each) for name, each in splits.evaluation.items()},
    )
