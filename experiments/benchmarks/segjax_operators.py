"""segjax's side of the operator benchmark, and the rivals that run in its environment.

Compiled operators find their inputs on the device, and each call waits for its result. Paste and
run lengths are NumPy.
"""

import inputs
import jax
import numpy as np
from jax import lax
from outputs import Operator

from segjax import ops
from segjax.coco import run_lengths as rle
from segjax.inference.paste import paste, paste_to_rle
from segjax.ops.dense_crf import CrfConfig, refine_probabilities
from segjax.ops.roi_align import multilevel_roi_align


def roi_align(
    size: tuple[int, int], channels: int, boxes: int, bins: int, gradient: bool, result: str
):
    pyramid = inputs.pyramid(size, channels)
    regions = inputs.proposals(boxes, size)[None]

    def pool(pyramid):
        return multilevel_roi_align(
            pyramid,
            regions,
            strides=[4 * 2**level for level in range(len(pyramid))],
            output_size=bins,
            sampling_ratio=2,
            aligned=False,
            level_rule="torchvision",
        )

    return compiled(with_gradients(pool) if gradient else pool, (pyramid,), result)


def nms(boxes: int, size: tuple[int, int], threshold: float, result: str):
    def select(boxes, scores):
        return ops.nms(boxes, scores, iou_threshold=threshold, max_outputs=len(scores))

    function, arrays = jax.jit(select), jax.device_put(inputs.boxes_and_scores(boxes, size))

    def selected(result):
        index, valid = map(np.asarray, result)
        return {"indices": index[valid]}

    return Operator(lambda: jax.block_until_ready(function(*arrays)), result, selected)


def dense_crf(scene: str, config: dict, result: str):
    with np.load(scene) as arrays:
        image, probabilities = arrays["image"], arrays["probabilities"]
    config = CrfConfig(**config)
    return Operator(
        lambda: refine_probabilities(probabilities, image, config),
        result,
        lambda marginals: {"marginals": marginals},
    )


def paste_masks(masks: int, size: tuple[int, int], result: str):
    predicted = list(zip(*inputs.predicted_masks(masks, size), strict=True))
    return Operator(
        lambda: np.stack([paste(mask, box, size, rule="torchvision") for mask, box in predicted]),
        result,
        lambda pasted: {"masks": pasted[::10]},
    )


def paste_and_encode(masks: int, size: tuple[int, int], result: str):
    probabilities, boxes = inputs.predicted_masks(masks, size)
    return Operator(
        lambda: paste_to_rle(probabilities, boxes, size, rule="torchvision"), result, encoded
    )


def encode(masks: int, size: tuple[int, int], result: str):
    drawn = binary_masks(masks, size)
    return Operator(lambda: [rle.encode(mask) for mask in drawn], result, encoded)


def pycocotools_encode(masks: int, size: tuple[int, int], result: str):
    from pycocotools import mask as mask_util

    drawn = binary_masks(masks, size)

    def call():
        columns_first = (np.asfortranarray(mask, np.uint8) for mask in drawn)
        return [mask_util.encode(mask) for mask in columns_first]

    return Operator(call, result, encoded)


def pycocotools_encode_columns(masks: int, size: tuple[int, int], result: str):
    """Encodes all masks in one call, from the column-major memory that pycocotools expects."""
    from pycocotools import mask as mask_util

    columns_first = np.asfortranarray(binary_masks(masks, size).transpose(1, 2, 0), np.uint8)
    return Operator(lambda: mask_util.encode(columns_first), result, encoded)


def convolution(rate: int, groups: int, gradient: bool, result: str, **shape):
    def convolve(x, kernel):
        return ops.convolution(x, kernel, rate=rate, groups=groups)

    arrays = inputs.convolution(groups=groups, **shape)
    return compiled(with_gradients(convolve) if gradient else convolve, arrays, result)


def lax_convolution(rate: int, groups: int, gradient: bool, result: str, **shape):
    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(rate, rate)] * 2,
            rhs_dilation=(rate, rate),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    arrays = inputs.convolution(groups=groups, **shape)
    return compiled(with_gradients(convolve) if gradient else convolve, arrays, result)


def with_gradients(function):
    """Returns a function that adds the gradients of half its squared output.

    The gradient at the output is then the output itself.
    """

    def both(*arguments):
        output, pull_back = jax.vjp(function, *arguments)
        return output, pull_back(output)

    return both


def compiled(function, arguments, result):
    function, arguments = jax.jit(function), jax.device_put(arguments)
    return Operator(lambda: jax.block_until_ready(function(*arguments)), result, leaves)


def leaves(result) -> dict:
    return {f"array {i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(result))}


def encoded(result) -> dict:
    texts = (mask["counts"] for mask in result)
    return {"run lengths": np.array([x.encode() if isinstance(x, str) else x for x in texts])}


def binary_masks(count: int, size: tuple[int, int]) -> np.ndarray:
    """Returns masks, bool [count, height, width], row-major in memory."""
    predicted = zip(*inputs.predicted_masks(count, size), strict=True)
    return np.stack([paste(mask, box, size, rule="torchvision") >= 0.5 for mask, box in predicted])
