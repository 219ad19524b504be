"""The base class of models and backbones, which return dicts of arrays."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import flax.linen as nn
import jax


class Network(nn.Module):
    """A Linen module whose call returns a dict of arrays.

    Linen annotates `apply` for all modules at once, and type checkers therefore reject
    `model.apply(variables, images)["logits"]`. The annotations here tell them what it returns.
    """

    if TYPE_CHECKING:
        Variables = Mapping[str, Mapping[str, Any]]
        Keys = jax.Array | Mapping[str, jax.Array]

        @overload
        def apply(
            self,
            variables: Variables,
            *args: Any,
            rngs: Keys | None = None,
            method: None = None,
            mutable: Literal[False] = False,
            **kwargs: Any,
        ) -> dict[str, jax.Array]: ...

        @overload
        def apply(
            self,
            variables: Variables,
            *args: Any,
            rngs: Keys | None = None,
            method: None = None,
            mutable: Literal[True] | str | list[str],
            **kwargs: Any,
        ) -> tuple[dict[str, jax.Array], dict[str, Any]]: ...

        @overload
        def apply(
            self,
            variables: Variables,
            *args: Any,
            method: Callable[..., Any] | str,
            **kwargs: Any,
        ) -> Any: ...

        def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...
