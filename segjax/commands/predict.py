"""`segjax predict`: writes label maps or detections, and overlays, for the user's images."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tqdm import tqdm

from segjax.commands.coco_results import describe_categories, match_images
from segjax.commands.errors import UserError, user_errors
from segjax.commands.models import (
    BatchSize,
    Checkpoint,
    Download,
    Rows,
    check_batch_size,
    check_rows,
    find_weights,
    load_trained_run,
    load_weights,
)
from segjax.commands.prediction_inputs import (
    find_all,
    note_other_types,
    note_tags_left_out,
    read_all,
    refuse_other_bits,
)
from segjax.commands.prediction_names import ProbabilityFormat, planned_files, refuse_to_replace
from segjax.commands.prediction_parts import is_large, note_large, refuse_in_parts, write_large
from segjax.commands.prediction_record import make_record, refuse_other_record, write_record
from segjax.commands.settings import Settings, read_settings, with_settings
from segjax.data.augmentation.photometric import check_pixel_range
from segjax.data.orientation import Orientation, note_turned

if TYPE_CHECKING:
    from segjax.pretrained import Pretrained
    from segjax.pretrained.published import Published
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
    download: Download = False,
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
    rows: Rows = 1,
    settings: Settings = (),
    probabilities: Annotated[
        ProbabilityFormat | None,
        tyro.conf.arg(metavar="npy|png", help_behavior_hint="(default: none)"),
    ] = None,
    whole_pixels: Annotated[int, tyro.conf.arg(metavar="N")] = 100_000_000,
    overwrite: bool = False,
) -> None:
    """Segment images with a trained model.

    Writes labels/ (PNG files whose pixel values are class numbers), instances/ (pixel values are
    object numbers, where the experiment separates objects) and overlays/ (pictures to look at). For
    TIFF images with a resolution or GeoTIFF's tags, labels_tiff/ and instances_tiff/ keep them. A
    detector writes detections.json (COCO's result format), images.json (the images and categories
    whose ids it uses) and overlays/. predict.json records the model, the settings and the versions.

    Args:
      model: Run directory: the --workdir of a training, which may still be in progress; or a folder
        of `segjax publish`. Or the name of weights, such as torchvision/deeplabv3_resnet50; see
        `segjax weights list`.
      images: PNG, JPEG, TIFF (every page), BMP, GIF, WebP or .npy files, or folders of them. A
        model of images with other bands than grey or RGB takes images with as many.
      output: Folder to write to.
      weights: File of the weights NAME: .pth, .ckpt, .safetensors, .npz, .pkl or
        TensorFlow's .index. Without it, the published file is looked for on this machine.
      annotations: JSON file in COCO's format that lists the images by name. Detections get its
        image ids and, by the names of the classes, its category ids.
      orientation: How images with an EXIF orientation are read: upright, as viewers show them, or
        as they are stored. Results belong to the image as it was read.
      pixel_range: Values that become 0 and 255 in images of 16 bits, for a model of 8 bits. 0 65535
        takes all 16 bits.
      settings: Settings of prediction that differ from the run's, as its config.json names them;
        values are JSON. For DeepLab, such as prediction.scales=[0.75,1.0,1.25] and
        prediction.flip=true. For detectors, such as network.detections.score_threshold=0.5,
        network.detections.max_detections=300 and prediction.short_sides=[800,1000]. Weights
        without a run have some of them.
      probabilities: Also write the class probabilities to probabilities/. npy: NAME.npy, float32
        [height, width, classes]. png: NAME_CLASS.png for each class, 16 bits, 65535 for 1.
      whole_pixels: Images of more pixels are read, predicted and written part by part, so that they
        may be larger than memory, by models that label pixels in windows. The labels are the same.
        Their maps are written to labels_tiff/ and instances_tiff/ only, their pictures reduced.
      overwrite: Replace existing predictions.
    """
    check_batch_size(batch_size)
    weights = find_weights(model, weights, download=download)
    if weights is not None and checkpoint != "best":
        raise UserError(f"--checkpoint is for a run; {model} is a model trained elsewhere")
    if whole_pixels < 0:
        raise UserError(f"--whole-pixels {whole_pixels}: expected a number of pixels, 0 or more")
    with user_errors():
        check_pixel_range(pixel_range)
    changes = read_settings(settings)
    paths, notes = find_all(images)
    if weights is not None:
        trained = with_settings(load_weights(model, weights), changes)
        description = f"{model} from {weights}"
        step, orientation, seen = None, orientation or "upright", {}
    else:
        trained = run = _load_run(model, checkpoint, settings)
        description = run.description
        batch_size = batch_size or run.eval_batch_size
        orientation = orientation or run.orientation
        step, seen = run.step, run.pixels
    check_rows(rows, trained)
    if pixel_range is not None:
        trained = _with_pixel_range(trained, pixel_range)
    if changes:
        notes.insert(
            0, f"settings: {', '.join(f'{k}={json.dumps(v)}' for k, v in changes.items())}"
        )
    record = make_record(
        trained,
        model=model,
        weights=weights,
        step=step,
        settings=changes,
        orientation=orientation,
    )
    refuse_other_record(output, record, overwrite=overwrite)
    task: Any = trained.segmenter
    detects = hasattr(task, "category_ids")
    large = [] if detects else [path for path in paths if is_large(path, whole_pixels)]
    if large:
        refuse_in_parts(large[0], task, whole_pixels=whole_pixels, probabilities=probabilities)
    files = read_all(paths, orientation, channels=task.channels, large=large)
    notes += note_turned(paths, orientation=orientation, setting="--orientation")
    notes += note_large(files, whole_pixels=whole_pixels)
    if probabilities is not None and detects:
        raise UserError("--probabilities is for models that label pixels; this one detects objects")
    planned = planned_files(files, output, classes=task.classes, probabilities=probabilities)
    inputs = [file.path for file in files]
    refuse_to_replace(planned, output, inputs=inputs, overwrite=overwrite)
    refuse_other_bits(files, trained)
    notes += note_other_types(files, seen)
    notes += [] if detects else note_tags_left_out(files)
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
    from segjax.data.image_arrays import for_network, read_arrays
    from segjax.data.label_tiffs import PageTags
    from segjax.trained import predict_all
    from segjax.trained.parts import PartPredictor

    if listing is not None and not detects:
        raise UserError("--annotations is for models that detect objects; this one labels pixels")
    print("\n".join([f"predicting with {description}", *notes]))
    others = sum(file.channels != {task.channels} for file in files)
    if others:
        kinds = {1: "grey", 3: "RGB"}
        print(f"converted to {kinds[task.channels]} for the model: {others} of {len(files)} files")
    with user_errors():
        (output / "overlays").mkdir(parents=True, exist_ok=True)
        write_record(output, record)

    def examples():
        for file in files:
            if file.large:
                continue
            for page, image in enumerate(read_arrays(file.path, orientation=orientation)):
                matched = for_network(image, task.channels, path=file.path)
                example = {"id": file.names[page], "image": matched, "original": image}
                example["path"] = file.path
                if file.tags:
                    example["tags"] = file.tags[page]
                if image_ids is not None:
                    example["image_id"] = image_ids[file.path]
                yield example | ({"page": page} if len(file.names) > 1 else {})

    def label_files():
        background = getattr(task, "background_class", None)
        return LabelFiles(output, task.classes, background=background, probabilities=probabilities)

    predictions = predict_all(trained, examples(), batch_size=batch_size or 1, rows=rows)
    count = sum(len(file.names) for file in files if not file.large)
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
                        most=task.most_detections,
                        notes=[*(listing.notes if listing is not None else ()), described],
                    )
                else:
                    written = label_files()
        written.write(example, prediction)
    if large:
        label_maps = written = written if isinstance(written, LabelFiles) else label_files()
        predictor = PartPredictor(trained, batch_size=batch_size or 1, rows=rows)
        for file in files:
            for page, image in enumerate(file.large):
                write_large(
                    predictor,
                    task,
                    image,
                    label_maps,
                    name=file.names[page],
                    path=file.path,
                    tags=file.tags[page] if file.tags else PageTags(),
                    probabilities=probabilities,
                )
    if written is not None:
        print("\n".join(written.finish()))


def _load_run(model: str, checkpoint: str, settings: Sequence[str]) -> "TrainedRun | Published":
    try:
        return load_trained_run(Path(model), checkpoint, settings=settings)
    except UserError as error:
        if Path(model).exists():
            raise
        raise UserError(
            f"{error} (a model trained elsewhere needs --weights FILE, or a name of "
            "`segjax weights list`)"
        ) from error


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
