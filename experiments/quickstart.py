"""Train a small U-Net on generated cells: minutes on a laptop.

Paper     Ronneberger et al., U-Net, MICCAI 2015, in a small version: 3 poolings instead of 4, 16
          features instead of 64, batch norm, AdamW.
Data      synthetic_cells, made by code on first use: touching, textured, noisy cells.
Expected  foreground IoU ≥ 0.85 on held-out images; touching cells are separated (see predictions/).
Cost      3 minutes on 2 CPU cores.
Command   python experiments/quickstart.py --workdir runs/quickstart
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from segjax.commands.launch import run
from segjax.data.sources.splits import generated_splits
from segjax.recipes.unet import (
    CellExperimentConfig,
    UNetAugmentConfig,
    UNetConfig,
    cell_experiment,
)
from segjax.training.configuration import TrainConfig, parse
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Config(CellExperimentConfig):
    """A small U-Net on generated cells."""

    workdir: Path = Path("runs/quickstart")
    train: TrainConfig = TrainConfig(
        num_steps=150, batch_size=4, eval_every=50, checkpoint_every=50, log_every=5
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        name="adamw",
        learning_rate=3e-3,
        reference_batch_size=4,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=20,
    )
    network: UNetConfig = UNetConfig(features=16, depth=3, norm="batch", tile=140)
    augment: UNetAugmentConfig = UNetAugmentConfig(elastic_sigma=5.0)


def build(config: Config) -> Experiment:
    splits = generated_splits(
        "synthetic_cells",
        data_dir=config.data_dir,
        train="train",
        evaluation={"validation": "validation", "test": "test"},
    )
    return cell_experiment(config, splits)


def say_what_next(workdir: Path, scores: dict):
    """Prints the scores and what to do next."""
    here = Path.cwd()
    python, this_file = (
        path.relative_to(here) if path.is_relative_to(here) else path
        for path in (Path(sys.executable), Path(__file__).absolute())
    )
    segjax = python.with_name("segjax")
    print(
        f"""
Scores on held-out images (1 is perfect): foreground IoU {scores["foreground_iou"]:.3f}; SEG, which
rewards finding each cell separately, {scores["seg"]:.3f}.
Look at {workdir}/report.html and at the pictures in {workdir}/predictions. Then:

  {segjax} predict {workdir} IMAGES... --output DIR
      segments your own images with this network
  {python} {this_file} --help
      lists every setting, such as --network.features 32 --workdir runs/wider
  {segjax} experiments list
      lists all experiments, such as the paper's network on published data sets
"""
    )


if __name__ == "__main__":
    evaluations = run(Config, build, __file__)
    say_what_next(parse(Config).workdir, evaluations["test"].metrics)
