"""Pictures of objects: their colours, where labels go, and which input is refused."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from segjax.coco import run_lengths as rle
from segjax.pictures import instances as visualize_instances
from segjax.pictures.colors import instance_colors
from segjax.pictures.instances import draw_detections, instance_panel
from segjax.pictures.overlays import to_rgb

NAMES = ("background", "cat", "dining table")
IMAGE = np.full((600, 800, 3), 100, np.uint8)


@pytest.fixture
def plates(monkeypatch):
    """The labels that are written, as (text, (left, top, right, bottom))."""
    written = []
    write = visualize_instances._write

    def keep(picture, text, place, *others):
        written.append((text, place))
        write(picture, text, place, *others)

    monkeypatch.setattr(visualize_instances, "_write", keep)
    return written


def disc(x, y, radius, size=IMAGE.shape[:2]):
    rows, columns = np.indices(size)
    return np.hypot(rows + 0.5 - y, columns + 0.5 - x) < radius


def test_masks_are_tinted_outlined_and_boxed_in_their_colour():
    mask = disc(400, 300, 80)
    colors = np.array([[200, 40, 0]], np.uint8)
    options = {"boxes": np.array([[320, 220, 480, 380]]), "classes": [1], "class_names": NAMES}
    for given in (mask, rle.encode(mask)):
        picture = draw_detections(IMAGE, masks=[given], colors=colors, alpha=0.5, **options)
        assert picture.shape == IMAGE.shape
        assert picture[300, 400].tolist() == [150, 70, 50]  # halfway from grey to the colour
        border = picture[250, mask[250].argmax()]
        assert border.tolist() == [213, 93, 63]  # the lightened outline
        assert (picture[[220, 379], 400] == colors).all()  # the box, drawn on its last pixels
        assert (picture[300, [320, 479]] == colors).all()
        assert (picture[100] == 100).all()
    boxes_alone = draw_detections(IMAGE, colors=colors, **options)
    assert (boxes_alone[300, 330:470] == 100).all()
    assert (IMAGE == 100).all()


def test_small_objects_are_drawn_over_large_ones():
    masks = [disc(400, 300, 30), disc(400, 300, 200)]
    boxes = np.array([[370, 270, 430, 330], [200, 100, 600, 500]])
    colors = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    options = {"classes": [1, 1], "class_names": NAMES, "colors": colors, "alpha": 1.0}
    picture = draw_detections(IMAGE, boxes=boxes, masks=masks, **options)
    assert picture[310, 400].tolist() == [255, 0, 0]
    assert picture[450, 400].tolist() == [0, 0, 255]


def test_labels_lie_within_the_picture_and_apart_from_each_other(plates):
    rng = np.random.default_rng(0)
    corner = rng.integers(-20, 560, (25, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 300, (25, 2))], axis=1)
    scores = rng.random(25)
    draw_detections(
        IMAGE, boxes=boxes, classes=1 + np.arange(25) % 2, class_names=NAMES, scores=scores
    )
    assert len(plates) > 15
    taken = np.zeros(IMAGE.shape[:2], int)
    for _, (left, top, right, bottom) in plates:
        assert 0 <= left < right <= IMAGE.shape[1]
        assert 0 <= top < bottom <= IMAGE.shape[0]
        taken[top:bottom, left:right] += 1
    assert taken.max() == 1
    best = scores.argmax()
    assert plates[0][0] == f"{NAMES[1 + best % 2]} {scores[best]:.2f}"


def test_labels_without_room_lose_the_name_and_then_all(plates):
    left = 300 + 12 * np.arange(20)
    boxes = np.stack([left, 0 * left + 300, left + 40, 0 * left + 315], axis=1)
    scores = np.linspace(0.9, 0.1, 20)
    draw_detections(IMAGE, boxes=boxes, classes=[2] * 20, class_names=NAMES, scores=scores)
    texts = [text for text, _ in plates]
    assert texts[0] == "dining table 0.90"
    full = [f"dining table {score:.2f}" for score in scores]
    short = [f"{score:.2f}" for score in scores]
    assert set(texts) & set(full)
    assert set(texts) & set(short)
    assert set(texts) <= {*full, *short}
    assert len(texts) < 20


def test_among_many_objects_labels_leave_most_of_them_visible(plates):
    corner = np.stack(np.meshgrid(np.arange(8) * 90 + 20, np.arange(5) * 100 + 20), -1)
    corner = corner.reshape(-1, 2)
    boxes = np.concatenate([corner, corner + 20], axis=1)
    boxes[0, 2:] += 60
    options = {"class_names": NAMES, "scores": np.ones(40), "classes": [1] * 40}
    draw_detections(IMAGE, boxes=boxes, **options)
    assert [text for text, _ in plates] == ["cat 1.00"]
    plates.clear()
    few = {name: options[name][:10] for name in ("scores", "classes")}
    draw_detections(IMAGE, boxes=boxes[:10], class_names=NAMES, **few)
    assert len(plates) == 10


@pytest.mark.parametrize("side", [64, 256, 700, 3000])
def test_labels_can_be_read_at_any_size_of_the_image(side, plates):
    image = np.zeros((side, side, 1), np.uint8)
    box = np.array([[0.3, 0.3, 0.6, 0.6]]) * side
    picture = draw_detections(image, boxes=box, classes=[1], class_names=NAMES, scores=[0.5])
    ((_, (_, top, _, bottom)),) = plates
    assert max(picture.shape) >= 512
    assert bottom - top >= 10
    assert 0.01 < (bottom - top) / picture.shape[0] < 0.05


def test_small_images_are_enlarged_with_their_boxes_and_masks():
    mask = np.zeros((64, 96), bool)
    mask[10:20, 30:50] = True
    image = np.zeros((64, 96), np.uint8)
    box, colors = np.array([[30, 10, 50, 20]]), np.array([[255, 255, 255]], np.uint8)
    picture = draw_detections(
        image, boxes=box, classes=[1], class_names=NAMES, masks=[mask], colors=colors, alpha=1.0
    )
    assert picture.shape == (384, 576, 3)
    inside = picture[64:116, 182:298]  # below the label
    assert (inside > 200).all()
    assert (picture[125:] == 0).all()


def test_nothing_found_is_the_image_alone():
    nothing = {"boxes": np.zeros((0, 4)), "classes": [], "class_names": NAMES}
    np.testing.assert_array_equal(draw_detections(IMAGE, scores=[], masks=[], **nothing), IMAGE)


@pytest.mark.parametrize(("bands", "dtype"), [(2, np.uint16), (5, np.float32), (4, np.int32)])
def test_objects_are_drawn_on_images_of_any_bands_and_types(bands, dtype):
    image = np.random.default_rng(0).integers(0, 4000, (*IMAGE.shape[:2], bands)).astype(dtype)
    objects = {"boxes": np.array([[30, 10, 90, 80]]), "classes": [1], "class_names": NAMES}
    expected = draw_detections(to_rgb(image), **objects)
    np.testing.assert_array_equal(draw_detections(image, **objects), expected)
    example, prediction = make_example()
    panels = [
        instance_panel(example | {"image": shown}, prediction, class_names=NAMES)
        for shown in (image, to_rgb(image))
    ]
    np.testing.assert_array_equal(*panels)


def test_bad_input_is_refused_by_name():
    box = np.array([[0, 0, 9, 9]])
    with pytest.raises(ValueError, match=r"expected classes in 0\.\.2, found 3 to 3"):
        draw_detections(IMAGE, boxes=box, classes=[3], class_names=NAMES)
    with pytest.raises(ValueError, match="found 1 boxes, 2 classes, no masks"):
        draw_detections(IMAGE, boxes=box, classes=[1, 1], class_names=NAMES)
    mask = np.ones((5, 5), bool)
    with pytest.raises(ValueError, match=r"masks of the image's size \(600, 800\), got \(5, 5\)"):
        draw_detections(IMAGE, boxes=box, classes=[1], class_names=NAMES, masks=[mask])


def make_example():
    discs = [disc(200, 300, 80), disc(600, 300, 60), disc(400, 100, 50)]
    boxes = [cv2.boundingRect(mask.astype(np.uint8)) for mask in discs]
    windows = [
        SimpleNamespace(top=y, left=x, pixels=mask[y : y + h, x : x + w])
        for mask, (x, y, w, h) in zip(discs, boxes, strict=True)
    ]
    boxes = np.array(boxes, np.float32)
    boxes[:, 2:] += boxes[:, :2]
    example = {"image": IMAGE, "boxes": boxes, "classes": np.array([1, 2, 1]), "masks": windows}
    prediction = {
        "boxes": boxes[[1, 0]],
        "classes": np.array([2, 1]),
        "scores": np.array([0.9, 0.6]),
        "masks": [rle.encode(disc(605, 300, 60)), rle.encode(disc(200, 305, 80))],
    }
    return example | {"crowd": np.array([False, False, True])}, prediction


def test_a_panel_shows_a_prediction_in_the_colour_of_the_object_that_it_covers(plates):
    example, prediction = make_example()
    panel = instance_panel(example, prediction, class_names=NAMES, title="x", scores={"AP": 0.5})
    assert panel.shape[1] == 3 * 512 + 4 * 8
    found = ["dining table 0.90", "cat 0.60"]
    assert [text for text, _ in plates] == ["cat", "dining table", "cat (crowd)", *found]
    top = panel.shape[0] - 8 - 384
    tiles = [panel[top : top + 384, 8 + i * 520 :][:, :512] for i in range(3)]
    assert (tiles[0] == 100).all()
    for x, number in ((200, 1), (600, 2)):
        where = (192, round(0.64 * x))
        expected = np.round(0.6 * 100 + 0.4 * instance_colors(np.array([number]))[0])
        np.testing.assert_array_equal(tiles[1][where], expected)
        np.testing.assert_array_equal(tiles[2][where], expected)
    assert np.ptp(tiles[1][64, 256]) == 0  # the crowd is grey
    assert (tiles[2][64, 256] == 100).all()


def test_a_panel_leaves_out_detections_of_low_score(plates):
    example, prediction = make_example()
    options = {"class_names": NAMES, "minimum_score": 0.7}
    panel = instance_panel(example, prediction, **options)
    assert [text for text, _ in plates][3:] == ["dining table 0.90"]
    nothing = instance_panel(
        example, prediction | {"scores": np.zeros(2)}, class_names=NAMES, title="a   b"
    )
    assert nothing.shape[1] == panel.shape[1]
    assert nothing.shape[0] > panel.shape[0]  # the title
