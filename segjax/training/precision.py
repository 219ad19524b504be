"""The precision of float32 products on GPUs and TPUs."""

import contextlib
import functools
from collections.abc import Callable
from typing import Literal

import jax

MatmulPrecision = Literal["default", "high", "highest"]


def with_precision(function: Callable, precision: MatmulPrecision) -> Callable:
    """Returns the function with another precision of the products that it traces.

    The words are those of `jax.lax.Precision`, and CPUs compute float32 with each of them:

    - "default" is the fastest, and leaves JAX's own setting as it is. Factors are rounded to TF32
      (10 bits of mantissa) on NVIDIA's GPUs since Ampere, and to bfloat16 (7 bits) on TPUs.
    - "high" takes TF32 on GPUs, and three bfloat16 products for one on TPUs.
    - "highest" takes float32 on GPUs, and six bfloat16 products for one on TPUs.

    Products that need float32 whatever the setting ask for it themselves, such as those that resize
    logits. Products of bfloat16 numbers are the same with each word.
    """

    @functools.wraps(function)
    def run(*arguments):
        chosen = contextlib.nullcontext()
        if precision != "default":
            chosen = jax.default_matmul_precision(precision)
        with chosen:
            return function(*arguments)

    return run
