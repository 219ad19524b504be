"""Times the fully connected CRF, and compares it with pydensecrf where that is installed.

    PYTHONPATH=. python experiments/benchmarks/dense_crf.py [--image FILE] [--record FILE.npz]

Prints medians, of the clock and of processor time over all threads, at 500×375 pixels, 21 classes
and 10 iterations, the making of the lattice included. Without an image the
picture is drawn by code. pydensecrf (pydensecrf2 1.1 installs on Python 3.11) is not a dependency.
--record writes the small scene of tests/ops/test_dense_crf.py and pydensecrf's marginals of it.
"""

import argparse
import dataclasses
import os
import platform
import statistics
import time

import cv2
import jax
import numpy as np

from segjax.data.images import read_image
from segjax.ops.dense_crf import CrfConfig, refine_probabilities

RUNS = 5
SETTINGS = {
    "v1's script: w1 4, σα 49, σβ 5": CrfConfig(),
    "the same, per pixel": CrfConfig(normalization="per_pixel"),
    "v2's VGG-16: w1 4, σα 65, σβ 3": CrfConfig(position_sigma=65, color_sigma=3),
    "wide: w1 4, σα 80, σβ 13": CrfConfig(position_sigma=80, color_sigma=13),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="an RGB photograph, resized to 500×375")
    parser.add_argument("--record", help="where to write the tests' fixture")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record)
        return
    image, probabilities = scene(375, 500, 21)
    if arguments.image:
        image = cv2.resize(read_image(arguments.image), (500, 375), interpolation=cv2.INTER_AREA)
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}")
    for name, config in SETTINGS.items():
        refine_probabilities(probabilities, image, config)  # compiles
        seconds, refined = timed(lambda c=config: refine_probabilities(probabilities, image, c))
        line = f"{name}: {seconds}"
        if has_pydensecrf():
            seconds, theirs = timed(lambda c=config: pydensecrf_marginals(probabilities, image, c))
            same = (refined.argmax(axis=-1) == theirs.argmax(axis=-1)).mean()
            difference = np.abs(refined - theirs).max(axis=-1).mean()
            line += f"; pydensecrf {seconds}, equal labels {100 * same:.2f} %, mean of the "
            line += f"largest difference {difference:.4f}"
        print(line, flush=True)


def timed(call):
    """Returns the median times of a call as text, and its result."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter(), time.process_time()
        result = call()
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    clock, processor = map(statistics.median, zip(*times, strict=True))
    return f"{clock:.2f} s (processor {processor:.2f} s)", result


def scene(height, width, classes):
    """Draws blobs of many colours with noise, and scores as of a network of output stride 8."""
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


def has_pydensecrf():
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        return False
    return True


def pydensecrf_marginals(probabilities, image, config):
    """Runs pydensecrf with the same parameters."""
    from pydensecrf import densecrf

    height, width, classes = probabilities.shape
    normalization = {
        "symmetric": densecrf.NORMALIZE_SYMMETRIC,
        "per_pixel": densecrf.NORMALIZE_AFTER,
        "none": densecrf.NO_NORMALIZATION,
    }[config.normalization]
    model = densecrf.DenseCRF2D(width, height, classes)
    unary = -np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).reshape(-1, classes).T
    model.setUnaryEnergy(np.ascontiguousarray(unary))
    model.addPairwiseGaussian(
        sxy=config.smoothness_sigma, compat=config.smoothness_weight, normalization=normalization
    )
    model.addPairwiseBilateral(
        sxy=config.position_sigma,
        srgb=config.color_sigma,
        rgbim=np.ascontiguousarray(image),
        compat=config.appearance_weight,
        normalization=normalization,
    )
    marginals = np.array(model.inference(config.num_iterations))
    return marginals.T.reshape(height, width, classes)


def record(path):
    image, probabilities = scene(60, 80, 5)
    probabilities = probabilities.astype(np.float16)
    marginals = {
        name: pydensecrf_marginals(
            probabilities.astype(np.float32),
            image,
            dataclasses.replace(CrfConfig(), normalization=name),
        ).astype(np.float16)
        for name in ("symmetric", "per_pixel")
    }
    np.savez_compressed(path, image=image, probabilities=probabilities, **marginals)


if __name__ == "__main__":
    main()
