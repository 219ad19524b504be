"""A U-Net for two CPU cores: the variant "small" of the experiments."""

from dataclasses import replace
from typing import Any, Literal

from segjax.recipes.unet import UNetConfig, UNetPredictionConfig
from segjax.training.configuration import TrainConfig
from segjax.training.optimizer import OptimizerConfig


def small_network(
    *,
    tile: int,
    batch_size: int,
    steps: int,
    depth: int = 4,
    average_over: Literal["one", "seven", "eight"] = "one",
    **fields,
) -> dict[str, Any]:
    """Returns a U-Net that two CPU cores train within an hour or two, as fields of a variant.

    It is a quarter as wide as the paper's, pads with zeros and has batch norm; AdamW with a cosine
    schedule takes the place of SGD with momentum 0.99. A moving average of the parameters is
    scored, at the end alone, since predicting whole images from eight sides takes minutes.

    Args:
      tile: side of the tiles in pixels.
      batch_size, steps: tiles in a batch, and number of batches.
      depth: number of poolings.
      average_over: see `UNetPredictionConfig`.
      fields: further fields of the variant; "prediction" with the changes of `average_over`.
    """
    prediction = fields.pop("prediction", UNetPredictionConfig())
    return {
        "train": TrainConfig(
            num_steps=steps,
            batch_size=batch_size,
            checkpoint_every=200,
            ema_decay=0.998,
        ),
        "optimizer": OptimizerConfig(
            name="adamw",
            learning_rate=2e-3,
            reference_batch_size=batch_size,
            schedule="cosine",
            warmup_steps=100,
            weight_decay=1e-4,
        ),
        "network": UNetConfig(
            features=16, depth=depth, padding="SAME", norm="batch", dropout_rate=0.0, tile=tile
        ),
        "prediction": replace(prediction, average_over=average_over),
        **fields,
    }
