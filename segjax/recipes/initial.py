"""What a run's variables begin as: drawn at random, trained elsewhere, or those of another run."""

from dataclasses import dataclass
from pathlib import Path

from segjax import pretrained
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

    def __post_init__(self):
        if (self.name is None) != (self.weights is None):
            raise ValueError("initial.name and initial.weights go together; one of them is missing")
        if self.name is not None and self.run is not None:
            raise ValueError("initial: give either a file of weights or a run, not both")

    def initialize(self, variables: dict) -> dict:
        """Puts the trained variables in the place of those just drawn, and prints which.

        The classifier stays as drawn where the number of classes differs.

        Raises:
          FileNotFoundError: there is no such file or run, or the run has no checkpoint.
          ValueError: the weights do not fit; the message lists what does not.
        """
        if self.name is not None:
            source, trained = self.weights, pretrained.load(self.name, self.weights).variables
        elif self.run is not None:
            source, trained = self.run, _variables_of_run(self.run)
        else:
            return variables
        merged, report = pretrained.initialize(variables, trained)
        print(f"initial variables from {source}: {report}")
        return merged


def _variables_of_run(run: Path) -> dict:
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"initial.run: {run} has no checkpoints")
    with Checkpoints(folder, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise FileNotFoundError(f"initial.run: {run} has no checkpoint yet")
        return TrainState(**checkpoints.read(checkpoints.latest_step)).variables
