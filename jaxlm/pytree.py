"""Pytrees as leaves named by path: flattened, described, compared, and divided in two."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree: Any) -> dict[str, Any]:
    """`{"encoder/layers/kernel": leaf, ...}` in the order of the tree. None and empty nodes have no leaves."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    named = {_path_name(path): leaf for path, leaf in pairs}
    if len(named) != len(pairs):
        raise ValueError("two leaves of the tree have the same path: keys must not contain '/'")
    return named


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree with each leaf replaced by `function(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_path_name(path), leaf), tree)


def _path_name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def replace_leaves(tree: Any, named: Mapping[str, Any]) -> Any:
    """`tree` with its leaves replaced by those of `named`, by path."""
    return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name in named_leaves(tree)])


def describe_leaf(leaf: Any) -> dict[str, Any]:
    """Shape and dtype of an array, an abstract array or a number, as JSON."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def unflatten(descriptions: Mapping[str, Any]) -> dict[str, Any]:
    """Abstract arrays in nested dicts, from descriptions of leaves by path."""
    tree: dict[str, Any] = {}
    for name, leaf in descriptions.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.dtype(leaf["dtype"]))
    return tree


def tree_bytes(tree: Any) -> int:
    """The number of bytes of the arrays of a tree, or of its `jax.eval_shape`."""
    leaves = [leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def diff_leaves(expected: Mapping[str, Any], stored: Mapping[str, Any], prefix: str) -> list[str]:
    """A line for each (abstract) leaf that is missing, superfluous, or not as `describe_leaf` described it.

    `prefix` is shown before the paths.
    """
    lines = [f"{prefix}/{name} is expected and not stored" for name in expected if name not in stored]
    lines += [f"{prefix}/{name} is stored and not expected" for name in stored if name not in expected]
    for name in [name for name in expected if name in stored]:
        here, there = _format_leaf(describe_leaf(expected[name])), _format_leaf(stored[name])
        if here != there:
            lines.append(f"{prefix}/{name} is expected as {here} and stored as {there}")
    return lines


def _format_leaf(description: Mapping[str, Any]) -> str:
    return f"{description['dtype']}[{','.join(map(str, description['shape']))}]"


def partition(tree: Any, predicate: Callable[[str], bool]) -> tuple[Any, Any]:
    """(leaves whose path fulfills the predicate, the other leaves): two trees with None in place of missing leaves."""
    first = map_named(lambda path, leaf: leaf if predicate(path) else None, tree)
    return first, map_named(lambda path, leaf: None if predicate(path) else leaf, tree)


def combine(first: Any, second: Any) -> Any:
    """The inverse of `partition`. If both trees have a leaf, that of the first is used."""
    return jax.tree.map(lambda leaf, other: other if leaf is None else leaf, first, second, is_leaf=_is_none)


def swap_leaves(replacement: Any, tree: Any) -> tuple[Any, Any]:
    """(`tree` with the leaves of `replacement`, the leaves of `tree` that they replace): its own inverse."""
    replaced = jax.tree.map(lambda new, leaf: None if new is None else leaf, replacement, tree, is_leaf=_is_none)
    return combine(replacement, tree), replaced


def _is_none(leaf: Any) -> bool:
    return leaf is None


def add_floats(total: Any, tree: Any) -> Any:
    """The sum of the floating-point leaves, at least in float32; the others are those of `total` (None: no sum yet)."""
    if total is None:
        return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)) if _is_float(x) else x, tree)
    return jax.tree.map(lambda sum, x: sum + x.astype(sum.dtype) if _is_float(x) else sum, total, tree)


def divide_floats(total: Any, count: int, like: Any) -> Any:
    """The floating-point leaves divided by `count`, in the dtypes of the tree `like`."""
    return jax.tree.map(lambda sum, x: (sum / count).astype(x.dtype) if _is_float(x) else sum, total, like)


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
