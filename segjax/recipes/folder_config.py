"""Settings of the experiments on the user's own folders, with defaults that fit the images."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
import tyro

from segjax.losses.semantic import SemanticLoss
from segjax.recipes.fitting import batch_size, class_weights, describe_balance, number_of_steps
from segjax.recipes.folders import FolderData
from segjax.training.configuration import ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class FolderConfig(ExperimentConfig):
    """Settings common to the experiments on the user's own folders."""

    data: Annotated[FolderData, tyro.conf.OmitArgPrefixes] = FolderData()

    def with_data(
        self, *, objects: bool | None = None, channels: int | None = None, otherwise: str = ""
    ) -> Self:
        """Reads the folders, prints what they hold, and fills in what follows from them.

        Args:
          objects: whether the masks must tell objects apart, or must not; None takes both.
          channels: the channels that the network takes; None takes 1 and 3.
          otherwise: what to do with other masks, for the error.

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
        if objects is not None and data.has_objects != objects:
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

    def weighted(self, loss: SemanticLoss) -> SemanticLoss:
        """Replaces the name of a rule in `class_weights` by the weights, and prints them."""
        if not isinstance(loss.class_weights, str):
            return loss
        classes = self.data.classes
        weights = class_weights(loss.class_weights, self.data.read().pixels, len(classes))
        named = [f"{weight:g} {name}" for weight, name in zip(weights, classes, strict=True)]
        print(f"class weights ({loss.class_weights}): {', '.join(named)}")
        return dataclasses.replace(loss, class_weights=weights)

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each training image, [n, 2]."""
        sizes = self.data.read().sources["train"].sizes
        assert sizes is not None
        return sizes

    def fitted(
        self, given: Collection[str], bytes_per_example: float, *, side: tuple[int, int]
    ) -> Self:
        """Fills in batch size and number of steps where they are not given, and prints them.

        Args:
          given: the settings on the command line.
          bytes_per_example: the memory that a training example takes, estimated.
          side: height and width of the tiles, crops or windows, to print.
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
            f"fitted to {examples} images of {_spread(self.sizes)} pixels, where not given: "
            f"windows of {side[0]} × {side[1]}, batch size {train.batch_size}, {train.num_steps} "
            f"steps ({train.num_steps * train.batch_size / examples:.1f} passes)"
        )
        return dataclasses.replace(self, train=train)


def _spread(sizes: np.ndarray) -> str:
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    first = f"{low[0]} × {low[1]}"
    return first if (low == high).all() else f"{first} to {high[0]} × {high[1]}"
