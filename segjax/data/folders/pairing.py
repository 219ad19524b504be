"""Pairs images with masks by their names: equal names, or names with a suffix such as `_mask`."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from segjax.data.image_arrays import ARRAY_SUFFIXES, count_images
from segjax.data.images import natural
from segjax.messages.lists import few

SUFFIX_SETTING = "--mask-suffix"


@dataclass(frozen=True, order=True)
class Pair:
    """An image and its mask.

    Attributes:
      id: the image's path below its folder, without the file's suffix; a page of a TIFF adds
        "#" and its number from 1.
      image: the file of the image.
      mask: the file of the mask.
      page: the page of both files, from 0.
      classes: the file of the mask of classes, if `mask` numbers objects of several classes.
    """

    id: str
    image: Path
    mask: Path
    page: int = 0
    classes: Path | None = None


@dataclass(frozen=True)
class Pairing:
    """The files of two folders, paired.

    Attributes:
      pairs: the pairs, in natural order of the ids.
      rule: how the names of masks follow from those of images, as a sentence.
      unmatched_images: images without a mask.
      unmatched_masks: masks without an image.
      others: files of a shared folder that belong to an image and are not its mask.
    """

    pairs: tuple[Pair, ...]
    rule: str
    unmatched_images: tuple[Path, ...] = ()
    unmatched_masks: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()

    def describe_unmatched(self, *, skipped: bool = False) -> list[str]:
        """One sentence for the images without a mask, and one for the masks without an image.

        Args:
          skipped: whether they are left out, or are problems.
        """
        consequence = "left out" if skipped else "--unmatched skip leaves them out"
        return [
            f"{len(files)} {kind}{'s' * (len(files) > 1)} without {other} of a fitting name: "
            f"{few([str(path) for path in files])} ({self.rule}; {consequence})"
            for files, kind, other in (
                (self.unmatched_images, "image", "a mask"),
                (self.unmatched_masks, "mask", "an image"),
            )
            if files
        ]


def pair_folders(images: Path, masks: Path, *, suffix: str | None = None) -> Pairing:
    """Pairs the images of a folder with the masks of another or of the same folder.

    Sub-folders are searched; hidden files are not read. The rule is the first of these that pairs
    the most files: a mask has the name of its image; it has the name with something before or
    behind it; both names have a fixed beginning and end of their own, as in DRIVE
    (21_training.tif, 21_manual1.gif). Masks may have another file type, and may lie in other
    sub-folders if no two files share a name. The pages of a TIFF are pairs of their own.

    Args:
      images: the folder of the images.
      masks: the folder of the masks.
      suffix: what the names of masks have behind the name of the image; None finds the rule. If
        both folders are one, files with the suffix are the masks.

    Raises:
      FileNotFoundError: a folder is missing.
      ValueError: a folder has no images, no name fits, or several masks fit an image.
    """
    images, masks = Path(images).expanduser(), Path(masks).expanduser()
    for folder in (images, masks):
        if not folder.is_dir():
            found = "it is a file" if folder.exists() else "there is none"
            raise FileNotFoundError(f"{folder}: expected a folder, but {found}")
    image_files, mask_files, others = _files_in(images), _files_in(masks), []
    if images.resolve() == masks.resolve():
        if suffix is None:
            raise ValueError(
                f"{images} holds images and masks: give {SUFFIX_SETTING}, what the names of masks "
                f"have behind the name of the image{_seen_suffixes(image_files)}"
            )
        derived = _derived(image_files)
        mask_files = [path for path in image_files if path.stem.endswith(suffix)]
        others = sorted(derived - {*mask_files})
        image_files = [path for path in image_files if path not in {*mask_files, *derived}]
    for files, folder, kind in ((image_files, images, "images"), (mask_files, masks, "masks")):
        if not files:
            ending = f" whose names end in {suffix!r}" if suffix and kind == "masks" else ""
            raise ValueError(
                f"{folder}: no {kind}{ending} in this folder or below it; expected files of "
                f"{' '.join(ARRAY_SUFFIXES)}"
            )
    rule = _best_rule(image_files, mask_files, images, masks, suffix)
    image_keys, mask_keys = (
        _by_key(files, key, folder, rule.flat)
        for files, key, folder in (
            (image_files, rule.of_image, images),
            (mask_files, rule.of_mask, masks),
        )
    )
    if not image_keys.keys() & mask_keys.keys():
        raise ValueError(
            f"no mask fits an image by its name: images are named like {image_files[0].name}, "
            f"masks like {mask_files[0].name}. {SUFFIX_SETTING} says what masks have behind the "
            "name of the image"
        )
    pairs, lonely_images, lonely_masks = [], [], []
    for key, paths in image_keys.items():
        found = mask_keys.get(key, ())
        if len(paths) > 1 and found:
            raise ValueError(f"{found[0]} fits several images: {few([str(x) for x in paths])}")
        if len(found) > 1:
            raise ValueError(f"{paths[0]} has several masks: {few([str(x) for x in found])}")
        if found:
            pairs += _pages(paths[0], found[0], images)
        else:
            lonely_images += paths
    for key, paths in mask_keys.items():
        lonely_masks += [] if key in image_keys else paths
    pairs.sort(key=lambda pair: natural(pair.id))
    repeated = [name for name, count in Counter(pair.id for pair in pairs).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{images}: images of the same name but of other types: {few(repeated)}; expected one"
        )
    return Pairing(
        tuple(pairs), rule.text, tuple(lonely_images), tuple(lonely_masks), tuple(others)
    )


@dataclass(frozen=True)
class _Rule:
    """How names without their file types are compared.

    Attributes:
      of_image, of_mask: turn a name into what both have in common; None if the name is not of
        this form.
      text: the rule as a sentence.
      adds: whether masks have something before or behind the name of the image.
      flat: whether sub-folders do not count.
    """

    of_image: Callable[[str], str | None]
    of_mask: Callable[[str], str | None]
    text: str
    adds: bool = False
    flat: bool = False


def _files_in(folder: Path) -> list[Path]:
    """Finds all images and arrays below a folder, in natural order, without hidden ones."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place) / name
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in ARRAY_SUFFIXES
        ]
    return sorted(found, key=lambda path: natural(str(path.relative_to(folder))))


