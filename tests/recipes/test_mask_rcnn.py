"""Mask R-CNN's recipes: what training and evaluation are given."""

import dataclasses
import itertools
import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from segjax.data.augmentation.instance import Enlarge
from segjax.data.checks.examples import check_for
from segjax.data.loading.loader import training_batches
from segjax.data.sources.coco_files import CocoInstances
from segjax.models.mask_rcnn import MaskRCNN
from segjax.recipes.mask_rcnn import (
    FROZEN,
    CocoFiles,
    Crop,
    InputConfig,
    MaskRCNNExperimentConfig,
    MaskRCNNPredictionConfig,
    ShortSides,
    coco_files_splits,
    instance_task,
    mask_rcnn_experiment,
)
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.training.configuration import from_dict, to_dict
from segjax.training.experiment import load_module
from segjax.training.optimizer import learning_rate_multipliers
from tests.data.official_instance_layouts import write_coco

SIDES = [(30, 40), (40, 30), (36, 36), (25, 60), (60, 25), (33, 41)]
CONFIG = MaskRCNNExperimentConfig(
    workdir=Path("unused"),
    network=MaskRCNNConfig(backbone="resnet18", width_multiplier=0.05, fpn_features=4),
    input=InputConfig(
        resize=ShortSides((32, 40, 48), max_size=96),
        buckets=((64, 96), (96, 64)),
        max_objects=3,
        mask_size=7,
    ),
    prediction=MaskRCNNPredictionConfig(
        short_sides=(48,), max_size=96, buckets=((64, 96), (96, 64))
    ),
)
CLASSES = ("thing", "other")


