"""Mask R-CNN on your own data set: two JSON files in COCO's format and two folders of images.

Paper     He et al., Mask R-CNN, ICCV 2017 (arXiv:1703.06870): ResNet-50 with FPN, as in
          coco_r50_fpn.py, for 6,000 steps instead of 90,000; warm-up takes a larger share of them.
Protocol  The classes are the categories of the training file, in the order of their ids, or those
          of them that --classes names. The run records them, so it predicts without the files.
          Start from weights trained on COCO wherever you can:
          --initial.name detectron2/mask_rcnn_R_50_FPN.
Cost      not yet measured.
Data      --files.train-annotations FILE --files.train-images DIR, and likewise for val
Command   python experiments/mask_rcnn/coco_files.py --workdir runs/mine
          --files.train-annotations train.json --files.train-images train
          --files.val-annotations val.json --files.val-images val
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segjax.coco.ids import result_ids
from segjax.coco.index import read_coco_index
from segjax.commands.launch import run
from segjax.messages.hints import did_you_mean
from segjax.messages.lists import few
from segjax.recipes.mask_rcnn import (
    CocoFiles,
    MaskRCNNExperimentConfig,
    coco_files_splits,
    mask_rcnn_experiment,
)
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Config(MaskRCNNExperimentConfig):
    """Mask R-CNN on files in COCO's format."""

    files: CocoFiles = CocoFiles()
    classes: tuple[str, ...] = ()
    """Class names without background, some or all categories of the training file; all of them if
    none are given."""
    category_ids: tuple[int | str, ...] = ()
    """The training file's ids of the classes, which predictions in COCO's format have; read from
    it if none are given."""
    other_categories: Literal["refuse", "leave_out"] | None = None
    """What happens to objects of categories that are no classes, in training and in scores. refuse:
    they are an error; leave_out: they are left out, and a note counts them. None leaves them out if
    classes names only some categories of the training file, and refuses them otherwise."""
    train: TrainConfig = TrainConfig(
        num_steps=6000, batch_size=2, eval_every=1000, eval_batch_size=1, checkpoint_every=500
    )

    def __post_init__(self):
        path = self.files.train_annotations
        known = self.classes and self.category_ids and self.other_categories
        if not known and path is not None and path.is_file():
            categories = read_coco_index(path).categories
            names = tuple(categories.values())  # by id
            if not self.classes:
                object.__setattr__(self, "classes", names)
            if not self.category_ids:
                _check_names(self.classes, names, path)
                ids = result_ids(self.classes, listed=categories).ids
                object.__setattr__(self, "category_ids", ids)
            if self.other_categories is None:
                some = not set(names) <= set(self.classes)
                object.__setattr__(self, "other_categories", "leave_out" if some else "refuse")
        if self.category_ids and len(self.category_ids) != len(self.classes):
            raise ValueError(
                f"category_ids: {len(self.category_ids)} ids for {len(self.classes)} classes"
            )


def _check_names(classes: Sequence[str], known: Sequence[str], path: Path) -> None:
    """Raises ValueError for a class that is no category of the training file."""
    for name in classes:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(
                f"classes: {path} has no category {name!r}{hint or '.'} Its categories are "
                f"{few(known, most=10)}"
            )


def build(config: Config) -> Experiment:
    if not config.classes:
        raise ValueError(
            "the classes are read from --files.train-annotations, but there is no such file: "
            f"{config.files.train_annotations}"
        )
    splits = coco_files_splits(
        config.files,
        config.classes,
        category_ids=config.category_ids or None,
        leave_out_others=config.other_categories == "leave_out",
        empty_share=config.input.empty_share,
        seed=config.seed,
    )
    return mask_rcnn_experiment(config, splits)


if __name__ == "__main__":
    run(Config, build, __file__)
