"""Convolutions by oneDNN on CPU, where they are asked for and jaxlib has them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.convolution import convolution
from segjax.training import compiler
from segjax.training.mesh_parallel import MeshParallel
from segjax.training.parallel import DataParallel

# JAX says that it cannot keep the program; see the module.
pytestmark = pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache entry")


@pytest.fixture
def onednn(monkeypatch):
    if not compiler._has_onednn():
        pytest.skip("this jaxlib computes no convolution by oneDNN")
    monkeypatch.setenv("SEGJAX_CONVOLUTION", "onednn")


def step(state, batch):
    def loss(kernel):
        return jnp.mean(jax.nn.relu(convolution(batch["image"], kernel)) ** 2)

    value, gradient = jax.value_and_grad(loss)(state["kernel"])
    return {"kernel": state["kernel"] - 0.1 * gradient}, {"loss": value}


def trained(parallel):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 16, 16), np.float32)
    image = rng.standard_normal((4, 16, 16, 16), np.float32)
    run, state = parallel.train_step(step), parallel.replicate({"kernel": kernel})
    for _, batch in parallel.prefetch([{"image": image}] * 3):
        state, metrics = run(state, batch)
    return jax.device_get((state, metrics))


@pytest.mark.parametrize("strategy", [DataParallel, partial(MeshParallel, data=2, rows=1)])
def test_steps_by_onednn_are_those_of_xla(strategy, onednn, monkeypatch):
    devices = tuple(jax.devices()[:2])
    found = trained(strategy(devices=devices))
    monkeypatch.setenv("SEGJAX_CONVOLUTION", "")
    expected = trained(strategy(devices=devices))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


def test_programs_call_onednn_where_it_is_asked_for(onednn, monkeypatch):
    def calls():
        shapes = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((1, 8, 8, 16), (3, 3, 16, 16)))
        options = compiler.compiler_options()
        lowered = jax.jit(lambda x, kernel: convolution(x, kernel)).lower(*shapes)
        return lowered.compile(compiler_options=options).as_text().count("__onednn$conv")

    assert calls() == 1
    monkeypatch.setenv("SEGJAX_CONVOLUTION", "")
    assert calls() == 0
    monkeypatch.setenv("SEGJAX_CONVOLUTION", "onednn")
    assert compiler.compiler_options("tpu") == {}


def test_a_jaxlib_without_it_is_named(monkeypatch):
    monkeypatch.setenv("SEGJAX_CONVOLUTION", "onednn")
    monkeypatch.setattr(compiler, "_has_onednn", lambda: False)
    with pytest.raises(ValueError, match=r"SEGJAX_CONVOLUTION=onednn: jaxlib [\d.]+ computes no"):
        compiler.compiler_options()


def test_each_shape_is_compiled_once(onednn):
    parallel = DataParallel((jax.devices()[0],))
    mapped = parallel.train_step(step)
    assert isinstance(mapped, compiler.Programs)
    state = parallel.replicate({"kernel": np.zeros((3, 3, 16, 16), np.float32)})
    for size in (8, 8, 12):
        ((_, batch),) = parallel.prefetch([{"image": np.ones((1, size, size, 16), np.float32)}])
        state, _ = mapped(state, batch)
    assert len(mapped._programs) == 2


def test_several_processes_are_refused(onednn, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="SEGJAX_CONVOLUTION=onednn is for one process; there are"):
        compiler.with_options(step, "cpu")
