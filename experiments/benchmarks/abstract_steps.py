"""Train steps and predictions of the experiment files on abstract arrays, for devices not there.

A program is built from the experiment's own configuration, task and transforms. Only shapes are
computed, so nothing reads data or runs on a device.
"""

import dataclasses
import functools
import itertools
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from segjax.data.instance_masks import crop_mask, tight_boxes
from segjax.data.sources.protocol import BATCH_DTYPES
from segjax.ops.devices import AXIS_NAME
from segjax.ops.platforms import for_every_platform
from segjax.tasks import InstanceTask
from segjax.training.configuration import ExperimentConfig, variant_config
from segjax.training.experiment import Experiment, load_module
from segjax.training.mesh_parallel import MeshParallel
from segjax.training.optimizer import frozen_parameters, learning_rate_schedule, make_optimizer
from segjax.training.parallel import DataParallel
from segjax.training.precision import with_precision
from segjax.training.state import state_shapes
from segjax.training.step import make_train_step

EXPERIMENTS = Path(__file__).resolve().parents[1]
SIZE = (600, 960)  # height and width of the example: landscape, as most of COCO's are


@dataclass(frozen=True)
class Program:
    """A train step or a prediction of an experiment.

    Attributes:
      experiment, config: what the experiment file builds.
      per_device: the number of examples that a device computes at a time.
      predicts: whether the program predicts; otherwise it is the train step.
    """

    experiment: Experiment
    config: ExperimentConfig
    per_device: int
    predicts: bool

    def on(self, devices: tuple, *, rows: int = 1):
        """Returns the function for the devices and its abstract arguments; it has `.lower`.

        The devices may be those of a topology that is not there.

        Args:
          rows: number of devices that share the rows of each image of a train step.
        """
        if rows > 1:
            return self._on_mesh(devices, rows)
        function, *arguments = self._parts(len(devices))
        if self.predicts:
            return jax.pmap(function, in_axes=(None, 0), devices=devices), arguments
        return DataParallel(devices, self.config.matmul_precision).train_step(function), arguments

    def _on_mesh(self, devices: tuple, rows: int):
        parallel = MeshParallel(
            len(devices) // rows,
            rows,
            devices=devices,
            matmul_precision=self.config.matmul_precision,
        )
        step, state, batch = self._parts(parallel.data)

        def placed(shape, sharding, x):
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

        state = jax.tree.map(lambda x: placed(x.shape, parallel.sharding_of(x), x), state)
        for name, x in batch.items():
            whole = jax.ShapeDtypeStruct((x.shape[0] * x.shape[1], *x.shape[2:]), x.dtype)
            batch[name] = placed(whole.shape, parallel.batch_sharding(whole), whole)
        return parallel.train_step(step), (state, batch)

    def lowered(self, *platforms: str, devices: int = 4) -> dict[str, str]:
        """Lowers the program for platforms such as "cuda" and "tpu"; returns the StableHLO texts.

        This needs neither a platform's plugin nor a device.
        """
        function, *arguments = self._parts(devices)

        def share(first, batch):
            precise = with_precision(function, self.config.matmul_precision)
            return precise(first, jax.tree.map(lambda x: x[0], batch))

        mapped = jax.shard_map(
            share,
            mesh=AbstractMesh((devices,), (AXIS_NAME,), axis_types=(AxisType.Auto,)),
            in_specs=(PartitionSpec(), PartitionSpec(AXIS_NAME)),
            out_specs=PartitionSpec(AXIS_NAME) if self.predicts else PartitionSpec(),
            check_vma=False,
        )
        with for_every_platform():
            traced = jax.jit(mapped).trace(*arguments)
        return {each: traced.lower(lowering_platforms=(each,)).as_text() for each in platforms}

    def _parts(self, devices: int):
        """Returns the function of one device, its first argument, and all devices' batch."""
        config, task, settings = self.config, self.experiment.task, self.config.train
        schedule = self.experiment.schedule or learning_rate_schedule(
            config.optimizer,
            num_steps=settings.num_steps,
            batch_size=self.per_device * devices,
        )
        make = self.experiment.optimizer or functools.partial(make_optimizer, config.optimizer)
        optimizer = make(schedule)
        example = training_example(self.experiment)
        ema = settings.ema_decay is not None
        one = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in example.items()}
        state = state_shapes(task, optimizer, seed=config.seed, batch=one, ema=ema)
        if self.predicts:
            batch = batch_of(prediction_input(task), devices, self.per_device)
            return task.predict, state.variables, batch
        step = make_train_step(
            task,
            optimizer,
            schedule,
            seed=config.seed,
            micro_batches=settings.micro_batches,
            ema_decay=settings.ema_decay,
            frozen=functools.partial(frozen_parameters, config.optimizer),
        )
        return step, state, batch_of(example, devices, self.per_device)


