"""The division into splits: shares, strata, groups, folds and lists."""

import re

import pytest

from segjax.data.folders.division import DivisionConfig, NothingLeft, divide

IDS = [f"slide{slide}/tile{tile}" for slide in range(30) for tile in range(4)]
SLIDES = "^[^/]*"
# Class 1 occurs on three slides only, class 0 everywhere.
CLASSES = [{0, 1} if slide % 10 == 0 else {0} for slide in range(30) for _ in range(4)]


def sizes(division):
    return {name: len(places) for name, places in division.items()}


def test_the_shares_hold_for_each_stratum():
    division = divide(IDS, CLASSES, DivisionConfig(val_share=0.25, test_share=0.25))
    assert sizes(division) == {"train": 60, "val": 30, "test": 30}
    for places in division.values():
        rare = sum(1 in CLASSES[place] for place in places)
        assert rare == pytest.approx(12 * len(places) / 120, abs=1)
    assert sorted(place for places in division.values() for place in places) == [*range(120)]


def test_the_order_of_the_files_does_not_matter_and_the_seed_does():
    config = DivisionConfig()
    division = divide(IDS, CLASSES, config)
    backwards = divide(IDS[::-1], CLASSES[::-1], config)
    names = {IDS[place] for place in division["val"]}
    assert names == {IDS[::-1][place] for place in backwards["val"]}
    other = divide(IDS, CLASSES, DivisionConfig(split_seed=1))
    assert names != {IDS[place] for place in other["val"]}


def test_a_group_is_never_divided():
    division = divide(IDS, CLASSES, DivisionConfig(group=SLIDES, test_share=0.2))
    slides = {name: {IDS[x].split("/")[0] for x in places} for name, places in division.items()}
    assert sizes(division) == {"train": 72, "val": 24, "test": 24}
    assert sum(map(len, slides.values())) == 30


def test_each_example_is_held_out_in_one_fold():
    held_out = []
    for fold in range(5):
        division = divide(IDS, CLASSES, DivisionConfig(folds=5, fold=fold))
        held_out += division["val"]
        assert sum(1 in CLASSES[place] for place in division["val"]) in (2, 3)
    assert sorted(held_out) == [*range(120)]


def test_lists_choose_and_the_rest_is_divided_by_shares(tmp_path):
    (tmp_path / "val.txt").write_text("slide0/tile0.png\nslide1/tile1\n\n")
    config = DivisionConfig(val_list=tmp_path / "val.txt", test_share=0.5)
    division = divide(IDS, CLASSES, config)
    assert [IDS[place] for place in division["val"]] == ["slide0/tile0", "slide1/tile1"]
    assert sizes(division) == {"train": 59, "val": 2, "test": 59}


@pytest.mark.parametrize(
    ("text", "group", "message"),
    [
        ("slide0/tile9", "", "no image is named 'slide0/tile9'; did you mean"),
        ("tile0", "", "it could be slide0/tile0, slide1/tile0"),
        ("", "", "the list is empty"),
        ("slide0/tile0", SLIDES, "it has slide0/tile0, but not slide0/tile1 of the same group"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path, text, group, message):
    path = tmp_path / "val.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        divide(IDS, CLASSES, DivisionConfig(val_list=path, group=group))


def test_an_image_in_both_lists_and_a_missing_list_are_refused(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("slide0/tile0")
    with pytest.raises(ValueError, match="is in the list of test images as well"):
        divide(IDS, CLASSES, DivisionConfig(val_list=path, test_list=path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        divide(IDS, CLASSES, DivisionConfig(val_list=tmp_path / "nowhere"))


def test_too_few_images_and_a_pattern_that_does_not_match_are_refused():
    with pytest.raises(NothingLeft, match="2 images in 2 groups are too few: val would be empty"):
        divide(IDS[:2], CLASSES[:2], DivisionConfig())
    with pytest.raises(NothingLeft, match="120 images in 1 groups"):
        divide(IDS, CLASSES, DivisionConfig(group="slide"))
    with pytest.raises(ValueError, match="does not match the name 'slide0/tile0'"):
        divide(IDS, CLASSES, DivisionConfig(group="^x"))


def test_splits_with_folders_of_their_own_get_no_share():
    division = divide(IDS, CLASSES, DivisionConfig(), held_out={"val"})
    assert sizes(division) == {"train": 120, "val": 0, "test": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_share": 1.0}, "val_share=1.0; expected a share from 0 to below 1"),
        ({"val_share": 0.5, "test_share": 0.5}, "leave nothing to train"),
        ({"folds": 5}, "folds and fold go together"),
        ({"folds": 1, "fold": 0}, "expected at least 2"),
        ({"folds": 5, "fold": 5}, "expected 0 to 4"),
        ({"group": "("}, "no regular expression"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DivisionConfig(**settings)
