"""The gradient of a ResNet bottleneck compiles for an H100; XLA:GPU's plugin is needed, no GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
PROGRAM = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from segjax.models.backbones.resnet import ResidualBlock
from segjax.models.layers import Unit

target = Path(sys.argv[1]).read_text()
topology = topologies.get_topology_desc("cuda", "cuda", topology="1x1x1", target_config=target)
sharding = SingleDeviceSharding(topology.devices[0])
block = ResidualBlock(features=128, unit=Unit(2, 1, 1))


def loss(parameters, statistics, x):
    variables = {"params": parameters, "batch_stats": statistics}
    x = jax.nn.relu(x)  # the block before ends so
    y, _ = block.apply(variables, x, train=True, mutable=["batch_stats"])
    return jnp.sum(y**2)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


x = jax.ShapeDtypeStruct((4, 128, 128, 256), jnp.float32)
variables = jax.eval_shape(block.init, jax.random.key(0), x)
arguments = abstract((variables["params"], variables["batch_stats"], x))
jax.jit(jax.grad(loss)).lower(*arguments).compile()
print("compiled")
"""


@pytest.mark.slow
def test_the_gradient_of_a_strided_bottleneck_compiles_for_an_h100():
    if not any(importlib.util.find_spec(name) for name in PLUGINS):
        pytest.skip("needs jax[cuda12] or jax[cuda13]")
    target = ROOT / "experiments" / "benchmarks" / "h100_sxm.txtpb"
    # XLA's failed check aborts the process.
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(target)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (0, "compiled\n"), finished.stderr[-2000:]
