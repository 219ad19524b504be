"""No shipped experiment trains a batch norm on a single value per channel."""

from functools import partial
from pathlib import Path

import jax
import pytest

from segjax.commands.experiments import experiment_files
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.ops.batch_statistics import SingleValueStatistics
from segjax.training.configuration import variant_config
from segjax.training.experiment import load_module

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FILES = sorted(e.path for e in experiment_files().values())
CONFIGURATIONS = [
    pytest.param(file, name, id=f"{file.relative_to(EXPERIMENTS)}-{name or 'default'}")
    for file in FILES
    for name in ("", *getattr(load_module(file), "VARIANTS", {}))
]


def trace(model, images):
    """Traces a network in training, on one device, without computing anything."""
    images = jax.ShapeDtypeStruct(images, "float32")
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda x: model.init(key, x, train=False), images)
    apply = partial(model.apply, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
    return jax.eval_shape(apply, variables, images)


@pytest.mark.parametrize(("file", "name"), CONFIGURATIONS)
def test_an_experiment_does_not_start_in_that_state(file, name, tmp_path):
    module = load_module(file)
    if name:
        config = variant_config(module.Config, name, module.VARIANTS, workdir=tmp_path)
    elif file.stem in ("coco_files",) or "folder" in file.stem:
        pytest.skip("needs paths; its settings are those of another experiment")
    else:
        config = module.Config(workdir=tmp_path)
    # On one device, the fewest that an update's statistics can be over.
    examples = config.train.batch_size // config.train.micro_batches
    if examples >= 2:
        return  # two values per channel at the least, whatever the network
    task = module.build(config).task
    side = config.network.training_sides[0]
    trace(task.model, (examples, side, side, task.channels))


@pytest.mark.parametrize(("examples", "refused"), [(1, True), (2, False)])
def test_image_pooling_needs_two_examples(examples, refused):
    model = DeepLabV3(num_classes=2, backbone="resnet18", multi_grid=None, aspp_features=4)
    if refused:
        with pytest.raises(SingleValueStatistics, match=r"batch norm .*aspp.* has one value per"):
            trace(model, (examples, 33, 33, 3))
    else:
        trace(model, (examples, 33, 33, 3))
