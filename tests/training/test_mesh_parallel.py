"""Training and prediction on a mesh of devices, data × rows, against one device."""

import dataclasses
import functools
import itertools
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from segjax.data.loading.loader import training_batches
from segjax.inference.tiling import Tiling
from segjax.losses import SemanticLoss
from segjax.models import UNet
from segjax.ops.convolution import convolution
from segjax.tasks import InstanceTask
from segjax.training.checkpoint import Checkpoints
from segjax.training.evaluate import Evaluator
from segjax.training.loop import train
from segjax.training.mesh_parallel import InMesh, MeshParallel
from segjax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from segjax.training.parallel import DataParallel
from segjax.training.state import create_state
from segjax.training.step import make_train_step
from segjax.training.strategies import ParallelConfig, strategy_of
from tests.training import test_deeplab, tiny

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4)]
MIXED_LOSS = SemanticLoss(cross_entropy=1.0, dice=1.0, dice_over="batch", dice_background=True)


def devices(count):
    return tuple(jax.devices()[:count])


def mesh_of(data, rows, **options):
    return MeshParallel(data, rows, devices=devices(data * rows), **options)


@dataclasses.dataclass(frozen=True)
class Case:
    """A task with its examples and its optimiser."""

    task: object
    source: object
    transforms: tuple
    optimizer: object
    batch_size: int = 4


@dataclasses.dataclass(frozen=True)
class Crop:
    """Transform: cuts 32 × 32 pixels, and the labels to their centre of `labels` × `labels`."""

    labels: int

    def __call__(self, example, rng):
        inner = slice((32 - self.labels) // 2, (32 + self.labels) // 2)
        cut = {"image": example["image"][:32, :32], "labels": example["labels"][inner, inner]}
        return {**example, **cut}


def padded_unet(**settings) -> Case:
    config = tiny.Config(workdir=Path(), **settings)
    experiment = tiny.build(config)
    task = tiny.make_task(config)
    return Case(task, experiment.train(), experiment.transforms, config.optimizer)


def valid_unet() -> Case:
    model = UNet(3, features=2, depth=1, dropout_rate=0.0)
    task = dataclasses.replace(
        test_deeplab.make_task("v3+"),
        model=model,
        covering=Tiling((32, 32), (16, 16), multiple=2),
        loss_function=SemanticLoss(hard_pixels=0.2),
    )
    transforms = (task.preprocess, Crop(16))
    return Case(task, test_deeplab.Squares(8), transforms, OptimizerConfig(learning_rate=0.05))


def deeplab() -> Case:
    """DeepLab v3+ whose atrous rates reach beyond a neighbour's rows."""
    task = test_deeplab.make_task("v3+")
    transforms = (task.preprocess, Crop(32))
    return Case(task, test_deeplab.Squares(8), transforms, OptimizerConfig(learning_rate=0.002))


def trained(case: Case, parallel, *, num_steps=20, micro_batches=1):
    """Returns the losses of the steps, and the last state on its devices."""
    schedule = learning_rate_schedule(case.optimizer, num_steps=num_steps, batch_size=4)
    optimizer = make_optimizer(case.optimizer, schedule)
    step = parallel.train_step(
        make_train_step(
            case.task, optimizer, schedule, seed=0, micro_batches=micro_batches, ema_decay=0.9
        )
    )
    batches = training_batches(case.source, case.transforms, batch_size=case.batch_size, seed=1)
    first = next(batches)
    state = create_state(case.task, optimizer, seed=0, batch=first, ema=True)
    state = parallel.replicate(state)
    losses = []
    feed = parallel.prefetch(itertools.islice(itertools.chain([first], batches), num_steps))
    for _, batch in feed:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    batches.close()
    return losses, state


def predicted(case: Case, parallel, variables):
    evaluator = Evaluator(case.task, parallel, batch_size=1, workdir=None)
    examples = [case.source[i] | {"id": str(i)} for i in range(3)]
    placed = parallel.local(parallel.replicate(variables))
    return [each["probabilities"] for _, each in evaluator.predictions(placed, examples)]


CASES = {
    "padded U-Net": functools.partial(padded_unet, norm="batch", loss=MIXED_LOSS),
    "valid U-Net": valid_unet,
    "DeepLab v3+": deeplab,
}


@functools.cache
def on_one_device(name):
    case = CASES[name]()
    losses, state = trained(case, DataParallel(devices(1)))
    variables = jax.device_get(state.variables)
    return losses, variables, predicted(case, DataParallel(devices(1)), variables)


QUICK = [("padded U-Net", (2, 2)), ("padded U-Net", (1, 4)), ("valid U-Net", (1, 2))]


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        pytest.param(
            *(name, mesh),
            marks=[] if (name, mesh) in QUICK else pytest.mark.slow,
            id=f"{name}-{mesh[0]}x{mesh[1]}",
        )
        for name in CASES
        for mesh in MESHES
    ],
)
def test_every_mesh_trains_and_predicts_as_one_device(name, mesh):
    losses, variables, predictions = on_one_device(name)
    case, parallel = CASES[name](), mesh_of(*mesh)
    found, state = trained(case, parallel)
    assert losses[-1] < 0.95 * losses[0]
    np.testing.assert_allclose(found, losses, rtol=0, atol=1e-5)
    chex.assert_trees_all_close(jax.device_get(state.variables), variables, atol=1e-4)
    for one, other in zip(predictions, predicted(case, parallel, variables), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 1), (4, 1), (1, 2), (1, 4), (2, 2)], ids=str)
