"""Names of the files that `segjax predict` writes."""

import pytest

from segjax.commands.errors import UserError
from segjax.commands.prediction_inputs import ImageFile
from segjax.commands.prediction_names import class_file_names, planned_files, probability_names


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["background", "cell wall", "a/b: c"], ["background", "cell_wall", "a_b_c"]),
        (["Zellkern-1", "Straße"], ["Zellkern-1", "Straße"]),
        (["cat", "Cat"], ["0_cat", "1_Cat"]),
        (["a b", "a_b", "..", "d"], ["0_a_b", "1_a_b", "2", "3_d"]),
    ],
)
def test_names_of_classes_are_safe_and_differ(classes, names):
    assert class_file_names(classes) == names


def test_probability_maps_are_named_after_image_and_class():
    assert probability_names("a", ["x", "y"], "npy") == ["a.npy"]
    assert probability_names("a", ["x", "y"], "png") == ["a_x.png", "a_y.png"]


def test_two_images_never_share_a_map(tmp_path):
    files = [
        ImageFile(tmp_path / f"{name}.png", (name,), {1}, {"uint8"}, {(4, 4)}, ())
        for name in ("a", "a_x")
    ]
    for kind in ("png", "npy", None):
        planned = planned_files(files, tmp_path, classes=["x", "y"], probabilities=kind)
        assert len({*planned}) == len(planned)
    with pytest.raises(UserError, match=r"the probability map a_x_y\.png"):
        planned_files(files, tmp_path, classes=["y", "x_y"], probabilities="png")