def write_files(folder, *, sizes=SIDES, names=CLASSES, category=7):
    """A JSON file in COCO's format, one square in each image, and the files that it names."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": h, "width": w}
            for i, (h, w) in enumerate(sizes)
        ],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i,
                "category_id": category,
                "bbox": [4, 5, 12, 10],
                "area": 120,
                "iscrowd": 0,
                "segmentation": [[4, 5, 16, 5, 16, 15, 4, 15]],
            }
            for i in range(len(sizes))
        ],
        "categories": [{"id": 7 + 2 * i, "name": name} for i, name in enumerate(names)],
    }
    folder.mkdir(exist_ok=True)
    for i, (height, width) in enumerate(sizes):
        Image.fromarray(np.full((height, width, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "objects.json").write_text(json.dumps(content))
    return CocoFiles(folder / "objects.json", folder, folder / "objects.json", folder)


def coco_files_experiment(config, files, classes=CLASSES):
    return mask_rcnn_experiment(config, coco_files_splits(files, classes))


def test_images_of_all_sizes_are_traced_once_for_each_bucket(tmp_path):
    experiment = coco_files_experiment(CONFIG, write_files(tmp_path / "files"))
    source = experiment.train()
    batches = training_batches(
        source,
        experiment.transforms,
        batch_size=2,
        seed=0,
        groups=experiment.groups(source),
    )
    seen = set()

    @jax.jit
    @chex.assert_max_traces(n=2)
    def step(batch):
        return sum(x.sum() for x in jax.tree.leaves(batch) if x.dtype == np.float32)

    for batch in itertools.islice(batches, 12):
        step(batch)
        seen.add(batch["image"].shape)
        assert (batch["classes"][:, 0] == 1).all()
    batches.close()
    assert seen == {(2, 64, 96, 3), (2, 96, 64, 3)}

    inputs = [item for example in source for item in experiment.task.inputs(example)]
    assert {item["image"].shape for item in inputs} == {(64, 96, 3), (96, 64, 3)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": ShortSides((32, 70), max_size=96)}, "for an image of 30 × 40, .* 70 × 93 and"),
        ({"buckets": ((64, 90), (96, 64))}, "for an image of 25 × 60, .* 40 × 96 and does not fit"),
        ({"resize": Crop((65, 65))}, "65 × 65 and does not fit into its bucket of 64 × 96"),
    ],
)
def test_images_that_do_not_fit_their_bucket_are_refused_before_training(
    tmp_path, changes, message
):
    settings = dataclasses.replace(CONFIG.input, **changes)
    config = dataclasses.replace(CONFIG, input=settings)
    experiment = coco_files_experiment(config, write_files(tmp_path / "files"))
    with pytest.raises(ValueError, match=f"buckets contradict each other: .*{message}"):
        experiment.train()


def test_one_bucket_needs_no_groups(tmp_path):
    config = dataclasses.replace(
        CONFIG, input=dataclasses.replace(CONFIG.input, buckets=((96, 96),))
    )
    experiment = coco_files_experiment(config, write_files(tmp_path / "files"))
    assert experiment.groups is None


def test_files_with_other_classes_than_the_run_are_refused(tmp_path):
    files = write_files(tmp_path / "files", names=("thing", "novelty"), category=9)
    experiment = coco_files_experiment(CONFIG, files)
    with pytest.raises(
        ValueError, match=r"objects.json has categories that are no classes of the run: 'novelty'"
    ):
        experiment.train()


def test_categories_without_objects_may_differ_from_the_classes(tmp_path, capsys):
    files = write_files(tmp_path / "files", names=("thing", "novelty"))
    source = coco_files_experiment(CONFIG, files).train()
    assert source.class_names == ("background", *CLASSES)
    assert "nothing is annotated with: novelty" in capsys.readouterr().out


def test_annotations_that_are_left_out_are_said(tmp_path, capsys):
    files = write_files(tmp_path / "files")
    content = json.loads(files.train_annotations.read_text())
    content["annotations"][0]["bbox"] = [4, 5, 0, 10]
    files.train_annotations.write_text(json.dumps(content))
    coco_files_experiment(CONFIG, files).train()
    count = len(content["annotations"])
    expected = f"objects.json: 1 of {count} annotations left out: no width or height"
    assert expected in capsys.readouterr().out


def test_the_orientation_of_files_reaches_every_split_and_prediction(tmp_path):
    files = dataclasses.replace(write_files(tmp_path / "files"), orientation="stored")
    experiment = coco_files_experiment(CONFIG, files)
    assert experiment.orientation == "stored"
    assert experiment.train().orientation == "stored"
    assert experiment.evaluation["val"]().orientation == "stored"
    CocoFiles(orientation="stored")  # without paths, for prediction alone


def test_images_of_too_many_objects_are_said_in_training_and_evaluation(tmp_path, capsys):
    files = write_files(tmp_path / "files")
    content = json.loads(files.train_annotations.read_text())
    template = content["annotations"][0]
    content["annotations"] += [template | {"id": number} for number in range(100, 204)]
    files.train_annotations.write_text(json.dumps(content))
    experiment = coco_files_experiment(CONFIG, files)
    experiment.train()
    said = capsys.readouterr().out
    assert "1 of 6 images hold more than 3 objects, at most 105: training keeps the larg" in said
    experiment.evaluation["val"]()
    said = capsys.readouterr().out
    assert "1 of 6 images hold more than 100 objects, at most 105: prediction finds no" in said


def test_images_without_objects_are_kept_if_asked_for(tmp_path, capsys):
    files = write_files(tmp_path / "files")
    content = json.loads(files.train_annotations.read_text())
    content["annotations"] = content["annotations"][:4]
    files.train_annotations.write_text(json.dumps(content))
    assert len(coco_files_experiment(CONFIG, files).train()) == 4
    said = capsys.readouterr().out
    assert "2 of 2 images without objects are left out (input.empty_share 0)" in said
    splits = coco_files_splits(files, CLASSES, empty_share=1.0)
    experiment = mask_rcnn_experiment(CONFIG, splits)
    source = experiment.train()
    assert len(source) == 6
    found = []
    for example in source:
        for transform in experiment.transforms:
            example = transform(example, np.random.default_rng(0))
        found.append(int(example["classes"].sum()))
    assert found == [1, 1, 1, 1, 0, 0]


def test_a_share_of_images_without_objects_is_from_0_to_1():
    with pytest.raises(
        ValueError, match=r"input.empty_share: expected a share from 0 to 1, got 20"
    ):
        InputConfig(empty_share=20)


def test_paths_of_files_go_together():
    with pytest.raises(ValueError, match=r"train_images, val_annotations, val_images is missing"):
        CocoFiles(train_annotations=Path("a.json"))


def test_the_classes_of_ones_own_files_are_recorded_with_the_run(tmp_path):
    module, files = coco_files_module(), write_files(tmp_path / "files")
    config = module.Config(workdir=tmp_path, files=files)
    assert config.classes == CLASSES
    assert (config.category_ids, config.other_categories) == ((7, 9), "refuse")
    files.train_annotations.unlink()
    assert dataclasses.replace(config).classes == CLASSES
    assert module.build(config).task.classes == ("background", *CLASSES)
    without = module.Config(workdir=tmp_path)
    with pytest.raises(ValueError, match=r"--files\.train-annotations"):
        module.build(without)


def coco_files_module():
    return load_module(
        Path(__file__).resolve().parents[2] / "experiments" / "mask_rcnn" / "coco_files.py"
    )


def with_objects_of_both(files):
    content = json.loads(files.train_annotations.read_text())
    for place, each in enumerate(content["annotations"]):
        each["category_id"] = (7, 9)[place % 2]
    files.train_annotations.write_text(json.dumps(content))


def test_classes_that_are_given_select_objects_and_the_run_records_it(tmp_path, capsys):
    module, files = coco_files_module(), write_files(tmp_path / "files")
    with_objects_of_both(files)
    given = module.Config(workdir=tmp_path, files=files, classes=("other",))
    assert given.category_ids == (9,)
    val = tmp_path / "val.json"
    moved = dataclasses.replace(files, val_annotations=files.train_annotations.rename(val))
    recorded = from_dict(module.Config, to_dict(given) | {"files": to_dict(moved)})
    assert recorded == dataclasses.replace(given, files=moved)
    source = module.build(recorded).evaluation["val"]()  # the training file is gone
    assert [example["classes"].tolist() for example in source] == [[], [1]] * 3
    said = capsys.readouterr().out
    assert "3 of 6 annotations left out: of categories that are no classes (thing 3)" in said
    val.rename(files.train_annotations)
    assert len(module.build(given).train()) == 3
    assert "annotations left out: of categories" in capsys.readouterr().out


def test_all_classes_in_another_order_are_no_selection(tmp_path):
    module, files = coco_files_module(), write_files(tmp_path / "files")
    config = module.Config(workdir=tmp_path, files=files, classes=CLASSES[::-1])
    assert (config.category_ids, config.other_categories) == ((9, 7), "refuse")


def test_categories_of_the_validation_file_alone_are_left_out_only_if_asked(tmp_path):
    module, files = coco_files_module(), write_files(tmp_path / "files")
    content = json.loads(files.train_annotations.read_text())
    content["categories"].append({"id": 30, "name": "novelty"})
    content["annotations"][0]["category_id"] = 30
    val = tmp_path / "files" / "val.json"
    val.write_text(json.dumps(content))
    files = dataclasses.replace(files, val_annotations=val)
    options = {"workdir": tmp_path, "files": files}
    with pytest.raises(ValueError, match=r"no classes of the run: 'novelty' \(1 annotations\)"):
        module.build(module.Config(**options)).evaluation["val"]()
    asked = module.Config(**options, other_categories="leave_out")
    assert asked.classes == CLASSES
    assert module.build(asked).evaluation["val"]()[0]["classes"].tolist() == []


def test_a_class_that_the_training_file_does_not_have_is_refused_with_the_nearest(tmp_path):
    module, files = coco_files_module(), write_files(tmp_path / "files")
    with pytest.raises(
        ValueError, match=r"classes: .*objects.json has no category 'thin'; did you mean 'thing'\?"
    ):
        module.Config(workdir=tmp_path, files=files, classes=("other", "thin"))


def test_frozen_stages_are_the_stem_the_first_stage_and_all_norms_of_the_backbone():
    model = CONFIG.network.model(2)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    factors = learning_rate_multipliers(params, FROZEN)
    assert set(jax.tree.leaves(factors["backbone"]["stem"])) == {0.0}
    assert set(jax.tree.leaves(factors["backbone"]["stage1_block1"])) == {0.0}
    second = factors["backbone"]["stage2_block1"]
    assert second["conv1"]["convolution"]["kernel"] == 1.0
    assert set(jax.tree.leaves(second["conv1"]["norm"])) == {0.0}
    heads = {name: part for name, part in factors.items() if name != "backbone"}
    assert set(jax.tree.leaves(heads)) == {1.0}


def test_views_are_every_size_with_and_without_its_mirror_image():
    sides = MaskRCNNPredictionConfig(short_sides=(400, 500), flip=True)
    assert [(v.resize.short_sides, v.flip) for v in sides.views] == [
        ((400,), False),
        ((400,), True),
        ((500,), False),
        ((500,), True),
    ]
    scales = MaskRCNNPredictionConfig(scales=(1.0, 2.0))
    assert [view.resize for view in scales.views] == [Enlarge(1.0), Enlarge(2.0)]
    grey = {"image": np.zeros((5, 7, 1), np.uint8)}
    assert scales.views[1].resize(grey, None)["image"].shape == (10, 14, 1)


def test_a_last_stage_for_c4_is_put_into_its_head(tmp_path):
    network = dataclasses.replace(
        CONFIG.network, neck="c4", backbone="resnet50", width_multiplier=0.0625
    )
    config = dataclasses.replace(CONFIG, network=network)
    experiment = coco_files_experiment(config, write_files(tmp_path / "files"))
    assert experiment.initialize.keywords["moved"] == {"backbone/stage4_": "box_head/"}
    assert experiment.task.model.backbone.num_stages == 3


def test_bfloat16_computes_in_bfloat16_with_float32_outputs():
    network = dataclasses.replace(CONFIG.network, bfloat16=True)
    model = network.model(2)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}

    def levels(model, image):
        maps = model.pyramid(image)
        return maps, model.rpn_outputs(maps, image_size=(64, 64))[:2]

    maps, outputs = jax.eval_shape(lambda v, x: model.apply(v, x, method=levels), variables, image)
    assert {str(leaf.dtype) for leaf in maps} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(outputs)} == {"float32"}
    found = jax.eval_shape(model.apply, variables, image)
    assert {str(found[name].dtype) for name in ("boxes", "scores", "masks")} == {"float32"}


def test_the_range_of_pixels_reaches_the_check_of_every_example():
    network = dataclasses.replace(CONFIG.network, pixel_range=(0.0, 65535.0))
    task = instance_task(dataclasses.replace(CONFIG, network=network), ("background", *CLASSES))
    assert check_for(task).pixel_range == (0, 65535)


def test_a_task_is_named_after_its_classes_and_coco_gets_its_own_ids():
    task = instance_task(CONFIG, ("background", *CLASSES), category_ids=(7, 9))
    assert isinstance(task.model, MaskRCNN)
    assert task.model.num_classes == 2
    evaluator = task.evaluator()
    assert evaluator.ground_truth()["categories"] == [
        {"id": 7, "name": "thing"},
        {"id": 9, "name": "other"},
    ]


def test_coco_without_objects_is_left_out_of_training_alone(tmp_path):
    write_coco(tmp_path)
    paths = (tmp_path / "annotations" / "instances_train2017.json", tmp_path / "train2017")
    names = CocoInstances(*paths).class_names[1:]
    experiment = coco_files_experiment(CONFIG, CocoFiles(*paths, *paths), names)
    assert (len(experiment.train()), len(experiment.evaluation["val"]())) == (1, 3)
