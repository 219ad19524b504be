"""`segjax predict`: writes label maps or detections, and overlays, for the user's images."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tqdm import tqdm

from segjax.commands.coco_results import describe_categories, match_images
from segjax.commands.errors import UserError, user_errors
from segjax.commands.models import (
    BatchSize,
    Checkpoint,
    check_batch_size,
    load_trained_run,
    load_weights,
)
from segjax.data.augmentation.photometric import check_pixel_range
from segjax.data.orientation import Orientation, note_turned
from segjax.messages.lists import list_problems

if TYPE_CHECKING:
    from segjax.pretrained import Pretrained
    from segjax.trained import TrainedRun


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
    orientation: Annotated[
        Orientation | None,
        tyro.conf.arg(metavar="upright|stored", help_behavior_hint="(default: the run's)"),
    ] = None,
    pixel_range: Annotated[
        tuple[float, float] | None,
        tyro.conf.arg(metavar="LOW HIGH", help_behavior_hint="(default: the run's)"),
    ] = None,
    batch_size: BatchSize = None,
    overwrite: bool = False,
) -> None:
    """Segment images with a trained model.

    Writes labels/ (PNG files whose pixel values are class numbers), instances/ (pixel values are
    object numbers, where the experiment separates objects) and overlays/ (pictures to look at). A
    detector writes detections.json (COCO's result format), images.json (the images and categories
    whose ids it uses) and overlays/.

    Args:
      model: Run directory: the --workdir of a training, which may still be in progress. With the
        option --weights: the name of the model, such as torchvision/deeplabv3_resnet50.
      images: PNG, JPEG, TIFF (every page), BMP or GIF files of 8 or 16 bits, or folders of them.
      output: Folder to write to.
      weights: Weights of the model NAME: .pth, .safetensors, .npz or .pkl. Nothing is downloaded.
      annotations: JSON file in COCO's format that lists the images by name. Detections get its
        image ids and, by the names of the classes, its category ids.
      orientation: How images with an EXIF orientation are read: upright, as viewers show them, or
        as they are stored. Results belong to the image as it was read.
      pixel_range: Values that become 0 and 255 in images of 16 bits, for a model of 8 bits. 0 65535
        takes all 16 bits.
      overwrite: Replace existing predictions.
    """
    check_batch_size(batch_size)
    if weights is not None and checkpoint != "best":
        raise UserError("--checkpoint is for a run, --weights for a model trained elsewhere")
    with user_errors():
        check_pixel_range(pixel_range)
    paths, notes = _find_all(images)
    if weights is not None:
        trained = load_weights(model, weights)
        description = f"{model} from {weights}"
        orientation, seen = orientation or "upright", {}
    else:
        trained = run = _load_run(model, checkpoint)
        description = run.description
        batch_size = batch_size or run.config.train.eval_batch_size
        orientation = orientation or run.experiment.orientation
        seen = run.pixels
    if pixel_range is not None:
        trained = _with_pixel_range(trained, pixel_range)
    files = _read_all(paths, orientation)
    notes += note_turned(paths, orientation=orientation, setting="--orientation")
    _refuse_to_replace(files, output, overwrite=overwrite)
    _refuse_other_bits(files, trained)
    notes += _note_other_types(files, seen)
    listing, image_ids = None, None
    if annotations is not None:
        from segjax.coco.index import read_image_list

        with user_errors():
            listing = read_image_list(annotations)
        sized = [(file.path, len(file.names), min(file.sizes)) for file in files]
        found = match_images(sized, listing, orientation=orientation)
        image_ids = dict(zip([file.path for file in files], found, strict=True))

    from segjax.coco.ids import result_ids
    from segjax.commands.prediction_files import DetectionFiles, LabelFiles
    from segjax.data.images import match_channels, read_images
    from segjax.trained import predict_all

    task = trained.segmenter
    if listing is not None and not hasattr(task, "category_ids"):
        raise UserError("--annotations is for models that detect objects; this one labels pixels")
    print("\n".join([f"predicting with {description}", *notes]))
    others = sum(file.channels != {task.channels} for file in files)
    if others:
        kinds = {1: "grey", 3: "RGB"}
        print(f"converted to {kinds[task.channels]} for the model: {others} of {len(files)} files")
    with user_errors():
        (output / "overlays").mkdir(parents=True, exist_ok=True)

    def examples():
        for file in files:
            for page, image in enumerate(read_images(file.path, orientation=orientation)):
                matched = match_channels(image, task.channels)
                example = {"id": file.names[page], "image": matched, "original": image}
                example["path"] = file.path
                if image_ids is not None:
                    example["image_id"] = image_ids[file.path]
                yield example | ({"page": page} if len(file.names) > 1 else {})

    predictions = predict_all(trained, examples(), batch_size=batch_size or 1)
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
                    described = describe_categories(ids, own=own, listed=annotations)
                    written = DetectionFiles(
                        output,
                        task.classes,
                        category_ids=ids.ids,
                        most=task.model.detections.max_detections,
                        notes=[*(listing.notes if listing is not None else ()), described],
                    )
                else:
                    background = getattr(task, "background_class", None)
                    written = LabelFiles(output, task.classes, background=background)
        written.write(example, prediction)
    if written is not None:
        print("\n".join(written.finish()))


def _load_run(model: str, checkpoint: str) -> "TrainedRun":
    try:
        return load_trained_run(Path(model), checkpoint)
    except UserError as error:
        if Path(model).exists():
            raise
        raise UserError(f"{error} (a model trained elsewhere needs --weights FILE)") from error


@dataclass(frozen=True)
class ImageFile:
    """A file to segment.

    Attributes:
      path: the file.
      names: the name of each page's outputs, without suffix.
      channels: the numbers of channels of the pages, 1 and 3.
      dtypes: the pixel types of the pages, "uint8" and "uint16".
      sizes: the sizes (height, width) of the pages.
    """

    path: Path
    names: tuple[str, ...]
    channels: set[int]
    dtypes: set[str]
    sizes: set[tuple[int, int]]


def _find_all(images: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Finds the image files, and counts the other files of the given folders in notes."""
    if not images:
        raise UserError(
            "no images given; expected files or folders after the run directory or name"
        )
    with user_errors():
        from segjax.data.images import find_images, note_other_files

        return find_images(images), [note for path in images for note in note_other_files(path)]


