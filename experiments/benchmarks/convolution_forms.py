"""Times train steps with each of the CPU's convolution forms turned off alone, in turn.

    python experiments/benchmarks/convolution_forms.py --output convolution_forms.json

Each case has segjax as it is, segjax without one form, and XLA's own convolutions throughout
(`SEGJAX_CONVOLUTION=plain`), each in a process of its own. A ratio is the time with all forms over
the time without one: a form stays in `segjax.ops.convolution.cpu` while a ratio is below 0.95.
"""

import os
from dataclasses import dataclass

import tyro
from measure import Options, Results, Side, compare
from models import CASES

FORMS = ("depthwise", "outside", "winograd", "blocked", "mirrored")


@dataclass(frozen=True)
class FormOptions(Options):
    """Options of this comparison."""

    networks: tuple[str, ...] = ("unet", "deeplabv3", "deeplabv3plus", "mask_rcnn")
    forms: tuple[str, ...] = FORMS
    """Forms to turn off, each alone."""
    largest: int = 400
    """Longest side of the images; larger cases are left out."""


def main(options: FormOptions):
    results = Results(options)
    sides = [Side("all forms", "convolution_forms:step")]
    sides += [
        Side(f"without {form}", "convolution_forms:step", arguments=(("without", form),))
        for form in options.forms
    ]
    sides.append(Side("plain", "convolution_forms:step", arguments=(("without", "all"),)))
    for case in CASES:
        if case.on_gpu or case.network not in options.networks or max(case.size) > options.largest:
            continue
        arguments = {"batch": case.batch, "size": case.size, "network": case.network}
        name = f"{case.network}, train step, {case.batch} × {case.size[0]} × {case.size[1]}"
        results.add(name, compare(sides, arguments, rounds=options.rounds, threads=options.threads))


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
    import jax

    from segjax.ops.convolution import cpu
    from segjax.ops.convolution.taps import plain

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


if __name__ == "__main__":
    main(tyro.cli(FormOptions, description=__doc__))
