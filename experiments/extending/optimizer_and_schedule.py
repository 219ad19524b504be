"""Train with another optimiser and schedule: Muon with a trapezoidal schedule, on generated cells.

Paper     Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024
          (kellerjordan.github.io/posts/muon), as in `optax.contrib.muon`. The schedule is that of
          Hägele et al., Scaling laws and compute-optimal training beyond fixed training durations,
          NeurIPS 2024 (arXiv:2405.18392). Neither has numbers on this data.
Protocol  The quickstart (experiments/quickstart.py) with Muon for the convolution kernels, each as
          a matrix of its inputs × its outputs. AdamW trains the other parameters: the last layer,
          as the authors advise, and the norms. Both follow one schedule, which rises, stays and
          falls linearly.
Data      synthetic_cells, made by code on first use.
Expected  SEG 0.945 on the test images (commit 47de996, AMD EPYC); the quickstart's AdamW has
          0.921 there (commit 527e62c).
Cost      8 minutes on 2 CPU cores that were busy with other work.
Command   python experiments/extending/optimizer_and_schedule.py --workdir runs/muon
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from segjax.commands.launch import run
from segjax.training.experiment import Experiment, load_module
from segjax.training.experiment_files import experiments_folder

quickstart = load_module(experiments_folder() / "quickstart.py")


@dataclass(frozen=True)
class Config(quickstart.Config):
    """The quickstart with Muon. Of the settings in `optimizer`, only the multipliers act."""

    workdir: Path = Path("runs/muon")
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon."""
    adam_learning_rate: float = 0.003
    """Peak learning rate of AdamW, for the parameters that Muon leaves out."""
    weight_decay: float = 0.01
    """Decoupled weight decay of the kernels that Muon trains."""
    warmup: float = 0.1
    """Part of the run in which the learning rate rises."""
    cooldown: float = 0.3
    """Part of the run in which it falls to zero."""


def trapezoid(step, *, peak: float, num_steps: int, warmup: float, cooldown: float):
    """Computes the learning rate of a step: it rises to the peak, stays there and falls to zero."""
    rise = (step + 1) / (warmup * num_steps)
    fall = (num_steps - step) / (cooldown * num_steps)
    return peak * jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)


def matrices(params):
    """Maps each kernel that Muon trains to its axes, and other parameters to None, for AdamW."""
    kernel = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)

    def axes(path, parameter):
        return kernel if parameter.ndim == 4 and path[0].key != "logits" else None

    return jax.tree_util.tree_map_with_path(axes, params)


def muon(schedule: optax.Schedule, *, config: Config) -> optax.GradientTransformation:
    """Builds Muon and AdamW, whose learning rates keep their ratio."""
    ratio = config.adam_learning_rate / config.muon_learning_rate
    return optax.contrib.muon(
        schedule,
        adam_learning_rate=lambda step: ratio * schedule(step),
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=matrices,
    )


def build(config: Config) -> Experiment:
    schedule = partial(
        trapezoid,
        peak=config.muon_learning_rate,
        num_steps=config.train.num_steps,
        warmup=config.warmup,
        cooldown=config.cooldown,
    )
    return dataclasses.replace(
        quickstart.build(config), schedule=schedule, optimizer=partial(muon, config=config)
    )


if __name__ == "__main__":
    run(Config, build, __file__)
