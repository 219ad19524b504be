"""Times networks on CPU with each convolution form turned off alone, in turn.

    python experiments/benchmarks/convolution_forms.py --output convolution_forms.json

Each case times segjax as it is, segjax without one form that the network uses, and XLA's own
convolutions throughout (`SEGJAX_CONVOLUTION=plain`), each in a process of its own. "all forms
again" is the control: its distance from 1 is noise. A ratio is the time with all forms over the
time without one: a form stays in `segjax.ops.convolution.cpu` while a ratio is below 0.95.
"""

from dataclasses import dataclass

import tyro
from measure import Options, Results, Side, compare
from models import CASES
from segjax_forms import FORMS, used_forms


@dataclass(frozen=True)
class FormOptions(Options):
    """Options of this comparison.

    Attributes:
      networks: the networks to time.
      modes: what to time.
      forms: the forms to turn off; "all" turns off all of them. Without the blocked kernel gradient
        a train step of Mask R-CNN takes minutes.
      largest: longest side of an image; larger cases are left out.
    """

    rounds: int = 5
    networks: tuple[str, ...] = ("unet", "deeplabv3", "deeplabv3plus", "mask_rcnn")
    modes: tuple[str, ...] = ("train step", "inference")
    forms: tuple[str, ...] = (*FORMS, "all")
    largest: int = 640


def main(options: FormOptions):
    results = Results(options)
    for case in CASES:
        if case.on_gpu or case.network not in options.networks or max(case.size) > options.largest:
            continue
        arguments = {"batch": case.batch, "size": case.size, "network": case.network}
        for mode in options.modes:
            without = {"all forms": None, "all forms again": None}
            used = (*used_forms(case.network, mode), "all")
            off = [form for form in used if form in options.forms]
            without |= {"plain" if form == "all" else f"without {form}": form for form in off}
            sides = [
                Side(name, "segjax_forms:build", arguments=(("mode", mode), ("without", form)))
                for name, form in without.items()
            ]
            name = f"{case.network}, {mode}, {case.batch} × {case.size[0]} × {case.size[1]}"
            timings = compare(sides, arguments, rounds=options.rounds, threads=options.threads)
            results.add(name, timings)


if __name__ == "__main__":
    main(tyro.cli(FormOptions, description=__doc__))
