"""`segjax predict`: label maps or detections, and overlays, of the user's own images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from segjax.commands.coco_results import describe_categories, match_images
from segjax.commands.errors import UserError, user_errors
from segjax.commands.trained import BatchSize, Checkpoint, load_pretrained, load_trained

FILES_NAMED = 5  # in an error about many


def predict_command(
    model: Annotated[str, tyro.conf.arg(metavar="RUN|NAME", help_behavior_hint="")],
    images: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IMAGE ...", help_behavior_hint="")],
    /,
    *,
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    weights: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(with a NAME)")
    ] = None,
    annotations: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(detectors)")
    ] = None,
    checkpoint: Checkpoint = "best",
    batch_size: BatchSize = None,
    overwrite: bool = False,
) -> None:
    """Segment images with a trained model.

    Writes labels/ (PNG files whose values are class numbers), instances/ (whose values are object
    numbers, where the experiment tells objects apart) and overlays/ (to look at). A model that
    detects objects writes detections.json (COCO's result format), images.json (the images and
    categories whose ids it has) and overlays/.

    Args:
      model: Run directory: the --workdir of a training, which may be going on still. Or with
        --weights the name of a model trained elsewhere, such as torchvision/deeplabv3_resnet50.
      images: PNG, JPEG, TIFF (each page), BMP or GIF files of 8 or 16 bits, or folders of them.
      output: Folder to write to.
      weights: Weights of the model NAME: .pth, .safetensors, .npz or .pkl. Nothing is downloaded.
      annotations: JSON file in COCO's format that lists the images by name. Detections get its
        image ids and, by the names of the classes, its category ids.
      overwrite: Replace predictions that are there already.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: expected at least 1")
    if weights is not None and checkpoint != "best":
        raise UserError("--checkpoint is for a run and --weights for a model trained elsewhere")
    files = _read_all(images)
    _refuse_to_replace(files, output, overwrite=overwrite)
    listing, image_ids = None, None
    if annotations is not None:
        from segjax.coco.index import read_image_list

        with user_errors():
            listing = read_image_list(annotations)
        sized = [(file.path, len(file.names), min(file.sizes)) for file in files]
        image_ids = dict(
            zip([file.path for file in files], match_images(sized, listing), strict=True)
        )
    if weights is None:
        trained = load_trained(Path(model), checkpoint)
    else:
        _refuse_16_bit(files)
        trained = load_pretrained(model, weights)

    from segjax.coco.ids import result_ids
    from segjax.commands.prediction_files import DetectionFiles, LabelFiles
    from segjax.data.images import match_channels, read_images

    task = trained.task
    if listing is not None and not hasattr(task, "category_ids"):
        raise UserError("--annotations is for models that detect objects; this one labels pixels")
    print(f"predicting with {trained.description}")
    others = sum(file.channels != {task.channels} for file in files)
    if others:
        kinds = {1: "grey", 3: "RGB"}
        print(f"converted to {kinds[task.channels]} for it: {others} of {len(files)} files")
    with user_errors():
        (output / "overlays").mkdir(parents=True, exist_ok=True)

    def examples():
        for file in files:
            for page, image in enumerate(read_images(file.path)):
                matched = match_channels(image, task.channels)
                example = {"id": file.names[page], "image": matched, "original": image}
                example["path"] = file.path
                if image_ids is not None:
                    example["image_id"] = image_ids[file.path]
                yield example | ({"page": page} if len(file.names) > 1 else {})

    evaluator = trained.evaluator(batch_size=batch_size, workdir=None)
    predictions = evaluator.predictions(trained.parallel.local(trained.variables), examples())
    count = sum(len(file.names) for file in files)
    bar = tqdm(predictions, total=count, desc="predicting", unit="image", disable=None)
    written = None
    for example, prediction in bar:
        if written is None:
            with user_errors():
                if "boxes" in prediction:
                    own = getattr(task, "category_ids", None)
                    listed = None if listing is None else listing.categories
                    ids = result_ids(task.classes[1:], own=own, listed=listed)
                    notes = [*(listing.notes if listing is not None else ())]
                    notes.append(describe_categories(ids, own=own, listed=annotations))
                    written = DetectionFiles(
                        output,
                        task.classes,
                        category_ids=ids.ids,
                        most=task.model.detections.max_detections,
                        notes=notes,
                    )
                else:
                    written = LabelFiles(output, task.classes, background=task.background)
        written.write(example, prediction)
    print("\n".join(written.finish()))