def _best_rule(image_files, mask_files, images, masks, suffix) -> _Rule:
    """Returns the first rule that pairs the most files."""
    image_stems, mask_stems = ([path.stem for path in files] for files in (image_files, mask_files))
    if suffix is not None:
        rules = [_decorated("", suffix)]
    else:
        same = _Rule(str, str, "a mask has the name of its image")
        rules = [same, *_added(image_stems, mask_stems)]
        if len(image_stems) > 1 and len(mask_stems) > 1:
            rules.append(_both_decorated(image_stems, mask_stems))
    rules += [replace(x, text=f"{x.text}, in any sub-folder", flat=True) for x in rules]
    counts = []
    for rule in rules:
        image_keys = _by_key(image_files, rule.of_image, images, rule.flat)
        mask_keys = _by_key(mask_files, rule.of_mask, masks, rule.flat)
        shared = image_keys.keys() & mask_keys.keys()
        clashes = rule.flat and any(
            len(x) > 1 for key in shared for x in (image_keys[key], mask_keys[key])
        )
        counts.append(0 if clashes else len(shared))
    best = max(counts)
    first, *others = [rule for rule, count in zip(rules, counts, strict=True) if count == best]
    alike = [rule.text for rule in (first, *others) if rule.adds and rule.flat == first.flat]
    if best and first.adds and len(alike) > 1:
        raise ValueError(
            f"{masks}: several masks fit an image: {few(alike, most=4)}; choose by {SUFFIX_SETTING}"
        )
    return first


def _decorated(before: str, behind: str) -> _Rule:
    """Returns the rule that masks have the image's name with something before or behind it."""

    def strip(name: str) -> str | None:
        if not (name.startswith(before) and name.endswith(behind)):
            return None
        return name[len(before) : len(name) - len(behind)] or None

    return _Rule(str, strip, f"masks are named {before}IMAGE{behind}", adds=True)


