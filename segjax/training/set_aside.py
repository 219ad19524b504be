"""Sets damaged checkpoints aside, so that a run resumes from its newest intact one."""

from pathlib import Path

from segjax.training.checksums import DamagedCheckpoint, damage, metrics_damage
from segjax.training.run_directory import steps_on_disk

FOLDER = "checkpoints_damaged"


def set_damaged_aside(directory: Path) -> list[str]:
    """Moves damaged checkpoints to `checkpoints_damaged`, beside `directory`.

    Checks checkpoints from the newest back to the first intact one. Of older checkpoints it checks
    the scores only, because Orbax fails to open a folder with damaged scores.

    Args:
      directory: the folder of a run's checkpoints; no other process may write to it.

    Returns:
      A sentence for each checkpoint that was moved.

    Raises:
      DamagedCheckpoint: no checkpoint is intact. All stay where they are.
    """
    problems, intact = {}, None
    for step in reversed(steps_on_disk(directory)):
        problem = (damage if intact is None else metrics_damage)(directory / str(step))
        if problem is not None:
            problems[step] = problem
        elif intact is None:
            intact = step
    if problems and intact is None:
        newest = max(problems)
        raise DamagedCheckpoint(
            f"none of the checkpoints in {directory} is intact ({_listed(problems)}); that of step "
            f"{newest}: {problems[newest]}. Nothing was changed. Put a copy of them back, or take "
            "another --workdir to start from the beginning"
        )
    return [
        f"the checkpoint of step {step} is damaged: {problem}; moved to "
        f"{_move(directory / str(step))}, going on from step {intact}"
        for step, problem in problems.items()
    ]


def _listed(problems):
    steps = ", ".join(map(str, sorted(problems)))
    return f"step{'s' if len(problems) > 1 else ''} {steps}"


def _move(folder: Path) -> Path:
    """Moves a checkpoint aside; an earlier damaged one of the same step is kept."""
    aside = folder.parent.with_name(FOLDER)
    aside.mkdir(exist_ok=True)
    target, number = aside / folder.name, 1
    while target.exists():
        number += 1
        target = aside / f"{folder.name}_{number}"
    return folder.rename(target)
