"""`segjax evaluate --images DIR --masks DIR` and `--labels DIR --masks DIR`."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from segjax.cli import main
from segjax.commands.evaluate_folders import MaskFlags, open_folders
from segjax.data.folders.division import DivisionConfig
from segjax.data.sources.instance import ObjectSource
from segjax.recipes.folders import FolderData
from tests.experiments.test_folders import command, folders, train  # noqa: F401


def scores(path):
    return json.loads(path.read_text())["metrics"]


def test_the_scores_of_a_folder_are_those_of_the_split_with_the_same_files(
    folders,  # noqa: F811
    tmp_path,
    capsys,
):
    val = tmp_path / "val"
    for kind in ("images", "classes"):
        (val / kind).mkdir(parents=True)
        for path in sorted((folders / kind).iterdir())[:3]:
            shutil.copy(path, val / kind)
    run = tmp_path / "run"
    flags = ["--val-images", str(val / "images"), "--val-masks", str(val / "classes")]
    train("unet", [*command("unet", folders, run), *flags])
    own = ["--images", str(val / "images"), "--masks", str(val / "classes")]
    main(["evaluate", str(run), *own, "--checkpoint", "last", "--output", str(tmp_path / "out")])
    found = scores(tmp_path / "out" / "evaluation" / "images_images.json")
    assert found == scores(run / "evaluation" / "val.json")
    assert f"{found['mean_iou']:.4f}" in capsys.readouterr().out
    assert list((tmp_path / "out" / "predictions").glob("*.png"))

    # Two devices that share the rows of each image score and predict the same.
    rows = ["--parallel.rows", "2"]
    main(
        ["evaluate", str(run), *own, "--checkpoint", "last", "--output", str(tmp_path / "2"), *rows]
    )
    shared = scores(tmp_path / "2" / "evaluation" / "images_images.json")
    for name in ("mean_iou", "negative_log_likelihood"):
        assert shared[name] == pytest.approx(found[name], rel=1e-5)
    labels = []
    for name, flags in (("whole", []), ("shared", rows)):
        output = tmp_path / name
        main(["predict", str(run), str(val / "images"), "--output", str(output), *flags])
        labels.append([np.array(Image.open(x)) for x in sorted((output / "labels").iterdir())])
    np.testing.assert_array_equal(labels[1], labels[0])
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(val / "images"), "--output", "x", "--parallel.rows", "3"])
    assert "parallel.rows=3" in capsys.readouterr().err

    # A model of two classes cannot be scored on masks of numbered objects as classes.
    masks = ["--images", str(folders / "images"), "--masks", str(folders / "objects")]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(run), *masks])
    assert stop.value.code == 2
    assert "n0.png: value" in capsys.readouterr().err


def write(folder, arrays):
    folder.mkdir()
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"a{number}.png")
    return folder


def test_label_maps_are_scored_against_masks(tmp_path, capsys):
    truth = np.zeros((2, 4, 8), np.uint8)
    truth[:, :, 4:] = 255
    predicted = (truth > 0).astype(np.uint8)
    predicted[0, :, 4:6] = 0  # half of the foreground of the first image
    labels, masks = write(tmp_path / "labels", predicted), write(tmp_path / "masks", truth)
    arguments = ["evaluate", "--labels", str(labels), "--masks", str(masks)]
    main([*arguments, "--output", str(tmp_path / "out")])
    found = scores(tmp_path / "out" / "evaluation" / "labels.json")
    foreground, background = 24 / 32, 32 / 40
    assert found["mean_iou"] == pytest.approx((foreground + background) / 2)
    assert found["mean_dice_per_image"] == pytest.approx((2 / 3 + 1) / 2)
    assert f"{found['mean_iou']:.4f}" in capsys.readouterr().out

    Image.fromarray(np.full((4, 8), 2, np.uint8)).save(labels / "a0.png")
    with pytest.raises(SystemExit):
        main(arguments)
    assert "a0.png: value 2; expected class numbers from 0 to 1" in capsys.readouterr().err


def test_maps_of_numbered_objects_are_scored_against_masks_of_objects(tmp_path):
    truth = np.zeros((1, 6, 12), np.uint16)
    truth[0, :2, :4], truth[0, 4:, 4:8] = 300, 7
    predicted = np.zeros((1, 6, 12), np.uint16)
    predicted[0, :2, :4], predicted[0, 4:, 6:8] = 1, 2  # all of one, half of the other
    labels, masks = write(tmp_path / "labels", predicted), write(tmp_path / "masks", truth)
    out = ["--output", str(tmp_path / "out")]
    main(["evaluate", "--labels", str(labels), "--masks", str(masks), *out])
    found = scores(tmp_path / "out" / "evaluation" / "labels.json")
    # SEG counts an object only if more than half of it is found.
    assert found["seg"] == pytest.approx(0.5)

    # The same objects as regions of two classes, which maps of numbers do not tell apart.
    classes = write(tmp_path / "classes", np.where(truth == 7, 2, truth > 0).astype(np.uint8))
    regions = ["--masks", str(classes), "--holds", "components"]
    main(["evaluate", "--labels", str(labels), *regions, *out])
    assert scores(tmp_path / "out" / "evaluation" / "labels.json") == found


def test_a_detector_is_scored_on_objects_of_its_classes(tmp_path):
    """Of numbered objects and a second folder, and of regions, as the masks of its training."""
    kinds = np.zeros((1, 16, 20), np.uint8)
    kinds[0, 2:8, 2:8], kinds[0, 2:8, 8:14] = 1, 2
    folder = write(tmp_path / "kinds", kinds)
    numbers = write(tmp_path / "numbers", kinds * 70)
    images = write(tmp_path / "images", kinds)
    options = {"classes": ("background", "round", "square"), "channels": 3, "instances": True}
    regions = MaskFlags(folder, holds="components")
    for flags in (MaskFlags(numbers, class_masks=folder), regions):
        source = open_folders(images, flags, **options)
        assert ObjectSource(source)[0]["classes"].tolist() == [1, 2]
    own = {"images": images, "division": DivisionConfig(val_share=0.0)}
    recorded = FolderData(masks=folder, holds="components", **own).resolved()
    source = open_folders(images, MaskFlags(folder), recorded=recorded, **options)
    assert ObjectSource(source)[0]["classes"].tolist() == [1, 2]
    recorded = FolderData(masks=numbers, class_masks=folder, **own).resolved()
    with pytest.raises(ValueError, match="give that of these masks by --class-masks DIR"):
        open_folders(images, MaskFlags(numbers), recorded=recorded, **options)
    with pytest.raises(ValueError, match="with --holds components each connected region"):
        open_folders(images, MaskFlags(folder, values=("0", "1", "2")), **options)
    with pytest.raises(ValueError, match=r"3 classes .*, but the masks hold 2: the background"):
        open_folders(images, MaskFlags(numbers), **options)


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ([], "none of them"),
        (["run", "--images", "a"], "RUN, --images"),
        (["--labels", "a"], "--labels"),
        (["run", "--labels", "a", "--masks", "b"], "RUN, --masks, --labels"),
        (["run", "--images", "a", "--masks", "b", "--split", "val"], "RUN, .*--split"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, got, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *arguments])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: evaluate takes RUN (with or without --split")
    assert re.search(f"but got {got}$", message)
