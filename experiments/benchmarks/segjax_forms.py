"""segjax's train steps with one of the CPU's convolution forms turned off."""

import os

import jax

from segjax.ops.convolution import cpu
from segjax.ops.convolution.taps import plain

FORMS = ("depthwise", "outside", "winograd", "blocked", "mirrored")


def step(network: str, batch: int, size: tuple[int, int], without: str | None = None):
    """Builds a train step without one form, or without any ("all"); runs in a worker."""
    import segjax_models

    turn_off(without)
    shared = {"batch": batch, "size": size, "bfloat16": False}
    if network == "mask_rcnn":
        return segjax_models.instance_train_step(objects=8, **shared)
    return segjax_models.semantic_train_step(network=network, **shared)


def turn_off(form: str | None):
    """Replaces a form by XLA's own convolution, or its gradient, in this process."""

    def plain_input_gradient(inputs, kernel, gradient, taps):
        return jax.vjp(lambda x: plain(x, kernel, taps), inputs)[1](gradient)[0]

    def plain_kernel_gradient(inputs, kernel, gradient, taps):
        return jax.vjp(lambda k: plain(inputs, k, taps), kernel)[1](gradient)[0]

    if form == "all":
        os.environ["SEGJAX_CONVOLUTION"] = "plain"
    elif form == "outside":
        cpu.mostly_outside = lambda inputs, taps: False
    elif form == "winograd":
        cpu.winograd_pays = lambda inputs, kernel, taps: False
    elif form == "mirrored":
        cpu.mirrored_convolution = plain_input_gradient
    elif form == "blocked":
        cpu.blocked_kernel_gradient = plain_kernel_gradient
    elif form == "depthwise":
        cpu.sum_of_shifts = plain
        cpu.shifts_kernel_gradient = plain_kernel_gradient
    elif form is not None:
        raise ValueError(f"no form {form!r}; there are {', '.join(FORMS)}")
