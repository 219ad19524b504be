"""Records pydensecrf's marginals of a small synthetic scene for tests/ops/test_dense_crf.py.

    PYTHONPATH=. python experiments/benchmarks/dense_crf.py --record FILE.npz

Needs pydensecrf, which segjax does not (pydensecrf2 1.1 installs on Python 3.11). `operators.py`
compares times and labels on a large scene.
"""

import argparse
import dataclasses

import cv2
import numpy as np
from pydensecrf_operators import marginals

from segjax.ops.dense_crf import CrfConfig


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", required=True, help="where to write the tests' fixture")
    record(parser.parse_args().record)


def scene(height, width, classes):
    """Draws noisy blobs of many colours, and class scores like those of an output stride of 8.

    Returns:
      The image, uint8 [height, width, 3], and probabilities, float32 [height, width, classes].
    """
    rng = np.random.default_rng(0)

    def smooth(rows, channels):
        coarse = rng.normal(size=(rows, rows * width // height + 1, channels))
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)

    color = (
        np.round(2 * smooth(6, 3)) * 40 + 8 * smooth(60, 3) + rng.normal(0, 3, (height, width, 3))
    )
    logits = 3 * smooth(12, classes)
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return np.clip(128 + color, 0, 255).astype(np.uint8), probabilities.astype(np.float32)


def record(path):
    image, probabilities = scene(60, 80, 5)
    probabilities = probabilities.astype(np.float16)
    found = {
        name: marginals(
            probabilities.astype(np.float32),
            image,
            **dataclasses.asdict(CrfConfig(normalization=name)),
        ).astype(np.float16)
        for name in ("symmetric", "per_pixel")
    }
    np.savez_compressed(path, image=image, probabilities=probabilities, **found)


if __name__ == "__main__":
    main()