@pytest.mark.parametrize("rows_of_each", [1, 2, 4, 8])
def test_convolutions_of_every_kind_are_those_of_one_device(mesh, rows_of_each):
    """XLA computes some of them wrongly with few rows for each device; see `MIN_ROWS`."""
    rng = np.random.default_rng(0)
    height = rows_of_each * mesh[1] + (rows_of_each > 2)  # also a number that does not divide
    image = rng.normal(size=(4, height, height + 2, 16)).astype(np.float32)
    kinds = {
        "dense": ((3, 3, 16, 16), {}),
        "strided": ((3, 3, 16, 16), {"stride": 2}),
        "pointwise, strided": ((1, 1, 16, 16), {"stride": 2}),
        "grouped": ((3, 3, 4, 16), {"groups": 4}),
        "depthwise, strided": ((3, 3, 1, 16), {"groups": 16, "stride": 2}),
        **{f"depthwise, rate {r}": ((3, 3, 1, 16), {"groups": 16, "rate": r}) for r in (1, 2, 6)},
        **{f"dense, rate {rate}": ((3, 3, 16, 16), {"rate": rate}) for rate in (2, 6)},
    }
    kernels = {name: rng.normal(size=kind[0]).astype(np.float32) for name, kind in kinds.items()}

    def outputs(image, kernels):
        return {
            name: convolution(image, kernels[name], **options)
            for name, (_, options) in kinds.items()
        }

    def loss(image, kernels):
        return sum(jax.numpy.sum(jax.numpy.sin(x)) for x in outputs(image, kernels).values())

    def both(image, kernels):
        return outputs(image, kernels), jax.grad(loss, argnums=(0, 1))(image, kernels)

    parallel = mesh_of(*mesh)
    whole = jax.sharding.NamedSharding(parallel.mesh, jax.sharding.PartitionSpec())
    on_mesh = InMesh(jax.jit(both, out_shardings=whole), parallel.mesh)
    placed = jax.device_put(image, parallel.batch_sharding(image))
    found = on_mesh(placed, jax.device_put(kernels, whole))
    expected = jax.jit(both)(image, kernels)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-5 * scale)


def test_micro_batches_and_dropout_are_those_of_one_device():
    """Masks are drawn for the whole batch; a mesh of one device draws the same ones."""
    case = padded_unet(norm="batch", dropout_rate=0.5)
    one, two = (
        trained(case, mesh_of(*mesh), num_steps=4, micro_batches=2)[0] for mesh in ((1, 1), (2, 1))
    )
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
    without = trained(padded_unet(norm="batch"), mesh_of(1, 1), num_steps=4, micro_batches=2)[0]
    assert max(abs(a - b) for a, b in zip(one, without, strict=True)) > 1e-3


