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
    """Trains a compiled module for one step: with callbacks, settings and an optimiser's state.

    The callbacks record the absolute path of `folder`. In the fixture, "outputs" stands for it.
    """
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


def tensorflow(folder: Path):
    """Saves variables by the names of slim's MobileNetV2 in two data files, as shards."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    arrays = {"global_step": np.int64(30_000)}
    for i in range(3):
        unit = f"MobilenetV2/expanded_conv_{i}"
        arrays[f"{unit}/depthwise/depthwise_weights"] = rng.normal(size=(3, 3, 4, 1))
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            arrays[f"{unit}/project/BatchNorm/{part}"] = rng.normal(size=8).astype(np.float32)
    arrays["half"] = rng.normal(size=3).astype(np.float16)
    arrays["flags"] = np.array([True, False])
    arrays["empty"] = np.zeros((0, 3), np.float32)
    arrays["wide"] = np.arange(300, dtype=np.int32).reshape(2, 150)
    names = sorted(arrays)
    prefixes = [str(folder / f"part{i}") for i in range(2)]
    for i, prefix in enumerate(prefixes):
        chosen = names[i::2]
        values = [tf.constant(arrays[name]) for name in chosen]
        if i == 0:
            bfloat16 = tf.cast(tf.constant([1.5, -3e38, 0.1]), tf.bfloat16)
            values += [bfloat16, tf.constant([b"the objects", b"of Keras"])]
            chosen = [*chosen, "bfloat16", "_CHECKPOINTABLE_OBJECT_GRAPH"]
            arrays["bfloat16"] = tf.cast(bfloat16, tf.float32).numpy()
        tf.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=chosen,
            shape_and_slices=[""] * len(chosen),
            tensors=values,
        )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(folder / "tensorflow.ckpt-30000")
    )
    np.savez_compressed(folder / "tensorflow_arrays.npz", **arrays)


def main():
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    {"lightning": lightning, "tensorflow": tensorflow}[kind](folder)


if __name__ == "__main__":
    main()
