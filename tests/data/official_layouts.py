"""Writes tiny data sets in the official layouts, and returns what should be read from them.

Each function fills a folder and returns, for each split, the examples that a faithful builder makes
of it. The pictures are noise; the masks are blobs.
"""

from pathlib import Path

import numpy as np
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
    """Two sequences of four frames; gold truth of frames 1 and 3, of which 3 is partly annotated.

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
    """The two halves of 20 photographs, the second observer with DRIVE's own odd palette."""
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
                _write_palette(path, observers[1])
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


def _write_palette(path: Path, mask: np.ndarray) -> None:
    image = Image.fromarray(np.uint8(mask), mode="P")
    image.putpalette((4, 2, 4, 252, 254, 252))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
