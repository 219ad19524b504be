"""Makes small checkpoints of other packages for the tests of the readers in tests/pretrained.

    python experiments/benchmarks/record_checkpoints.py tests/fixtures lightning
    python experiments/benchmarks/record_checkpoints.py tests/fixtures tensorflow

"lightning" needs torch and lightning (made with 2.14.1 and 2.6.6), "tensorflow" TensorFlow (made
with 2.21.0). Each writes a checkpoint and its arrays.
"""

import argparse
import sys
from pathlib import Path

import numpy as np


def lightning(folder: Path):
    """Trains a compiled module for one step: with callbacks, settings and an optimiser's state."""
    import lightning as pl
    import torch
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    class Module(pl.LightningModule):
        def __init__(self, settings, width: int):
            super().__init__()
            self.save_hyperparameters()
            layers = torch.nn.Conv2d(3, width, 1), torch.nn.BatchNorm2d(width)
            self.net = torch.compile(torch.nn.Sequential(*layers), backend="eager")
            self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(width))

        def training_step(self, batch):
            images, labels = batch
            loss = self.criterion(self.net(images), labels)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters())
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    torch.manual_seed(0)
    settings = {"folder": Path("data"), "step": np.float64(0.5), "loss": torch.nn.L1Loss()}
    module = Module(argparse.Namespace(**settings), width=2)
    saver = ModelCheckpoint(dirpath=folder, filename="lightning", monitor="loss")
    pair = torch.rand(3, 4, 4), torch.zeros(4, 4, dtype=torch.long)
    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver, EarlyStopping("loss")],
    )
    trainer.fit(module, torch.utils.data.DataLoader([pair]))
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    np.savez_compressed(folder / "lightning_arrays.npz", **state)


def main():
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    {"lightning": lightning}[kind](folder)


if __name__ == "__main__":
    main()
