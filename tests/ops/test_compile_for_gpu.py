"""Gradients that XLA:GPU of jax 0.10.2 could not compile; its plugin is needed, no GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
START = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from segjax.models.backbones.resnet import ResidualBlock
from segjax.models.layers import Unit
from segjax.ops import resize_bilinear

target = Path(sys.argv[1]).read_text()
topology = topologies.get_topology_desc("cuda", "cuda", topology="1x1x1", target_config=target)
sharding = SingleDeviceSharding(topology.devices[0])


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

"""
BOTTLENECK = """
block = ResidualBlock(features=128, unit=Unit(2, 1, 1))


def loss(parameters, statistics, x):
    variables = {"params": parameters, "batch_stats": statistics}
    x = jax.nn.relu(x)  # the block before ends so
    y, _ = block.apply(variables, x, train=True, mutable=["batch_stats"])
    return jnp.sum(y**2)


x = jax.ShapeDtypeStruct((4, 128, 128, 256), jnp.float32)
variables = jax.eval_shape(block.init, jax.random.key(0), x)
arguments = abstract((variables["params"], variables["batch_stats"], x))
jax.jit(jax.grad(loss)).lower(*arguments).compile()
print("compiled")
"""
RESIZE = """
def loss(kernel, x):
    logits = (x.reshape(-1, 64) @ kernel).reshape(*x.shape[:3], -1)
    return jnp.sum(resize_bilinear(logits, (65, 65), align_corners=True) ** 2)


for classes in (2, 19, 21):
    kernel = jax.ShapeDtypeStruct((64, classes), jnp.float32)
    x = jax.ShapeDtypeStruct((4, 33, 33, 64), jnp.float32)
    jax.jit(jax.grad(loss, (0, 1))).lower(*abstract((kernel, x))).compile()
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [BOTTLENECK, RESIZE], ids=["strided bottleneck", "resize"])
def test_the_gradient_compiles_for_an_h100(program):
    if not any(importlib.util.find_spec(name) for name in PLUGINS):
        pytest.skip("needs jax[cuda12] or jax[cuda13]")
    target = ROOT / "experiments" / "benchmarks" / "h100_sxm.txtpb"
    # XLA's failed check aborts the process. Level 0: there is no GPU to time kernels on.
    flags = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"
    finished = subprocess.run(
        [sys.executable, "-c", START + program, str(target)],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": flags,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (0, "compiled\n"), finished.stderr[-2000:]
