"""Terms that an experiment adds to the loss of a task."""

from collections.abc import Callable, Collection, Mapping

import jax

# (outputs of the network, batch, variables) → float32 scalar, including the term's weight. The step
# averages it over devices and micro-batches, and this mean must be the term of the whole batch. A
# mean over images satisfies this. A mean over pixels or regions must divide by a count that is a
# mean over the devices: the batch's "normalizer" (valid pixels per image, also right for
# micro-batches), or `segjax.ops.devices.mean_count` of any mask.
LossTerm = Callable[[dict, dict, dict], jax.Array]
# Values that a training step logs besides the task's metrics.
LOGGED = ("loss", "gradient_norm", "learning_rate")


def extra_terms(
    terms: Mapping[str, LossTerm],
    outputs: dict,
    batch: dict,
    variables: dict,
    *,
    taken: Collection[str],
) -> dict[str, jax.Array]:
    """Computes each term and returns them by name.

    Args:
      terms: the terms by name.
      outputs, batch, variables: the arguments of each term.
      taken: the names of the task's own metrics.

    Raises:
      ValueError: a term has the name of one of the task's metrics, or a name that every step logs.
    """
    check_names(terms, taken=taken)
    return {name: term(outputs, batch, variables) for name, term in terms.items()}


def check_names(terms: Mapping, *, taken: Collection[str]):
    """Raises ValueError if a term has the name of another logged value."""
    for name in terms:
        if name in (*taken, *LOGGED):
            raise ValueError(
                f"an extra loss term is named {name!r}, like another logged value; taken are "
                f"{', '.join((*taken, *LOGGED))}"
            )
