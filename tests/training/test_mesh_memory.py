"""What the compiler makes of a train step whose images' rows are shared among devices."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.inference.coverings import WholeImage
from segjax.models import UNet
from segjax.tasks import SemanticTask
from segjax.training.mesh_parallel import MeshParallel
from segjax.training.state import state_shapes
from segjax.training.step import make_train_step
from tests.training import test_deeplab


def unet(features, depth, side):
    return SemanticTask(
        model=UNet(2, features=features, depth=depth, padding="SAME", norm="batch"),
        classes=("ground", "object"),
        channels=3,
        covering=WholeImage((side, side)),
        preprocess=lambda example, rng: example,
    )


def compiled(task, side, *, rows, batch_size=1):
    """Compiles the train step for images [side, side, 3], whose rows so many devices share."""
    parallel = MeshParallel(1, rows, devices=tuple(jax.devices()[:rows]))
    shapes = {
        "image": jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.float32),
        "labels": jax.ShapeDtypeStruct((batch_size, side, side), jnp.int32),
    }
    optimizer, schedule = optax.sgd(0.1, momentum=0.9), optax.constant_schedule(0.1)
    state = state_shapes(task, optimizer, seed=0, batch=shapes, ema=False)
    placed = [
        jax.tree.map(lambda x, of=of: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=of(x)), tree)
        for tree, of in ((state, parallel.sharding_of), (shapes, parallel.batch_sharding))
    ]
    step = make_train_step(task, optimizer, schedule, seed=0)
    return parallel.train_step(step).lower(*placed).compile()


def collectives(program) -> list[tuple[str, int]]:
    """Returns the kind of each collective of a program, with the number of its elements."""
    found = []
    for line in program.as_text().splitlines():
        if match := re.search(
            r"= (\(?.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)"
            r"(?:-start)?\(",
            line,
        ):
            shapes = re.findall(r"\[([\d,]*)\]", match[1])
            sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
            found.append((match[2], max(sizes)))
    return found


@pytest.mark.slow
@pytest.mark.optimized
def test_four_devices_need_at_most_a_third_of_one_devices_temporaries():
    side = 2048
    one, four = (compiled(unet(64, 4, side), side, rows=rows) for rows in (1, 4))
    temporaries = [each.memory_analysis().temp_size_in_bytes for each in (one, four)]
    print(temporaries, Counter(kind for kind, _ in collectives(four)))
    assert temporaries[1] <= 0.35 * temporaries[0]
    assert {kind for kind, _ in collectives(four)} == {"collective-permute", "all-reduce"}


def test_a_unet_exchanges_rows_and_gathers_no_map():
    side = 64
    found = collectives(compiled(unet(16, 2, side), side, rows=4, batch_size=2))
    assert {kind for kind, _ in found} == {"collective-permute", "all-reduce"}
    largest = max(size for kind, size in found if kind == "collective-permute")
    assert largest <= 2 * 2 * side * 32  # two rows of a batch, of at most 32 channels


@pytest.mark.slow
def test_deeplab_gathers_only_the_maps_that_atrous_taps_read_all_of():
    side = 256
    found = collectives(compiled(test_deeplab.make_task("v3+"), side, rows=4, batch_size=2))
    gathers = [size for kind, size in found if kind in ("all-gather", "all-to-all")]
    assert all(size <= 2 * (side // 16) ** 2 * 32 for size in gathers)
