"""Writes tiny data sets in the official layouts, and returns the examples to read from them.

Each function fills a folder and returns the examples of each split that a faithful builder reads
from it. The pictures are noise; the masks are blobs.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from scipy import ndimage

SIZE = (20, 24)


def write_isbi2012(folder: Path) -> dict[str, list[dict]]:
    """Three multi-page TIFFs of 30 slices."""
    rng = np.random.default_rng(0)
    train, test = (_grey(rng, 30) for _ in range(2))
    cells = np.stack([_blobs(rng) for _ in range(30)])
    _write_stack(folder / "train-volume.tif", train)
    _write_stack(folder / "train-labels.tif", np.uint8(cells * 255))
    _write_stack(folder / "test-volume.tif", test)
    return {
        "train": [
            {
                "id": f"train_{i:02d}",
                "image": train[i][..., None],
                "labels": np.uint8(cells[i]),
                "instances": np.int32(ndimage.label(cells[i])[0]),
            }
            for i in range(30)
        ],
        "test": [
            {
                "id": f"test_{i:02d}",
                "image": test[i][..., None],
                "labels": np.full(SIZE, 255, np.uint8),
                "instances": np.zeros(SIZE, np.int32),
            }
            for i in range(30)
        ],
    }


def write_cell_tracking(
    folder: Path, *, dtype: type = np.uint8, digits: int = 3
) -> dict[str, list[dict]]:
    """Two sequences of four frames; gold truth of frames 1 and 3; frame 3 is partly annotated.

    Silver truth has two cells in each frame, gold truth both in frame 1 and the first in frame 3.
    """
    rng = np.random.default_rng(1)
    expected = {}
    first, second = np.s_[2:9, 3:10], np.s_[10:18, 12:22]
    for sequence in ("01", "02"):
        gold_examples, silver_examples = [], []
        for frame in range(4):
            number = f"{frame:0{digits}d}"
            image = _grey(rng, dtype=dtype)
            silver = np.zeros(SIZE, np.uint16)
            silver[first], silver[second] = 7, 300 + frame
            _write(folder / sequence / f"t{number}.tif", image)
            _write(folder / f"{sequence}_ST" / "SEG" / f"man_seg{number}.tif", silver)
            example = {"id": f"{sequence}_t{number}", "image": image[..., None]}
            silver_examples.append(_with_instances(example, silver))
            if frame not in (1, 3):
                continue
            gold = np.zeros(SIZE, np.uint16)
            gold[first] = 5
            if frame == 1:
                gold[second] = 2
            _write(folder / f"{sequence}_GT" / "SEG" / f"man_seg{number}.tif", gold)
            gold_examples.append(_with_instances(example, gold))
            if frame == 3:
                gold_examples[-1]["labels"][second] = 255
        expected[f"gold_{sequence}"] = gold_examples
        expected[f"silver_{sequence}"] = silver_examples
    return expected


def write_drive(
    folder: Path, *, test_folder: str = "test", test_truth: bool = True
) -> dict[str, list[dict]]:
    """Two halves of 20 photographs; the second observer has DRIVE's own odd palette."""
    rng = np.random.default_rng(2)
    expected = {"train": [], "test": []}
    halves = (
        ("train", "training", "training", range(21, 41)),
        ("test", test_folder, "test", range(1, 21)),
    )
    for split, half, suffix, numbers in halves:
        for number in numbers:
            name = f"{number:02d}_{suffix}"
            image, field = _colour(rng), _blobs(rng)
            observers = [_blobs(rng), _blobs(rng)]
            _write(folder / half / "images" / f"{name}.tif", image)
            _write(folder / half / "mask" / f"{name}_mask.gif", np.uint8(field * 255))
            unlabelled = np.full(SIZE, 255, np.uint8)
            example = {
                "id": name,
                "image": image,
                "field_of_view": field,
                "labels": unlabelled,
                "second_observer": unlabelled,
            }
            if split == "train" or test_truth:
                path = folder / half / "1st_manual" / f"{number:02d}_manual1.gif"
                _write(path, np.uint8(observers[0] * 255))
                example["labels"] = np.uint8(observers[0])
            if split == "test" and test_truth:
                path = folder / half / "2nd_manual" / f"{number:02d}_manual2.gif"
                _write_palette(path, np.uint8(observers[1]), (4, 2, 4, 252, 254, 252))
                example["second_observer"] = np.uint8(observers[1])
            expected[split].append(example)
    return expected


