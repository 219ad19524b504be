"""The benchmark that turns the CPU's convolution forms off, one at a time."""

import jax
import numpy as np
import pytest

from experiments.benchmarks.segjax_forms import FORMS, turn_off
from segjax.ops import convolution
from segjax.ops.convolution import cpu

# input, kernel and options of a convolution that each form computes
CASES = {
    "depthwise": ((1, 6, 7, 8), (3, 3, 1, 8), {"groups": 8}),
    "outside": ((1, 9, 7, 16), (3, 3, 16, 16), {"rate": 4}),
    "winograd": ((1, 40, 26, 256), (3, 3, 256, 256), {}),
    "blocked": ((1, 12, 9, 16), (3, 3, 16, 16), {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_without_a_form_the_program_changes_and_the_values_do_not(form, monkeypatch):
    for name in vars(cpu):  # restored after the test
        if not name.startswith("_"):
            monkeypatch.setattr(cpu, name, getattr(cpu, name))
    inputs_shape, kernel_shape, options = CASES[form]
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=inputs_shape).astype(np.float32)
    kernel = rng.normal(size=kernel_shape).astype(np.float32) / 50

    def run():
        def squares(x, k):
            return (convolution(x, k, **options) ** 2).sum()

        lowered = jax.jit(jax.grad(squares, (0, 1))).lower(inputs, kernel)
        return lowered.as_text(), lowered.compile()(inputs, kernel)

    program, values = run()
    turn_off(form)
    other_program, other_values = run()
    assert other_program != program
    for mine, reference in zip(values, other_values, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="no form 'fft'; there are depthwise, outside"):
        turn_off("fft")
