"""The metric that ranks checkpoints, and whether a smaller value of it is better."""

# Words in the names of metrics of which smaller values are better.
_SMALLER = ("loss", "error", "distance", "negative", "std")
_DIRECTIONS = {"min": True, "max": False}


def smaller_is_better(metric: str) -> bool:
    """Whether a metric's name says that it is a loss, an error, a distance or a spread."""
    return any(word in metric for word in _SMALLER)


def read_best_metric(text: str) -> tuple[str, bool | None]:
    """Reads the setting `train.best_metric`: "NAME", "NAME:min" or "NAME:max".

    Returns:
      The metric's name and whether a smaller value is better, None if the setting does not say.

    Raises:
      ValueError: the setting has another form.
    """
    name, colon, direction = text.partition(":")
    if not name or (colon and direction not in _DIRECTIONS):
        raise ValueError(
            f"best_metric={text!r}; expected a metric's name, such as mean_iou, or NAME:min or "
            "NAME:max to say whether smaller or larger values are better"
        )
    return name, _DIRECTIONS[direction] if colon else None
