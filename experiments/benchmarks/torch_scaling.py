"""PyTorch's side of `scaling.py`: the train steps of `torch_models.py` on one device."""

import torch_models
from process_memory import WithMemory, resident_bytes


def train_step(kind: str, **arguments):
    before = resident_bytes()
    return WithMemory(getattr(torch_models, f"{kind}_train_step")(**arguments), before=before)