def program(
    experiment: str,
    variant: str = "",
    *,
    per_device: int | None = None,
    settings: tuple[tuple[str, object], ...] = (),
    predicts: bool = False,
) -> Program:
    """Builds a program of an experiment file.

    Args:
      experiment: a file below experiments/, without the suffix: "unet/dic_hela".
      variant: one of the file's variants; "" takes its defaults.
      per_device: examples on each device; None takes the experiment's batch, on one device.
      settings: further settings by dotted name: (("network.bfloat16", True),).
      predicts: whether to build the prediction instead of the train step.
    """
    module = load_module(EXPERIMENTS / f"{experiment}.py")
    workdir = Path("unused")
    if variant:
        config = variant_config(module.Config, variant, module.VARIANTS, workdir=workdir)
    else:
        config = module.Config(workdir=workdir)
    for name, value in settings:
        config = replaced(config, name.split("."), value)
    config = config.resolved({name for name, _ in settings})
    if per_device is None:
        per_device = config.train.batch_size
    assert per_device is not None  # by `resolved`
    return Program(module.build(config), config, per_device, predicts)


def replaced(config, path: list[str], value):
    """Returns a frozen dataclass with a nested field replaced."""
    first, *rest = path
    if rest:
        value = replaced(getattr(config, first), rest, value)
    return dataclasses.replace(config, **{first: value})


def batch_of(example: dict, devices: int, per_device: int) -> dict:
    """Returns the shapes of a batch as the step sees it, [devices, share, ...]."""
    return {
        name: jax.ShapeDtypeStruct((devices, per_device, *x.shape), x.dtype)
        for name, x in example.items()
    }


def training_example(experiment: Experiment) -> dict:
    """Runs the experiment's transforms on a blank image; returns the entries that enter a batch."""
    rng = np.random.default_rng(0)
    example = blank_example(experiment.task)
    for transform in experiment.transforms:
        example = transform(example, rng)
    entries = {
        name: np.asarray(example[name], dtype)
        for name, dtype in BATCH_DTYPES.items()
        if name in example and name != "instances"
    }
    return entries | {"index": np.int32(0)}


def blank_example(task) -> dict:
    """Returns an example of a blank image, with one object in its middle."""
    shape = np.zeros(SIZE, bool)
    shape[100:-100, 100:-100] = True
    example = {"id": "blank", "image": np.zeros((*SIZE, task.channels), np.uint8)}
    if isinstance(task, InstanceTask):
        masks = (crop_mask(shape),)
        return example | {
            "boxes": tight_boxes(masks),
            "classes": np.ones(1, np.int32),
            "masks": masks,
            "crowd": np.zeros(1, bool),
            "areas": np.array([mask.area for mask in masks], np.float32),
        }
    return example | {"labels": shape.astype(np.uint8), "instances": shape.astype(np.int32)}


def prediction_input(task) -> dict:
    """Returns what the network reads first of a blank image."""
    (first,) = itertools.islice(task.inputs(blank_example(task)), 1)
    return {name: np.asarray(x) for name, x in first.items()}
