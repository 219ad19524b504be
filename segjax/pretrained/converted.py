"""A model with trained weights, and what it takes to apply it to photographs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from segjax.data.voc_classes import VOC_CLASSES
from segjax.models.network import Network
from segjax.tasks.instance import InstanceTask
from segjax.tasks.semantic import SemanticTask


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model and its trained variables.

    Attributes:
      model: a whole network, or a backbone.
      variables: {"params": ..., "batch_stats": ...} for `model.apply`.
      preprocess: (example, None) → example with the float32 "image" that the weights want, RGB
        0..255 in.
      task: predicts with the model, resizes and pads as its source does; None for a backbone. Its
        `evaluator()` scores what it predicts for the examples of a data set with its classes.
    """

    model: Network
    variables: Any
    preprocess: Callable[[dict, None], dict]
    task: SemanticTask | InstanceTask | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, background first where there is one.

        Raises:
          ValueError: it is a backbone, which has none.
        """
        return self._segmenter.classes

    def predict(self, image: np.ndarray) -> dict[str, Any]:
        """Segments one photograph, or finds the objects in it.

        It compiles for each size of input anew; a detector pads photographs to one of two sizes.

        Args:
          image: RGB, uint8 [height, width, 3].

        Returns:
          Of a semantic model: "probabilities" float32 [height, width, classes], and the most
          probable, "labels" uint8 [height, width]. Of a detector, by descending score: "boxes"
          float32 [objects, 4] as x_min, y_min, x_max, y_max in pixels of the photograph, "scores"
          float32 [objects], "classes" int32 [objects], which number `classes`, and "masks": a list
          of COCO's run lengths, which `segjax.coco.run_lengths.decode` makes bool [height, width].

        Raises:
          ValueError: another shape or type; or it is a backbone.
        """
        task = self._segmenter
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"expected an RGB image, uint8 [height, width, 3], found {image.dtype} "
                f"of shape {image.shape}"
            )
        example = {"image": image}
        batches = (jax.tree.map(lambda x: x[None], item) for item in task.inputs(example))
        outputs = (jax.device_get(self._predict(self.variables, batch)) for batch in batches)
        windows = ({name: value[0] for name, value in output.items()} for output in outputs)
        return task.merge(example, windows)

    @functools.cached_property
    def _predict(self):
        return jax.jit(self._segmenter.predict)

    @property
    def _segmenter(self) -> SemanticTask | InstanceTask:
        if self.task is None:
            raise ValueError(
                f"this is a backbone ({type(self.model).__name__}) without a classifier: put its "
                "weights into a model with segjax.pretrained.initialize, and train that"
            )
        return self.task


def class_names(num_classes: int, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names given, those of VOC for 21 classes, or else numbers.

    Raises:
      ValueError: there are more or fewer names than classes.
    """
    if classes is None:
        if num_classes == len(VOC_CLASSES):
            return VOC_CLASSES
        return tuple(f"class {index}" for index in range(num_classes))
    if len(classes) != num_classes:
        raise ValueError(
            f"the weights have {num_classes} classes, and {len(classes)} names: {classes}"
        )
    return tuple(classes)
