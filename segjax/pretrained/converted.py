"""A model with trained weights that predicts images."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from segjax.data.augmentation.photometric import to_eight_bits
from segjax.data.images import match_channels
from segjax.data.voc_classes import VOC_CLASSES
from segjax.models.network import Network
from segjax.pretrained.mapping import Table, fill
from segjax.tasks.instance import InstanceTask
from segjax.tasks.semantic import SemanticTask
from segjax.training.compiler import compiler_options
from segjax.training.precision import MatmulPrecision, with_precision


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model and its trained variables.

    Attributes:
      model: a whole network, or a backbone.
      variables: {"params": ..., "batch_stats": ...} for `model.apply`.
      preprocess: (example, None) → example with the float32 "image" that the model expects; the
        input has values 0..255, RGB or grey.
      task: resizes, pads, predicts and decodes as the model's source does; its `evaluator()` scores
        predictions. None for a backbone.
      dtypes: pixel types that `predict` accepts. Weights for photographs take 8 bits; a run takes
        16 bits as well.
      matmul_precision: the precision of float32 products; see `ExperimentConfig`.
    """

    model: Network
    variables: Any
    preprocess: Callable[[dict, None], dict]
    task: SemanticTask | InstanceTask | None = None
    dtypes: tuple[str, ...] = ("uint8",)
    matmul_precision: MatmulPrecision = "default"

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class id; a detector's first is the background.

        Raises:
          ValueError: the model is a backbone, which has no classes.
        """
        return self.segmenter.classes

    def predict(self, image: np.ndarray) -> dict[str, Any]:
        """Segments one image, or finds the objects in it.

        Each new input size is compiled; a detector pads images to a few sizes. For many images,
        `segjax.predict_all` is faster.

        Args:
          image: [height, width], [height, width, 1] (grey) or [height, width, 3] (RGB), of one of
            the `dtypes`, or of 16 bits if the task has a `pixel_range`; it is converted to the
            channels that the model reads.

        Returns:
          A semantic model gives "probabilities" float32 [height, width, classes] and the most
          probable class, "labels" uint8 [height, width]; a model that separates objects adds
          "instances" int32 [height, width], 0 for none. A detector gives objects by descending
          score: "boxes" float32 [objects, 4] as x_min, y_min, x_max, y_max in pixels of the image,
          "scores" float32 [objects], "classes" int32 [objects], which are indices of `classes`, and
          "masks", a list of COCO run lengths for `segjax.coco.run_lengths.decode`.

        Raises:
          ValueError: the image has another shape or type, or the model is a backbone.
        """
        task = self.segmenter
        image = np.asarray(image)
        image = image[..., None] if image.ndim == 2 else image
        pixel_range = getattr(task, "pixel_range", None)
        if pixel_range is not None and image.dtype == np.uint16 and "uint16" not in self.dtypes:
            image = to_eight_bits(image, pixel_range)
        channels = (1, 3) if task.channels in (1, 3) else (task.channels,)
        if image.ndim != 3 or image.shape[2] not in channels or image.dtype.name not in self.dtypes:
            raise ValueError(
                f"expected an image [height, width, 3 (RGB) or 1 (grey)], "
                f"{' or '.join(self.dtypes)}; found {image.dtype} of shape {image.shape}"
            )
        example = {"image": match_channels(image, task.channels)}
        batches = (jax.tree.map(lambda x: x[None], item) for item in task.inputs(example))
        outputs = (jax.device_get(self._predict(self.variables, batch)) for batch in batches)
        windows = ({name: value[0] for name, value in output.items()} for output in outputs)
        return task.merge(example, windows)

    @functools.cached_property
    def _predict(self):
        predict = with_precision(self.segmenter.predict, self.matmul_precision)
        return jax.jit(predict, compiler_options=compiler_options())

    @property
    def segmenter(self) -> SemanticTask | InstanceTask:
        """The task.

        Raises:
          ValueError: the model is a backbone, which has none.
        """
        if self.task is None:
            raise ValueError(
                f"this is a backbone ({type(self.model).__name__}) without a classifier: put its "
                "weights into a model with segjax.pretrained.initialize, and train that"
            )
        return self.task


@dataclass(frozen=True, eq=False)
class Conversion:
    """How the arrays of a state dict become a model's variables.

    Attributes:
      model: the network or backbone. The state dict has decided its sizes.
      table: the source of every array of the model; see `segjax.pretrained.mapping`.
      state_dict: the source's arrays by name.
      ignored: a regular expression for names in the state dict that the model does not need.
      preprocess, task: as in `Pretrained`.
      either_way: attributes of the model that may have other values with the same weights.
    """

    model: Network
    table: Table
    state_dict: Mapping[str, np.ndarray]
    ignored: str
    preprocess: Callable[[dict, None], dict]
    task: SemanticTask | InstanceTask | None = None
    either_way: tuple[str, ...] = ()

    def converted(self, name: str) -> Pretrained:
        """Converts the arrays of these weights; see `segjax.pretrained.mapping.fill`."""
        variables = fill(self.model, self.table, self.state_dict, name=name, ignored=self.ignored)
        return Pretrained(self.model, variables, self.preprocess, self.task)


def class_names(outputs: int, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the given names; without any, VOC's for 21 classes and numbered ones otherwise.

    Args:
      outputs: number of the classifier's outputs. A single one, a sigmoid's, has two classes:
        background and foreground.
      classes: names of the classes, or None.

    Raises:
      ValueError: the number of names is not the number of classes.
    """
    num_classes = 2 if outputs == 1 else outputs
    if classes is None:
        if outputs == 1:
            return ("background", "foreground")
        if num_classes == len(VOC_CLASSES):
            return VOC_CLASSES
        return tuple(f"class {index}" for index in range(num_classes))
    if len(classes) != num_classes:
        sigmoid = " (one output, a sigmoid, and the background)" if outputs == 1 else ""
        raise ValueError(
            f"the weights have {num_classes} classes{sigmoid}; got {len(classes)} names: {classes}"
        )
    return tuple(classes)