def write_chasedb1(folder: Path) -> dict[str, list[dict]]:
    """28 JPEG photographs with the bi-level PNG drawings of two observers."""
    rng = np.random.default_rng(3)
    examples = []
    for child in range(1, 15):
        for eye in "LR":
            name = f"Image_{child:02d}{eye}"
            observers = [_blobs(rng), _blobs(rng)]
            _write(folder / f"{name}.jpg", _colour(rng))
            for drawing, suffix in zip(observers, ("1stHO", "2ndHO"), strict=True):
                Image.fromarray(drawing).save(folder / f"{name}_{suffix}.png")
            examples.append(
                {
                    "id": name,
                    "image": np.asarray(Image.open(folder / f"{name}.jpg")),
                    "labels": np.uint8(observers[0]),
                    "second_observer": np.uint8(observers[1]),
                }
            )
    return {"train": examples[:20], "test": examples[20:]}


def write_camvid(folder: Path, *, suffix: str = ".png") -> dict[str, list[dict]]:
    """Four frames in each split, with all classes and void; grey label maps."""
    rng = np.random.default_rng(4)
    return {
        split: [
            _with_labels(
                folder / split / f"{split}_{number:02d}{suffix}",
                folder / f"{split}annot" / f"{split}_{number:02d}.png",
                rng,
                stored=rng.integers(0, 12, SIZE, np.uint8),
                ids=[*range(11), 255],
            )
            for number in range(4)
        ]
        for split in ("train", "val", "test")
    }


def write_voc2012(folder: Path, *, sbd: str | None = "mat") -> dict[str, list[dict]]:
    """Three training and two validation images, with SBD's labels as "mat" or "png" or without.

    SBD labels all of them except one of train, and three more images. Its labels of VOC's images
    are wrong on purpose: none of them may be read.
    """
    rng = np.random.default_rng(5)
    voc = folder / "VOCdevkit" / "VOC2012"
    names = {"train": ["2007_03", "2007_01", "2008_02"], "val": ["2007_02", "2009_01"]}
    examples = {
        name: _with_labels(
            voc / "JPEGImages" / f"{name}.jpg",
            voc / "SegmentationClass" / f"{name}.png",
            rng,
            stored=rng.choice([*range(21), 255], SIZE).astype(np.uint8),
            ids=range(256),
            palette=True,
        )
        for name in names["train"] + names["val"]
    }
    names["trainval"] = sorted(names["train"] + names["val"])
    for split, listed in names.items():
        _write_lines(voc / "ImageSets" / "Segmentation" / f"{split}.txt", listed)
    if sbd is not None:
        added = ["2008_01", "2010_05", "2010_04"]
        for name in added:
            image = voc / "JPEGImages" / f"{name}.jpg"
            _write(image, _colour(rng))
            labels = rng.integers(0, 21, SIZE, np.uint8)
            examples[name] = {"id": name, "image": _decoded(image), "labels": labels}
        dataset = folder / "benchmark_RELEASE" / "dataset"
        drawn = [name for name in (*examples, "2007_02") if name != "2008_02"]
        for name in drawn:
            labels = examples[name]["labels"] if name in added else np.zeros(SIZE, np.uint8)
            if sbd == "png":
                _write(voc / "SegmentationClassAug" / f"{name}.png", labels)
            else:
                _write_sbd(dataset / "cls" / f"{name}.mat", labels)
        if sbd == "mat":
            _write_lines(dataset / "train.txt", drawn[::2])
            _write_lines(dataset / "val.txt", drawn[1::2])
        names["train_aug"] = sorted(names["train"] + added)
    return {split: [examples[name] for name in listed] for split, listed in names.items()}


def write_cityscapes(folder: Path) -> dict[str, list[dict]]:
    """Two cities in each split, with frames out of order; label maps of official ids."""
    rng = np.random.default_rng(6)
    train_ids = [255] * 34
    evaluated = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
    for train_id, official_id in enumerate(evaluated):
        train_ids[official_id] = train_id
    expected = {}
    for split, cities in (("train", "zb"), ("val", "ca"), ("test", "d")):
        expected[split] = []
        for city in sorted(cities):
            for number in range(2):
                name = f"{city}_00000{number}_000019"
                stored = rng.integers(0, 34, SIZE, np.uint8)
                example = _with_labels(
                    folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png",
                    folder / "gtFine" / split / city / f"{name}_gtFine_labelIds.png",
                    rng,
                    stored=stored * (split != "test"),
                    ids=train_ids,
                )
                expected[split].append({**example, "id": name})
    return expected


def write_ade20k(folder: Path) -> dict[str, list[dict]]:
    """Three images in each split; one of them is a grey JPEG."""
    rng = np.random.default_rng(7)
    expected = {}
    for split, short in (("training", "train"), ("validation", "val")):
        expected[split] = [
            _with_labels(
                folder / "images" / split / f"ADE_{short}_0000000{number}.jpg",
                folder / "annotations" / split / f"ADE_{short}_0000000{number}.png",
                rng,
                stored=rng.integers(0, 151, SIZE, np.uint8),
                ids=[255, *range(150)],
                grey=number == 2,
            )
            for number in (1, 2, 3)
        ]
    return expected


