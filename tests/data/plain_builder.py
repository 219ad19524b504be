"""A builder as a user of TFDS writes one: it knows nothing of segjax."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIZE = (40, 48)


class PlainSquares(tfds.core.GeneratorBasedBuilder):
    """Photographs of noise with a bright square; the mask has 1 on the square and 2 elsewhere."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "photo": tfds.features.Image(shape=(None, None, 3)),
                    "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
                    "names": tfds.features.LabeledImage(
                        labels=["square", "rest"], shape=(None, None, 1)
                    ),
                    "species": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "val": self._generate_examples(3)}

    def _generate_examples(self, count):
        for number in range(count):
            photo, mask = square(number)
            yield (
                number,
                {
                    "photo": _png(photo),
                    "segmentation_mask": _png(mask),
                    "names": _png(mask - 1),
                    "species": number % 2,
                },
            )


def square(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The photograph, uint8 [H, W, 3], and the mask, uint8 [H, W], of an example."""
    rng = np.random.default_rng(number)
    photo = rng.integers(0, 100, (*SIZE, 3), np.uint8)
    mask = np.full(SIZE, 2, np.uint8)
    inside = np.s_[5 + number : 25 + number, 10:30]
    photo[inside], mask[inside] = photo[inside] + 150, 1
    return photo, mask


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    buffer.seek(0)
    return buffer
