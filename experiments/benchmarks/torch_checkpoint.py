"""PyTorch's side of `checkpoint_stall.py`: `torch.save` of the model and optimiser state."""

import tempfile
from pathlib import Path

import torch
import torch_models


class Save:
    """A call that writes the state; training stands still until it returns."""

    def __init__(self, network: str):
        self._model, _, _ = torch_models.segmenter(network)
        self._model = self._model.to(torch_models.DEVICE)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.0, momentum=0.9)
        for parameter in self._model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()  # makes the momentum
        self._folder = tempfile.TemporaryDirectory()
        self.facts = {}

    def __call__(self):
        path = Path(self._folder.name) / "state.pth"
        state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, path)
        self.facts["bytes"] = path.stat().st_size
