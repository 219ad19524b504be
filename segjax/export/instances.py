"""The exported function of a detector: images in, boxes, classes and pasted masks out.

The size of the images may be open. Images are resized into one of a few buckets, as in prediction;
the device decides into which. The program has a copy of the network for each bucket, and the
weights once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.data.augmentation.instance import Enlarge, ResizeShortSide
from segjax.export.pasting import paste
from segjax.export.pixels import eight_bits, normalization
from segjax.export.resampling import resample
from segjax.export.sizes import with_size
from segjax.pretrained.torchvision_detection import Resize
from segjax.tasks.instance import SIDE_MULTIPLE, InstanceTask

Bucket = tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    """How images of the exported function become the network's inputs.

    Attributes:
      buckets: the sizes of the network's inputs, the smallest first.
      view: the resized height and width, if the images have one size.
      most: the largest height and width of the images; None for any.
    """

    buckets: tuple[Bucket, ...]
    view: tuple[int, int] | None = None
    most: tuple[int, int] | None = None


def check_instances(task: InstanceTask) -> None:
    """Raises ValueError, with the reason, for a task that cannot be exported."""
    if len(task.views) != 1 or task.views[0].flip:
        raise ValueError(
            f"the task merges {len(task.views)} views, which cannot be exported; take one "
            "(--set prediction.short_sides=[800] prediction.flip=false)"
        )
    if type(task.views[0].resize) not in (ResizeShortSide, Resize, Enlarge):
        raise ValueError(
            f"the resizing {type(task.views[0].resize).__name__} has no form that can be exported"
        )
    normalization(task.preprocess)


def sizes_of(task: InstanceTask, size: tuple[int, int] | None, dtype: str) -> Sizes:
    """Returns how the task resizes images of one size, or of any size.

    Raises:
      ValueError: the resizing needs images of one size.
    """
    if size is not None:
        image = np.zeros((*size, task.channels), dtype)
        (item,) = task.inputs({"image": image})
        height, width = item["size"].tolist()
        return Sizes((item["image"].shape[:2],), (height, width))
    resize: Any = task.views[0].resize
    if resize == Enlarge(1.0):
        height, width = (max(sides) for sides in zip(*task.buckets, strict=True))
        return Sizes(_with_room(task.buckets, (height, width)), most=(height, width))
    if isinstance(resize, ResizeShortSide) and resize.rounding == "nearest":
        short, most = resize.short_sides[0], resize.max_size
        return Sizes(_with_room(task.buckets, (short, most), (most, short)))
    raise ValueError(
        "the sizes to which this model resizes images are computed in double precision, so the "
        "exported function takes images of one size: give --size HEIGHT WIDTH"
    )


def instance_function(task: InstanceTask, variables: Any, *, dtype: str, sizes: Sizes) -> Callable:
    """Returns the function (images) → detections, which equals `task.merge`.

    Args:
      task: a task that `check_instances` accepts.
      variables: the network's variables, which become constants of the function.
      dtype: the type of the images' pixels.
      sizes: the sizes of the images and of the network's inputs; see `sizes_of`.

    Returns:
      A function of images [batch, height, width, channels]; see `model.INSTANCE_OUTPUTS`.
    """
    normalize = normalization(task.preprocess)
    resize: Any = task.views[0].resize
    known = getattr(task.preprocess, "dtypes", (dtype,))

    def run(images):
        if dtype not in known and task.pixel_range is not None:
            images = eight_bits(images, task.pixel_range)
        size: Any = images.shape[1:3]
        height, width = (jnp.asarray(side, jnp.int32) for side in size)
        view = _view(resize, height, width) if sizes.view is None else sizes.view
        view_height, view_width = (jnp.asarray(side, jnp.int32) for side in view)

        def detect(bucket, variables, images):
            seen = _seen(images, view, bucket, resize)
            rows, columns = (
                jnp.arange(side, dtype=jnp.int32) < end
                for side, end in zip(bucket, (view_height, view_width), strict=True)
            )
            inside = rows[None, :, None, None] & columns[None, None, :, None]
            batch = {
                "image": jnp.where(inside, normalize(seen), 0.0),
                "size": jnp.broadcast_to(
                    jnp.stack([view_height, view_width])[None], (images.shape[0], 2)
                ),
            }
            found = task.predict(variables, batch)
            return {name: found[name] for name in ("boxes", "scores", "classes", "valid", "masks")}

        branches = [partial(detect, bucket) for bucket in sizes.buckets]
        if len(branches) == 1:
            found = branches[0](variables, images)
        else:
            fits = jnp.stack(
                [(view_height <= tall) & (view_width <= wide) for tall, wide in sizes.buckets]
            )
            # The variables are operands so that the branches share them.
            found = lax.switch(jnp.argmax(fits), branches, variables, images)
        scale = jnp.stack([width / view_width, height / view_height] * 2).astype(jnp.float32)
        limits = jnp.stack([width, height] * 2).astype(jnp.float32)
        boxes = jnp.clip(found["boxes"] * scale[None, None], 0, limits[None, None])
        masks = paste(
            found["masks"], boxes, size, rule=task.paste_rule, threshold=task.mask_threshold
        )
        valid = found["valid"]
        return found | {"boxes": boxes, "masks": masks & valid[..., None, None]}

    return run


def _view(resize: ResizeShortSide | Enlarge, height, width):
    """Computes `instance.resized_size` on int32 scalars."""
    if isinstance(resize, Enlarge):
        return height, width
    short, most = resize.short_sides[0], resize.max_size
    shorter, longer = jnp.minimum(height, width), jnp.maximum(height, width)
    limited = short * longer > most * shorter
    dividend, divisor = jnp.where(limited, most, short), jnp.where(limited, longer, shorter)
    # side · dividend / divisor, halves up
    sides = [(2 * side * dividend + divisor) // (2 * divisor) for side in (height, width)]
    return tuple(jnp.maximum(side, 1) for side in sides)


def _seen(images, view, bucket: Bucket, resize):
    """Resizes images into a bucket, as the view does."""
    if resize == Enlarge(1.0):
        return with_size(images, *bucket)
    if isinstance(resize, Resize):
        images, antialias = images.astype(jnp.float32), resize.rule.antialias
    else:
        antialias = getattr(resize, "antialias", True)
    return resample(images, view, bucket, antialias=antialias)


def _with_room(buckets: tuple[Bucket, ...], *largest: Bucket) -> tuple[Bucket, ...]:
    """Adds buckets for the largest sizes that none of the buckets has room for; sorts by area."""
    found = [*buckets]
    for height, width in largest:
        if not any(tall >= height and wide >= width for tall, wide in found):
            tall, wide = (math.ceil(side / SIDE_MULTIPLE) for side in (height, width))
            found.append((tall * SIDE_MULTIPLE, wide * SIDE_MULTIPLE))
    return tuple(sorted(found, key=lambda bucket: bucket[0] * bucket[1]))
