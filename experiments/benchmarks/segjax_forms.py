"""Builds what `convolution_forms.py` times: a network without one of the CPU's forms."""

import os

from segjax.ops.convolution import cpu
from segjax.ops.convolution.taps import plain, plain_kernel_gradient

FORMS = ("depthwise", "outside", "winograd", "blocked")


def used_forms(network: str, mode: str) -> tuple[str, ...]:
    """Returns the forms that a network uses in a mode, "train step" or "inference"."""
    used = {"winograd"}
    if mode == "train step":
        used.add("blocked")  # a form of a gradient
    if network == "deeplabv3":
        used.add("outside")
    if network == "deeplabv3plus":
        used.add("depthwise")
    return tuple(form for form in FORMS if form in used)


def build(network: str, mode: str, batch: int, size: tuple[int, int], without: str | None):
    """Builds what a worker times, without one form or without any ("all")."""
    import segjax_models

    turn_off(without)
    kind = "instance" if network == "mask_rcnn" else "semantic"
    arguments = {"batch": batch, "size": size, "bfloat16": False}
    if kind == "semantic":
        arguments["network"] = network
    elif mode == "train step":
        arguments["objects"] = 8
    return getattr(segjax_models, f"{kind}_{mode.replace(' ', '_')}")(**arguments)


def turn_off(form: str | None):
    """Replaces a form by XLA's own convolution, or its gradient, in this process."""
    if form == "all":
        os.environ["SEGJAX_CONVOLUTION"] = "plain"
    elif form == "outside":
        cpu.mostly_outside = lambda inputs, taps: False
    elif form == "winograd":
        cpu.winograd_pays = lambda inputs, kernel, taps: False
    elif form == "blocked":
        cpu.blocked_kernel_gradient = plain_kernel_gradient
    elif form == "depthwise":
        cpu.sum_of_shifts = plain
        cpu.shifts_kernel_gradient = plain_kernel_gradient
    elif form is not None:
        raise ValueError(f"no form {form!r}; there are {', '.join(FORMS)}")
