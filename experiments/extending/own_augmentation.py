"""Augmentation of your own, and of the library albumentations: transforms before the recipe's.

Paper     Ronneberger et al., U-Net, MICCAI 2015, in small: the quickstart. Neither paper nor we
          have numbers of these augmentations on this data.
Protocol  The quickstart (experiments/quickstart.py) after two more transforms. A transform is a
          function (example, generator) → example. It draws from the generator alone, which belongs
          to one example of one epoch, so that a resumed run sees the same bits. It never writes
          into the arrays that it gets. `Albumentations` is such a function from the library's
          transforms, which it gives the example's maps too, so that they move with the image.
Data      synthetic_cells, made by code on first use.
Needs     pip install 'segjax[augmentation]'
Cost      not yet measured.
Command   python experiments/extending/own_augmentation.py --workdir runs/own_augmentation
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import albumentations
import numpy as np

from segjax.commands.launch import run
from segjax.labels import IGNORE_LABEL
from segjax.training.experiment import Experiment, load_module
from segjax.training.experiment_files import experiments_folder

quickstart = load_module(experiments_folder() / "quickstart.py")
MAPS = ("labels", "instances", "weights", "field_of_view")


@dataclass(frozen=True)
class Config(quickstart.Config):
    """The quickstart with more augmentation."""

    workdir: Path = Path("runs/own_augmentation")
    shading: float = 0.3
    """Largest change of brightness from one side of an image to the other, as a share."""


@dataclass(frozen=True)
class Shading:
    """Multiplies an image by a ramp of brightness in a random direction, as uneven light does.

    Attributes:
      strength: the largest change from one side to the other, as a share.
    """

    strength: float

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        image = example["image"]
        height, width = image.shape[:2]
        angle, change = rng.uniform(0, 2 * np.pi), rng.uniform(0, self.strength)
        rows, columns = np.linspace(-0.5, 0.5, height), np.linspace(-0.5, 0.5, width)
        ramp = 1 + change * (np.sin(angle) * rows[:, None] + np.cos(angle) * columns)
        limits = np.iinfo(image.dtype)
        shaded = np.rint(image * ramp[..., None]).clip(limits.min, limits.max)
        return {**example, "image": shaded.astype(image.dtype)}


@dataclass(frozen=True)
class Albumentations:
    """Applies transforms of albumentations to an example.

    The image and its maps move together. Labels are 255, ignored, where a transform has no pixel.

    Attributes:
      make: makes the transforms. They hold a random state, and examples are augmented in threads,
        so each example gets transforms of its own.
    """

    make: Callable[[], list]

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        maps = [name for name in MAPS if name in example]
        transform = albumentations.Compose(
            self.make(), additional_targets=dict.fromkeys(maps, "mask")
        )
        transform.set_random_seed(int(rng.integers(2**31)))
        # Missing pixels come back as 0, which is a class: shift the labels by one, and back.
        shifted = {name: example[name].astype(np.float32) for name in maps}
        if "labels" in maps:
            shifted["labels"] = shifted["labels"] + 1
        moved = transform(image=example["image"], **shifted)
        image = moved["image"].reshape(*moved["image"].shape[:2], -1)
        found = {name: moved[name].astype(example[name].dtype) for name in maps}
        if "labels" in maps:
            labels = moved["labels"] - 1
            found["labels"] = np.where(labels < 0, IGNORE_LABEL, labels).astype(
                example["labels"].dtype
            )
        return {**example, **found, "image": image}


def blur_and_shift() -> list:
    """Makes the transforms: random blur, and a shift that leaves part of the image empty."""
    return [
        albumentations.GaussianBlur(blur_limit=(3, 5), p=0.3),
        albumentations.Affine(translate_percent=(-0.1, 0.1), p=0.5),
    ]


def build(config: Config) -> Experiment:
    experiment = quickstart.build(config)
    own = (Shading(config.shading), Albumentations(blur_and_shift))
    return dataclasses.replace(experiment, transforms=(*own, *experiment.transforms))


if __name__ == "__main__":
    run(Config, build, __file__)
