"""The layers that use each weight: only one of a layer that can read a weight format may get one.

A name says nothing about the owner of a parameter. `weight_users` therefore traces a call of the model, in which the
layers of jaxlm note each array that they read or multiply with. An array that another transformation has changed on
its way to the layer is not recognized, and keeps its format.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax

FLAX_WEIGHTS = {"kernel", "embedding"}
"""The names of the large parameters of Flax's own layers."""

_uses: ContextVar[dict[int, tuple[Any, set[str]]] | None] = ContextVar("_uses", default=None)
"""In the call that is traced, each array (kept alive, so that its identity stays its own) and its uses."""


def note_use(weights: Any, use: str) -> None:
    """Note a use of weights, if a call is traced: see `weight_users`."""
    if (uses := _uses.get()) is not None:
        uses.setdefault(id(weights), (weights, set()))[1].add(use)


def note_layer(params_L: Any, params: Any) -> None:
    """Note that `params` are those of one layer of `params_L`: what uses them uses the stack."""
    if (uses := _uses.get()) is not None and not isinstance(params_L, tuple):
        for stacked, of_layer in zip(jax.tree.leaves(params_L), jax.tree.leaves(params), strict=True):
            note_use(stacked, "stack")
            uses[id(of_layer)] = of_layer, uses[id(stacked)][1]


def weight_users(call: Callable[[Any], Any], params: Any) -> dict[tuple[str, ...], set[str]]:
    """Trace `call(params)` and return the uses of each leaf, by its `weight_path`.

    "read": by a layer of jaxlm, as a weight that may have a format. "kernel", "table": it is multiplied with; "rows":
    some of its rows are read. "stack": it holds the weights of all layers of a `Stack`. "flax": it is of a Flax layer.
    """
    entries = jax.tree_util.tree_leaves_with_path(params)
    users: dict[tuple[str, ...], set[str]] = {}

    def trace(leaves: list) -> None:
        uses: dict[int, tuple[Any, set[str]]] = {id(leaf): (leaf, set()) for leaf in leaves}
        token = _uses.set(uses)
        try:
            with nn.intercept_methods(_note_flax_layer):
                call(jax.tree.unflatten(jax.tree.structure(params), leaves))
        finally:
            _uses.reset(token)
        for (path, _), leaf in zip(entries, leaves, strict=True):
            users.setdefault(weight_path(path), set()).update(uses[id(leaf)][1])

    jax.eval_shape(trace, [leaf for _, leaf in entries])
    return users


def _note_flax_layer(method: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    if type(context.module).__module__.startswith("flax."):
        for name, value in context.module.variables.get("params", {}).items():
            if name in FLAX_WEIGHTS:
                note_use(value, "flax")
    return method(*args, **kwargs)


def weight_path(path: tuple) -> tuple[str, ...]:
    """Return the names of a path in a tree of parameters, without the indices of unstacked layers."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
