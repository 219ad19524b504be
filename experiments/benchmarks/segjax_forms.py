"""Builds what `convolution_forms.py` times: a network without one of the CPU's forms."""

import os

from segjax.ops.convolution import cpu
from segjax.ops.convolution.taps import plain, plain_input_gradient, plain_kernel_gradient

FORMS = ("depthwise", "outside", "winograd", "blocked", "mirrored")
# Forms that only a backward pass uses.
GRADIENT_FORMS = ("blocked", "mirrored")


def used_forms(network: str, mode: str) -> tuple[str, ...]:
    """Returns the forms that a network uses in a mode, "train step" or "inference"."""
    unused = set() if mode == "train step" else set(GRADIENT_FORMS)
    if network != "deeplabv3plus":
        unused.add("depthwise")
    if network in ("unet", "mask_rcnn"):
        unused.add("outside")
    return tuple(form for form in FORMS if form not in unused)


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
    elif form == "mirrored":
        cpu.mirrored_convolution = plain_input_gradient
    elif form == "blocked":
        cpu.blocked_kernel_gradient = plain_kernel_gradient
    elif form == "depthwise":
        cpu.sum_of_shifts = plain
        cpu.shifts_kernel_gradient = plain_kernel_gradient
    elif form is not None:
        raise ValueError(f"no form {form!r}; there are {', '.join(FORMS)}")
