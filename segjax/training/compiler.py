"""XLA's options for trainings and predictions: `SEGJAX_CONVOLUTION=onednn` in the environment.

On CPU, XLA computes convolutions by YNNPACK, which takes 1.1 to 1.4 times as long as oneDNN,
PyTorch's library. With the setting, XLA calls oneDNN for convolutions, and YNNPACK for most
products and sums. jaxlib 0.12.0.1 cannot save such a program, so each start compiles it anew. Only
long trainings gain. The section "oneDNN" of experiments/benchmarks/RESULTS.md has the times.
"""

import functools
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.convolution import convolution_setting

_YNNPACK = ("INDIVIDUAL_DOT", "REDUCE")
_ONEDNN = {
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": ",".join(f"LIBRARY_FUSION_TYPE_{x}" for x in _YNNPACK),
}


def compiler_options(platform: str | None = None) -> dict[str, Any]:
    """Returns the options for a platform's programs, as `jax.jit` takes them.

    Args:
      platform: JAX's name of the platform; None takes the one that JAX runs on.

    Raises:
      ValueError: oneDNN is asked for on CPU, and this jaxlib does not have it.
    """
    on_cpu = (platform or jax.default_backend()) == "cpu"
    if not on_cpu or convolution_setting() != "onednn":
        return {}
    if not _has_onednn():
        raise ValueError(
            f"SEGJAX_CONVOLUTION=onednn: jaxlib {metadata.version('jaxlib')} computes no "
            "convolution by oneDNN; 0.12.0.1 does"
        )
    # XLA fails to write these programs to JAX's folder of compiled ones, and JAX says so each time.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
    return dict(_ONEDNN)


@functools.cache
def _has_onednn() -> bool:
    """Whether XLA calls oneDNN for a convolution. jaxlib 0.10.2 takes the options and does not."""

    def convolve(image, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    shapes = (1, 8, 8, 16), (3, 3, 16, 16)
    lowered = jax.jit(convolve).lower(*(jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes))
    try:
        program = lowered.compile(compiler_options=_ONEDNN).as_text()
    except jax.errors.JaxRuntimeError:  # an option that this XLA does not know
        return False
    return "__onednn$conv" in (program or "")


class Programs:
    """The compiled programs of a function of `jax.pmap`, one for each shape of its arguments.

    Unlike `pmap`, it compiles with options, and without running what it compiled.
    """

    def __init__(self, mapped: Callable, options: dict[str, Any]):
        self._mapped, self._options = mapped, options
        self._programs: dict[Any, Callable] = {}

    def lower(self, *arguments):
        """Traces and lowers the function, as `jax.pmap`'s own method."""
        return self._mapped.lower(*arguments)

    def program(self, *arguments) -> Callable:
        """Returns the program for arguments of these shapes, which it compiles at most once."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = structure, *((x.shape, x.dtype) for x in leaves)
        if shapes not in self._programs:
            lowered = self.lower(*arguments)
            self._programs[shapes] = lowered.compile(compiler_options=self._options)
        return self._programs[shapes]

    def __call__(self, *arguments):
        return self.program(*arguments)(*arguments)


def with_options(mapped: Callable, platform: str) -> Callable:
    """Returns a function of `jax.pmap` that compiles with the platform's options.

    Raises:
      ValueError: there are options and several processes. `pmap` then joins the processes' arrays
        before it calls the program, which `Programs` does not.
    """
    options = compiler_options(platform)
    if options and jax.process_count() > 1:
        raise ValueError(
            f"SEGJAX_CONVOLUTION=onednn is for one process; there are {jax.process_count()}"
        )
    return Programs(mapped, options) if options else mapped
