"""PyTorch's side of the operator benchmark: torchvision's operators and torch's convolution.

torchvision's compiled operators are timed where they load; Python substitutes are not.
"""

import inputs
import numpy as np
import torch
from outputs import Operator
from torch.nn import functional
from torch_models import DEVICE, finished, on_device

torch.backends.cudnn.benchmark = True  # like XLA, which tries algorithms when it compiles


def roi_align(
    size: tuple[int, int], channels: int, boxes: int, bins: int, gradient: bool, result: str
):
    from torchvision.ops import MultiScaleRoIAlign

    pyramid = [on_device(x).requires_grad_(gradient) for x in inputs.pyramid(size, channels)]
    regions = torch.from_numpy(inputs.proposals(boxes, size)).to(DEVICE)
    names = [str(level) for level in range(len(pyramid))]
    pool = MultiScaleRoIAlign(names, bins, sampling_ratio=2)
    levels = dict(zip(names, pyramid, strict=True))

    def call():
        output = pool(levels, [regions], [tuple(size)])
        return (output, *with_gradients(output, pyramid)) if gradient else (output,)

    def arrays(result):
        output, *gradients = result
        return numbered([channels_last(output)[None], *map(channels_last, gradients)])

    return Operator(waited_for(call), result, arrays)


def nms(boxes: int, size: tuple[int, int], threshold: float, result: str):
    from torchvision.ops import nms

    boxes, scores = (torch.from_numpy(x).to(DEVICE) for x in inputs.boxes_and_scores(boxes, size))
    return Operator(
        waited_for(lambda: nms(boxes, scores, threshold)),
        result,
        lambda index: {"indices": index.cpu().numpy().astype(np.int32)},
    )


def paste_masks(masks: int, size: tuple[int, int], result: str):
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    probabilities, boxes = predicted_masks(masks, size)
    return Operator(
        lambda: paste_masks_in_image(probabilities, boxes, tuple(size))[:, 0].cpu(),
        result,
        lambda pasted: {"masks": pasted.numpy()[::10]},
    )


def paste_and_encode(masks: int, size: tuple[int, int], result: str):
    """Pastes and encodes masks as torchvision's reference evaluation does."""
    from pycocotools import mask as mask_util
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    probabilities, boxes = predicted_masks(masks, size)

    def call():
        pasted = paste_masks_in_image(probabilities, boxes, tuple(size)).cpu() > 0.5
        columns_first = (np.array(mask[0, :, :, None], np.uint8, order="F") for mask in pasted)
        return [mask_util.encode(mask)[0] for mask in columns_first]

    def arrays(result):
        return {"run lengths": np.array([mask["counts"] for mask in result])}

    return Operator(call, result, arrays)


def convolution(
    rate: int,
    groups: int,
    gradient: bool,
    result: str,
    channels_last_memory: bool = False,
    **shape,
):
    x, kernel = inputs.convolution(groups=groups, **shape)
    x, kernel = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(kernel)
    memory = torch.channels_last if channels_last_memory else torch.contiguous_format
    x, kernel = (
        array.contiguous(memory_format=memory).to(DEVICE).requires_grad_(gradient)
        for array in (x, kernel.permute(3, 2, 0, 1))
    )

    def call():
        output = functional.conv2d(x, kernel, padding=rate, dilation=rate, groups=groups)
        return (output, *with_gradients(output, (x, kernel))) if gradient else (output,)

    def arrays(result):
        arrays = [channels_last(array) for array in result[:2]]
        if gradient:
            arrays.append(result[2].permute(2, 3, 1, 0).cpu().numpy())
        return numbered(arrays)

    return Operator(waited_for(call), result, arrays)


def with_gradients(output, arguments):
    """Returns the gradients of half the squared output, whose own gradient is the output."""
    return torch.autograd.grad(output, arguments, output.detach())


def waited_for(call):
    def wait():
        result = call()
        finished()
        return result

    return wait


def predicted_masks(count: int, size: tuple[int, int]):
    probabilities, boxes = map(torch.from_numpy, inputs.predicted_masks(count, size))
    return probabilities[:, None].to(DEVICE), boxes.to(DEVICE)


def channels_last(array) -> np.ndarray:
    return array.detach().permute(0, 2, 3, 1).cpu().numpy()


def numbered(arrays) -> dict:
    return {f"array {i}": array for i, array in enumerate(arrays)}
