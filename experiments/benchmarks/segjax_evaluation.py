"""segjax's side of the evaluation benchmark."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
from segjax_models import Reported

from segjax import pretrained
from segjax.data.sources.protocol import Source
from segjax.data.sources.semantic import open_dataset
from segjax.recipes.mask_rcnn import CocoFiles, coco_files_splits
from segjax.training.evaluate import Evaluator
from segjax.training.parallel import DataParallel


@dataclass(frozen=True)
class First:
    """The first examples of a source."""

    source: Source
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        return self.source[index]


def deeplabv3(weights: str, folder: str, count: int):
    """Scores CamVid's test images, whose eleven classes are the first of the 21."""
    model = pretrained.load("torchvision/deeplabv3_resnet50", weights)
    # As the reference evaluation of sets of one size: whole images, not resized.
    task = replace(model.task, input_size=None)
    source = open_dataset("camvid", "test", data_dir=Path(folder))
    return evaluation(task, model.variables, First(source, count), "mean_iou")


def mask_rcnn(weights: str, folder: str, count: int):
    """Scores the first images of COCO's validation set."""
    model = pretrained.load("torchvision/maskrcnn_resnet50_fpn", weights, epsilon=1e-5)
    annotations, images = Path(folder) / "annotations", Path(folder)
    files = CocoFiles(
        train_annotations=annotations / "instances_val2017.json",
        train_images=images / "val2017",
        val_annotations=annotations / "instances_val2017.json",
        val_images=images / "val2017",
    )
    splits = coco_files_splits(
        files, model.task.classes[1:], category_ids=model.task.category_ids, empty_share=1.0, seed=0
    )
    (open_validation,) = splits.evaluation.values()
    return evaluation(model.task, model.variables, First(open_validation(), count), "mask_AP")


def evaluation(task, variables, source, headline: str):
    """Returns a call that scores the source, as training and `segjax evaluate` do."""
    parallel = DataParallel(devices=(jax.devices()[0],))
    evaluator = Evaluator(task, parallel, batch_size=1, workdir=None)
    variables = parallel.replicate(variables)

    def call():
        return evaluator.evaluate(variables, source, split="test", step=0).metrics

    return Reported(call, lambda metrics: f"{headline} {metrics[headline]:.3f}")