def _added(image_stems: Sequence[str], mask_stems: Sequence[str]) -> list[_Rule]:
    """Finds what masks may have before or behind the names of images, from a few images."""
    seen = Counter()
    for stem in image_stems[:: max(1, len(image_stems) // 20)]:
        for mask in mask_stems:
            if mask != stem and mask.startswith(stem):
                seen["", mask[len(stem) :]] += 1
            elif mask != stem and mask.endswith(stem):
                seen[mask[: -len(stem)], ""] += 1
    # A digit behind the name is another image's: img1 is not the image of img10.
    fitting = [
        (before, behind)
        for (before, behind), _ in seen.most_common(8)
        if not (before[-1:].isdigit() or behind[:1].isdigit())
    ]
    return [_decorated(*each) for each in fitting]


def _both_decorated(image_stems: Sequence[str], mask_stems: Sequence[str]) -> _Rule:
    """Returns the rule that both names have a fixed beginning and end of their own."""
    strips, texts = [], []
    for stems, kind in ((image_stems, "images"), (mask_stems, "masks")):
        before, behind = _common(stems), _common([stem[::-1] for stem in stems])[::-1]
        strips.append(_decorated(before, behind).of_mask)
        texts.append(f"{kind} are named {before}…{behind}")
    return _Rule(strips[0], strips[1], " and ".join(texts))


def _common(stems: Sequence[str]) -> str:
    """Returns the common beginning of names, cut back so that no number or word is split."""
    shortest, longest = min(stems), max(stems)  # as text, so that all others lie between them
    length = next(
        (i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b),
        len(shortest),
    )
    while length and any(_splits(stem, length) for stem in stems):
        length -= 1
    return shortest[:length] if all(len(stem) > length for stem in stems) else ""


def _splits(name: str, place: int) -> bool:
    """Whether a number or a word goes on at this place."""
    pair = name[place - 1 : place + 1]
    return len(pair) == 2 and (pair.isdigit() or pair.isalpha())


def _by_key(files, key, folder: Path, flat: bool) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in files:
        name = key(path.stem)
        if name is not None:
            parent = "" if flat else str(path.parent.relative_to(folder))
            found[os.path.join(parent, name)].append(path)
    return found


def _derived(files: Sequence[Path]) -> set[Path]:
    """Finds the files whose name is another file's with something behind it, such as "_mask"."""
    known = {path.with_suffix("") for path in files}
    return {
        path
        for path in files
        for match in re.finditer(r"[^0-9A-Za-z]", path.stem)
        if path.with_name(path.stem[: match.start()] or ".") in known
    }


def _seen_suffixes(files: Sequence[Path]) -> str:
    stems = [path.stem for path in files]
    rules = _added(stems, stems)
    suffixes = [rule.text.partition("IMAGE")[2] for rule in rules]
    return f" (seen: {few([x for x in suffixes if x], most=4)})" if any(suffixes) else ""


def _pages(image: Path, mask: Path, folder: Path) -> list[Pair]:
    """Returns the pairs of two files: one for each page.

    Raises:
      ValueError: the files differ in the number of pages.
    """
    name = str(image.relative_to(folder).with_suffix(""))
    counts = [count_pages(path) for path in (image, mask)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{image} has {counts[0]} pages and its mask {mask} {counts[1]}; expected as many"
        )
    if counts[0] == 1:
        return [Pair(name, image, mask)]
    return [Pair(f"{name}#{page + 1}", image, mask, page) for page in range(counts[0])]


def count_pages(path: Path) -> int:
    """Counts the images in a TIFF; any other file has one, and so has one that cannot be read.

    Pages that are channels of one image do not count; see `segjax.data.tiff`.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 1
    try:
        with path.open("rb") as file, Image.open(file) as image:
            if getattr(image, "n_frames", 1) == 1:
                return 1
        return count_images(path)
    # Reading the file later says what is wrong. Pillow raises many kinds of errors.
    except Exception:
        return 1