@dataclass(frozen=True)
class ImageFile:
    """A file to segment.

    Attributes:
      path: the file.
      names: names of the outputs of its pages, without suffix.
      channels: the numbers of channels that its pages have.
      bits: of their pixels, 8 and 16.
      sizes: the sizes (height, width) of the pages.
    """

    path: Path
    names: tuple[str, ...]
    channels: set[int]
    bits: set[int]
    sizes: set[tuple[int, int]]


def _read_all(images: Sequence[Path]) -> list[ImageFile]:
    """Reads every image once, so that a damaged one is found before anything is written."""
    if not images:
        raise UserError(
            "no images given; expected files or folders after the run directory or name"
        )
    with user_errors():
        from segjax.data.images import find_images, read_images

        paths = find_images(images)
    kinds, problems = [], []
    for path in tqdm(paths, desc="reading", unit="file", leave=False, disable=None):
        try:
            pages = ((x.shape[2], 8 * x.itemsize, x.shape[:2]) for x in read_images(path))
            kinds.append([*pages])
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        more = len(problems) - FILES_NAMED
        shown = problems[:FILES_NAMED] + [f"... and {more} more"] * (more > 0)
        raise UserError("\n  ".join([f"{len(problems)} files cannot be read:", *shown]))
    names = output_names(paths, [len(pages) for pages in kinds])
    return [
        ImageFile(path, page_names, *map(set, zip(*pages, strict=True)))
        for path, page_names, pages in zip(paths, names, kinds, strict=True)
    ]


def _refuse_16_bit(files: Sequence[ImageFile]) -> None:
    """Raises UserError for pixels beyond 255, which a network for photographs takes for glare."""
    for file in files:
        if 16 in file.bits:
            raise UserError(
                f"{file.path} has 16 bits; weights trained elsewhere are for photographs of 8 bits"
            )


def output_names(paths: Sequence[Path], page_counts: Sequence[int]) -> list[tuple[str, ...]]:
    """Names the outputs of each page of each file, all different, upper and lower case alike.

    They are the files' names without suffix; where these clash, with the suffix, and where they
    still do, with as many of the folders above as it takes. Pages are numbered from 0.
    """
    paths = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        for with_suffix in (False, True):
            names = []
            for path, count in zip(paths, page_counts, strict=True):
                stem = path.stem + path.suffix.replace(".", "_") * with_suffix
                stem = "_".join([*path.parts[:-1][-depth + 1 or len(path.parts) :], stem])
                digits = len(str(count - 1))
                pages = [f"{stem}_page{page:0{digits}d}" for page in range(count)]
                names.append((stem,) if count == 1 else tuple(pages))
            flat = [name.casefold() for pages in names for name in pages]
            if len(set(flat)) == len(flat):
                return names
    raise UserError(f"the names of {len(paths)} images clash; predict them in several calls")


def _refuse_to_replace(files: Sequence[ImageFile], output: Path, *, overwrite: bool) -> None:
    """Raises UserError if an output would replace a file that the user has."""
    planned = [
        output / folder / f"{name}.png"
        for folder in ("labels", "instances", "overlays")
        for file in files
        for name in file.names
    ]
    planned += [output / "detections.json", output / "images.json"]
    inputs = {file.path.resolve() for file in files}
    if any(path.resolve() in inputs for path in planned):
        raise UserError(f"--output {output}: the predictions would replace the images themselves")
    existing = [path for path in planned if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} is there already"
            + (f", and {len(existing) - 1} more" if len(existing) > 1 else "")
            + "; take another --output, or --overwrite to replace them"
        )