def _read_all(paths: Sequence[Path], orientation: Orientation) -> list[ImageFile]:
    """Reads every image once, to find damaged files before anything is written."""
    from segjax.data.images import read_images

    kinds, problems = [], []
    for path in tqdm(paths, desc="reading", unit="file", leave=False, disable=None):
        try:
            pages = read_images(path, orientation=orientation)
            kinds.append([(x.shape[2], x.dtype.name, x.shape[:2]) for x in pages])
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(list_problems("the images", problems))
    names = output_names(paths, [len(pages) for pages in kinds])
    return [
        ImageFile(path, page_names, *map(set, zip(*pages, strict=True)))
        for path, page_names, pages in zip(paths, names, kinds, strict=True)
    ]


def _with_pixel_range(trained: "Pretrained", pixel_range: tuple[float, float]) -> "Pretrained":
    """Returns the model with another range of 16-bit values.

    Raises:
      UserError: the model takes 16 bits as they are, or its task has no such setting.
    """
    task = trained.segmenter
    if "uint16" in trained.dtypes:
        raise UserError("--pixel-range is for models of 8 bits; this one takes 16 bits as they are")
    if not hasattr(task, "pixel_range"):
        raise UserError(f"--pixel-range: {type(task).__name__} has no pixel_range")
    return dataclasses.replace(trained, task=dataclasses.replace(task, pixel_range=pixel_range))


def _refuse_other_bits(files: Sequence[ImageFile], trained: "Pretrained") -> None:
    """Raises UserError for 16-bit images if the model reads 8-bit photographs only.

    The model's normalisation takes 255 for white, so that 16-bit pixels would all be glare.
    """
    if getattr(trained.task, "pixel_range", None) is not None:
        return
    for file in files:
        if file.dtypes - {*trained.dtypes}:
            raise UserError(
                f"{file.path} has 16 bits; the model is for photographs of 8 bits. --pixel-range "
                "LOW HIGH maps other values to them, such as --pixel-range 0 65535"
            )


def _note_other_types(files: Sequence[ImageFile], seen: Mapping[str, list]) -> list[str]:
    """Notes images of another type than those of the training, which the model takes as well."""
    types = {*seen["types"]} if seen else set()
    others = [file for file in files if types and file.dtypes - types]
    if not others:
        return []
    trained = f"{' and '.join(seen['types'])} with values {seen['range'][0]} to {seen['range'][1]}"
    kind = " and ".join(sorted(others[0].dtypes))
    return [
        f"the model was trained on images of {trained}; {len(others)} of {len(files)} are {kind}, "
        f"such as {others[0].path}"
    ]


def output_names(paths: Sequence[Path], page_counts: Sequence[int]) -> list[tuple[str, ...]]:
    """Names the outputs of each page of each file; no two names are equal, ignoring case.

    A name is the file's without suffix. Where names clash, the suffix is added, and if they still
    clash, as many parent folders as it takes. Pages are numbered from 0.
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
    raise UserError(f"the names of {len(paths)} images clash; predict them in separate calls")


def _refuse_to_replace(files: Sequence[ImageFile], output: Path, *, overwrite: bool) -> None:
    """Raises UserError if an output would replace an existing file."""
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
            f"{existing[0]} exists already"
            + (f", and {len(existing) - 1} more" if len(existing) > 1 else "")
            + "; choose another --output, or replace with --overwrite"
        )
