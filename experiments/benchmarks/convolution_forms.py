"""Times train steps with each of the CPU's convolution forms turned off alone, in turn.

    python experiments/benchmarks/convolution_forms.py --output convolution_forms.json

Each case has segjax as it is, segjax without one form, and XLA's own convolutions throughout
(`SEGJAX_CONVOLUTION=plain`), each in a process of its own. A ratio is the time with all forms over
the time without one: a form stays in `segjax.ops.convolution.cpu` while a ratio is below 0.95.
"""

from dataclasses import dataclass

import tyro
from measure import Options, Results, Side, compare
from models import CASES
from segjax_forms import FORMS


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
    sides = [Side("all forms", "segjax_forms:step")]
    sides += [
        Side(f"without {form}", "segjax_forms:step", arguments=(("without", form),))
        for form in options.forms
    ]
    sides.append(Side("plain", "segjax_forms:step", arguments=(("without", "all"),)))
    for case in CASES:
        if case.on_gpu or case.network not in options.networks or max(case.size) > options.largest:
            continue
        arguments = {"batch": case.batch, "size": case.size, "network": case.network}
        name = f"{case.network}, train step, {case.batch} × {case.size[0]} × {case.size[1]}"
        results.add(name, compare(sides, arguments, rounds=options.rounds, threads=options.threads))


if __name__ == "__main__":
    main(tyro.cli(FormOptions, description=__doc__))
