"""The model's arrays among all that a training script saves, and the prefixes of their names."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Keys under which training scripts save the model's arrays, beside the optimiser's: Lightning and
# OpenMMLab, others, detectron2 and Caffe2.
WRAPPERS = ("state_dict", "model_state_dict", "model", "blobs")
# What a wrapper puts before the names: DataParallel, a Lightning module's attribute, torch.compile.
PREFIXES = ("module.", "model.", "net.", "network.", "_orig_mod.")
# Buffers that a Lightning module has beside its network, such as the weights of the classes.
BESIDE = re.compile(r"^\w*(loss|criterion|metric)\w*\.")


def unwrapped(value: Any) -> Any:
    """Returns the mapping of arrays within nested ones: {"state_dict": {...}, "epoch": 3}."""
    while isinstance(value, Mapping):
        inner = [value[key] for key in WRAPPERS if isinstance(value.get(key), Mapping)]
        if not inner:
            break
        value = inner[0]
    return value


def without_prefixes(state_dict: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields a state dict as it is, and then without one more of the `PREFIXES` each time.

    A prefix is removed only if all names have it, but those of losses and metrics (`BESIDE`), which
    are left out from then on. The caller decides which of the state dicts fits.
    """
    while True:
        yield state_dict
        names = [name for name in state_dict if not BESIDE.match(name)]
        prefix = next((p for p in PREFIXES if names and names[0].startswith(p)), None)
        if prefix is None or not all(name.startswith(prefix) for name in names):
            return
        state_dict = {name.removeprefix(prefix): state_dict[name] for name in names}
