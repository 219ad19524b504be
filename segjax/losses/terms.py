"""Terms that an experiment adds to the loss of a task."""

from collections.abc import Callable, Collection, Mapping

import jax

# (outputs of the network, batch, variables) → float32 scalar, the weight included. The step takes
# its mean over devices and micro-batches, which must be the term of the whole batch. A mean over
# images is right as it is. A mean over pixels or regions divides by a count that is itself a mean
# over the devices: the batch's "normalizer" (valid pixels of an image, right for micro-batches
# too), or `segjax.ops.devices.mean_count` of any mask.
LossTerm = Callable[[dict, dict, dict], jax.Array]
# What a training step logs besides the metrics of the task.
LOGGED = ("loss", "gradient_norm", "learning_rate")


def extra_terms(
    terms: Mapping[str, LossTerm],
    outputs: dict,
    batch: dict,
    variables: dict,
    *,
    taken: Collection[str],
) -> dict[str, jax.Array]:
    """Computes each term, by name.

    Args:
      taken: the names of the task's own metrics.

    Raises:
      ValueError: a term has one of these names, or one that every step logs.
    """
    check_names(terms, taken=taken)
    return {name: term(outputs, batch, variables) for name, term in terms.items()}


def check_names(terms: Mapping, *, taken: Collection[str]):
    """Raises a ValueError if a term has the name of another logged value."""
    for name in terms:
        if name in (*taken, *LOGGED):
            raise ValueError(
                f"an extra loss term is named {name!r}, as another logged value; taken are "
                f"{', '.join((*taken, *LOGGED))}"
            )