def write_coco_voc(folder: Path) -> dict[str, list[dict]]:
    """Images of rectangles: a dog over a person, a crowd of cars, and classes that VOC lacks."""
    rng = np.random.default_rng(8)
    size = (60, 80)
    categories = _coco_categories()
    expected = {}
    for split in ("train", "val"):
        content = {"images": [], "annotations": [], "categories": categories}
        expected[split] = []
        for number in (30, 7, 200):
            name = f"{number:012d}"
            image = folder / f"{split}2017" / f"{name}.jpg"
            _write(image, rng.integers(0, 256, (*size, 3), np.uint8))
            content["images"].append(
                {"id": number, "file_name": image.name, "height": size[0], "width": size[1]}
            )
            labels = np.zeros(size, np.uint8)
            drawn = []
            if number != 200:  # image 200 shows only a giraffe
                crowd = np.zeros(size, np.uint8)
                crowd[2:6, 60:70] = 1
                drawn += [
                    (1, [_rectangle(10, 10, 50, 40)], 0, 30 * 40),
                    (18, [_rectangle(30, 20, 50, 30), _rectangle(60, 50, 70, 58)], 0, 280),
                    (3, {"size": list(size), "counts": _run_lengths(crowd)}, 1, 40),
                ]
                labels[10:40, 10:50] = 15
                labels[20:30, 30:50] = 255
                labels[50:58, 60:70] = 12
                labels[2:6, 60:70] = 7
            drawn.append((25, [_rectangle(0, 0, 80, 60)], 0, 4800))
            for category, segmentation, crowd, area in drawn:
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]),
                        "image_id": number,
                        "category_id": category,
                        "segmentation": segmentation,
                        "iscrowd": crowd,
                        "area": area,
                    }
                )
            if split == "val" or number != 200:
                expected[split].append({"id": name, "image": _decoded(image), "labels": labels})
        expected[split].sort(key=lambda example: example["id"])
        path = folder / "annotations" / f"instances_{split}2017.json"
        _write_lines(path, [json.dumps(content)])
    return expected


def _coco_categories() -> list[dict]:
    names = {
        1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train",
        9: "boat", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow",
        25: "giraffe", 44: "bottle", 62: "chair", 63: "couch", 64: "potted plant",
        67: "dining table", 72: "tv",
    }  # fmt: skip
    return [{"id": category, "name": name} for category, name in names.items()]


def _rectangle(left: int, top: int, right: int, bottom: int) -> list[int]:
    """The polygon that COCO's own code fills as the pixels of the half-open rectangle."""
    return [left, top, right, top, right, bottom, left, bottom]


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: down the columns, alternating, starting with 0."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return np.diff([0, *changes, flat.size]).tolist()


def _with_labels(
    image: Path, labels: Path, rng, *, stored: np.ndarray, ids, palette=False, grey=False
) -> dict:
    """Writes an image of noise and the stored values of its labels, grey or with a palette.

    Returns:
      The example, with the class id of each stored value.
    """
    _write(image, _grey(rng) if grey else _colour(rng))
    if palette:
        _write_palette(labels, stored, rng.integers(0, 256, 768).tolist())
    else:
        _write(labels, stored)
    example = {"id": image.stem, "image": _decoded(image)}
    return {**example, "labels": np.array(ids, np.uint8)[stored]}


def _decoded(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def _write_sbd(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    truth = {"Boundaries": np.zeros(2), "Segmentation": labels, "CategoriesPresent": np.arange(3)}
    scipy.io.savemat(path, {"GTcls": truth}, do_compression=True)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _grey(rng, *count: int, dtype: type = np.uint8) -> np.ndarray:
    return rng.integers(0, np.iinfo(dtype).max, (*count, *SIZE), dtype, endpoint=True)


def _colour(rng) -> np.ndarray:
    return rng.integers(0, 256, (*SIZE, 3), np.uint8)


def _blobs(rng) -> np.ndarray:
    return ndimage.gaussian_filter(rng.standard_normal(SIZE), 1.5) > 0


def _with_instances(example: dict, ids: np.ndarray) -> dict:
    return {**example, "labels": np.uint8(ids > 0), "instances": ids.astype(np.int32)}


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _write_stack(path: Path, slices: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = map(Image.fromarray, slices)
    first.save(path, save_all=True, append_images=others, compression="tiff_adobe_deflate")


def _write_palette(path: Path, indices: np.ndarray, palette: Sequence[int]) -> None:
    image = Image.fromarray(indices, mode="P")
    image.putpalette(palette)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
