"""What a run's variables begin as: drawn at random, trained elsewhere, or those of another run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import flax.linen as nn

from segjax import pretrained
from segjax.models.backbones.registry import make_backbone
from segjax.training.checkpoint import Checkpoints
from segjax.training.state import TrainState


@dataclass(frozen=True)
class InitialConfig:
    """Weights to begin with; by default all are drawn at random."""

    name: str | None = None
    """Converter in `segjax.pretrained` for the file, such as "torchvision/resnet101"."""
    weights: Path | None = None
    """A file of trained weights: .pth, .safetensors, .npz or .pkl."""
    run: Path | None = None
    """A run whose last variables to begin with, instead of a file: a paper's next phase."""
    backbone_only: bool = False
    """Leave the heads of trained networks out, even where they would fit."""

    def __post_init__(self):
        if (self.name is None) != (self.weights is None):
            raise ValueError("initial.name and initial.weights go together; one of them is missing")
        if self.name is not None and self.run is not None:
            raise ValueError("initial: give either a file of weights or a run, not both")

    def initialize(
        self,
        variables: dict,
        *,
        normalize,
        backbone: nn.Module,
        moved: Mapping[str, str] = MappingProxyType({}),
    ) -> dict:
        """Puts the trained variables in the place of those just drawn, and prints which.

        What the number of classes shapes, in the classifier and in a detector's heads, stays as
        drawn where that number differs.

        Args:
          normalize: how the images will be normalised.
          backbone: of the model that will run with the variables.
          moved: see `pretrained.initialize`.

        Raises:
          FileNotFoundError: there is no such file or run, or the run has no checkpoint.
          ValueError: the weights do not fit, or were trained with pixels normalised in another
            way, or with strides elsewhere; the message lists what does not fit.
        """
        if self.name is not None:
            found = pretrained.load(self.name, self.weights)
            _check_fit(found, self.name, normalize=normalize, backbone=backbone)
            source, trained = self.weights, found.variables
        elif self.run is not None:
            source, trained = self.run, _variables_of_run(self.run)
        else:
            return variables
        if self.backbone_only and "backbone" in trained["params"]:
            trained = {
                collection: {name: part for name, part in parts.items() if name == "backbone"}
                for collection, parts in trained.items()
            }
        merged, report = pretrained.initialize(variables, trained, moved=moved)
        print(f"initial variables from {source}: {report}")
        return merged


def _check_fit(found: pretrained.Pretrained, name: str, *, normalize, backbone: nn.Module):
    """Refuses what no shape would tell."""
    if found.preprocess != normalize:
        raise ValueError(
            f"{name} was trained with pixels as {found.preprocess}, and network.pixels gives "
            f"{normalize}; take another network.pixels"
        )
    theirs = getattr(found.model, "backbone", found.model)
    theirs = make_backbone(theirs) if isinstance(theirs, str) else theirs
    for attribute in ("stride_in", "stem"):
        ours, its = (getattr(module, attribute, None) for module in (backbone, theirs))
        if ours != its:
            raise ValueError(
                f"{name} was trained with {attribute}={its!r}, and the network has {ours!r}; "
                "network.backbone names the others"
            )


def _variables_of_run(run: Path) -> dict:
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"initial.run: {run} has no checkpoints")
    with Checkpoints(folder, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise FileNotFoundError(f"initial.run: {run} has no checkpoint yet")
        return TrainState(**checkpoints.read(checkpoints.latest_step)).variables
