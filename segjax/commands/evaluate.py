"""`segjax evaluate`: scores a trained model on its experiment's splits."""

from pathlib import Path
from typing import Annotated

import tyro

from segjax.commands.combinations import check_combination
from segjax.commands.errors import UserError
from segjax.commands.mask_flags import (
    ClassMasks,
    MaskIgnored,
    MasksHold,
    MaskSuffix,
    MaskValues,
    Unmatched,
)
from segjax.commands.models import (
    BatchSize,
    Checkpoint,
    DataDir,
    Download,
    Rows,
    check_batch_size,
    check_rows,
    find_weights,
    load_with_splits,
    open_split,
)
from segjax.commands.scoring import check_writable, score_sources
from segjax.commands.settings import Settings


def evaluate_command(
    run: Annotated[Path | None, tyro.conf.arg(metavar="[RUN|NAME]", help_behavior_hint="")] = None,
    /,
    *,
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None,
    masks: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None,
    labels: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None,
    mask_suffix: MaskSuffix = None,
    unmatched: Unmatched = "refuse",
    class_masks: ClassMasks = None,
    holds: MasksHold = None,
    values: MaskValues = (),
    ignored: MaskIgnored = (),
    weights: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(with a NAME)")
    ] = None,
    download: Download = False,
    split: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(default: all of them)"),
    ] = (),
    checkpoint: Checkpoint = "best",
    data_dir: DataDir = None,
    batch_size: BatchSize = None,
    rows: Rows = 1,
    output: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the run directory)"),
    ] = None,
    settings: Settings = (),
) -> None:
    """Score a trained model on the splits of its experiment, or on images and masks of your own.

    Writes the scores to RUN/evaluation, and refreshes RUN/predictions and RUN/report.html. With
    --images and --masks, the model is a run, a published folder, or weights by name; the scores are
    kept beside those of the splits, as images_DIR. With --labels and --masks, label maps are scored
    that exist already, such as those of `segjax predict`.

    A detector's results are written beside the scores, as evaluation/detections/SPLIT.json in
    COCO's result format, with the ids of the split's own data.

    Args:
      run: Run directory: the --workdir of a training, which may still be in progress; or a folder
        of `segjax publish`. Or, with --images, the name of weights, such as
        torchvision/deeplabv3_resnet50; see `segjax weights list`.
      images: Folder of images to score the model on.
      masks: Folder of their masks; a mask has the name of its image, with or without more.
      labels: Folder of label maps to score; pixel values are class or object numbers.
      weights: File of the weights NAME: .pth, .ckpt, .safetensors, .npz, .pkl or
        TensorFlow's .index. Without it, the published file is looked for on this machine.
      split: Splits of the experiment to score.
      output: Folder for the scores and pictures, for a run directory that you cannot write to. The
        run's report then stays as it is.
      settings: Settings of prediction that differ from the run's, such as
        prediction.output_stride=8, network.detections.score_threshold=0.5 for a detector, or
        network.pixel_range=[0,65535] for images of 16 bits; values are JSON. Their scores are kept
        beside the run's own. A path of data that has moved is set as well: files.val_images=DIR.
    """
    check_batch_size(batch_size)
    check_combination(
        "evaluate",
        {
            "RUN": run,
            "--images": images,
            "--masks": masks,
            "--labels": labels,
            "--mask-suffix": mask_suffix,
            "--unmatched": None if unmatched == "refuse" else unmatched,
            "--class-masks": class_masks,
            "--holds": holds,
            "--values": values or None,
            "--ignored": ignored or None,
            "--weights": weights,
            "--download": download or None,
            "--split": split or None,
            "--data-dir": data_dir,
            "--batch-size": batch_size,
            "--parallel.rows": rows if rows != 1 else None,
            "--output": output,
            "--set": settings or None,
        },
        WAYS,
    )
    if masks is not None:
        from segjax.commands.evaluate_folders import MaskFlags, evaluate_images, evaluate_labels

        flags = MaskFlags(masks, mask_suffix, unmatched, class_masks, holds, values, ignored)
        if labels is not None:
            evaluate_labels(labels, flags, output=output)
        elif images is not None and run is not None:
            evaluate_images(
                *(run, images, flags),
                weights=find_weights(str(run), weights, download=download),
                checkpoint=checkpoint,
                settings=settings,
                batch_size=batch_size,
                rows=rows,
                output=output,
            )
        return
    assert run is not None
    trained = load_with_splits(run, checkpoint, data_dir=data_dir, settings=settings)
    check_rows(rows, trained)

    from segjax.report import write_report
    from segjax.training.evaluate import evaluation_name

    experiment = trained.experiment
    for name in split:
        if name not in experiment.evaluation:
            known = ", ".join(experiment.evaluation)
            raise UserError(f"--split {name}: the experiment of {run} has {known}")
    folder = output or run
    check_writable(folder)
    names = split or [*experiment.evaluation]
    sources = {evaluation_name(name, settings): open_split(trained, name) for name in names}
    print(f"evaluating {trained.description}")
    score_sources(
        trained,
        sources,
        step=trained.step,
        headline=experiment.best_metric,
        folder=folder,
        batch_size=batch_size or trained.config.train.eval_batch_size,
        rows=rows,
        matmul_precision=trained.config.matmul_precision,
    )
    if output is None:
        print(f"report    {write_report(run, run / 'report.html')}")


_MASKS = (
    *("--mask-suffix", "--unmatched", "--class-masks", "--holds", "--values", "--ignored"),
    "--output",
)
_RUNNING = ("--batch-size", "--parallel.rows")
# The ways to say what is scored: the arguments that go together, and those that may join them.
WAYS = (
    (("RUN",), ("--split", "--data-dir", *_RUNNING, "--output", "--set")),
    (("RUN", "--images", "--masks"), (*_MASKS, "--weights", "--download", *_RUNNING, "--set")),
    (("--labels", "--masks"), _MASKS),
)