def test_parameters_divide_over_data_and_come_back_whole():
    case, parallel = padded_unet(), mesh_of(2, 2, shard_parameters=True)
    expected, _ = trained(case, mesh_of(2, 2), num_steps=3)
    losses, state = trained(case, parallel, num_steps=3)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    for tree in (state.params, state.ema_params, state.opt_state):
        for x in jax.tree.leaves(tree):
            held = x.addressable_shards[0].data.size
            assert held == (x.size // 2 if x.ndim > 1 else x.size)
    local = parallel.local(state.params)
    chex.assert_trees_all_equal(jax.device_get(local), jax.device_get(state.params))
    assert all(x.is_fully_replicated for x in jax.tree.leaves(local))


def test_the_state_is_donated():
    case, parallel = padded_unet(), mesh_of(1, 2)
    task, optimizer = case.task, make_optimizer(case.optimizer, lambda step: 0.1)
    batch = next(training_batches(case.source, case.transforms, batch_size=4, seed=1))
    state = parallel.replicate(create_state(task, optimizer, seed=0, batch=batch, ema=False))
    step = parallel.train_step(make_train_step(task, optimizer, lambda step: 0.1, seed=0))
    ((_, placed),) = parallel.prefetch([batch])
    step(state, placed)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": 3, "rows": 2}, "data=3 × parallel.rows=2 takes 6 devices, and there are 4; "
         "expected parallel.data=2"),
        ({"rows": 3}, "takes 3 devices, and there are 4; the nearest that takes all is data=2 × "
         "rows=2"),
        ({"data": 2}, "data=2 × parallel.rows=1 takes 2 devices, and there are 4; expected "
         "parallel.data=4"),
        ({"rows": 8}, "takes 8 devices, and there are 4; the nearest that takes all is data=1 × "
         "rows=4"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_the_devices_is_refused(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        strategy_of(ParallelConfig(**config), devices(4))
    assert "\n" not in str(caught.value)


def test_settings_choose_the_strategy():
    assert strategy_of(ParallelConfig(), devices(4)) == DataParallel(devices(4))
    assert strategy_of(ParallelConfig(rows=2), devices(4)) == mesh_of(2, 2)
    assert strategy_of(ParallelConfig(data=4), devices(4)) == mesh_of(4, 1)
    with pytest.raises(ValueError, match=r"rows=0; expected a number from 1 on"):
        ParallelConfig(rows=0)
    with pytest.raises(ValueError, match=r"shard_parameters=True without parallel.data or"):
        ParallelConfig(shard_parameters=True)


def test_batches_and_heights_that_do_not_divide_are_refused_with_the_nearest():
    mesh = mesh_of(2, 2)
    with pytest.raises(
        ValueError, match=r"batch of 6 .* over parallel.data=2 × 2 micro-batches; .* is 4 or 8"
    ):
        mesh.check_batch_size(6, 2)
    image = np.zeros((4, 33, 32, 3), np.float32)
    with pytest.raises(
        ValueError, match=r"of 33 rows do not divide over parallel.rows=2; .* is 32 or 34"
    ):
        next(mesh.prefetch([{"image": image}]))


def test_a_detector_keeps_whole_images():
    task = InstanceTask.__new__(InstanceTask)
    mesh_of(2, 1).check_task(task)
    with pytest.raises(ValueError, match=r"parallel.rows=2: Mask R-CNN keeps .* --parallel.rows 1"):
        mesh_of(1, 2).check_task(task)


@pytest.mark.slow
def test_a_run_moves_between_strategies_and_meshes(tmp_path):
    """Four steps with pmap, on a mesh and on another with divided parameters equal four alone."""
    settings = {"ema_decay": 0.9, "num_steps": 2, "checkpoint_every": 1, "eval_every": None}
    config = tiny.Config(tmp_path / "moved", norm="batch")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, schedule="constant")
    )

    def run(workdir, steps, parallel):
        train_config = dataclasses.replace(config.train, num_steps=steps)
        changed = dataclasses.replace(
            config, workdir=workdir, train=train_config, accept_changes=True
        )
        train(tiny.build(changed), changed, experiment_file=tiny.__file__, parallel=parallel)
        with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
            return checkpoints.read(steps)

    expected = run(tmp_path / "whole", 4, DataParallel(devices(1)))
    run(tmp_path / "moved", 1, DataParallel(devices(2)))
    run(tmp_path / "moved", 2, mesh_of(1, 2))
    run(tmp_path / "moved", 3, mesh_of(2, 2, shard_parameters=True))
    found = run(tmp_path / "moved", 4, DataParallel(devices(4)))
    chex.assert_trees_all_close(found, expected, atol=1e-5)
