"""Trees as named leaves: what is stored, what is asked for, and where the two disagree."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def named_leaves(tree: Any) -> dict[str, Any]:
    """`{"encoder/layers/kernel": leaf, ...}` in the order of the tree. None and empty nodes have no leaves."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(named) != len(pairs):
        raise ValueError("two leaves of the tree have the same path: keys must not contain '/'")
    return named


def replace_leaves(tree: Any, named: Mapping[str, Any]) -> Any:
    """`tree` with its leaves taken from `named` by path."""
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
    """The bytes that the arrays of a tree (or of its `jax.eval_shape`) take."""
    leaves = [leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def diff_leaves(expected: Mapping[str, Any], stored: Mapping[str, Any], prefix: str) -> list[str]:
    """A line for each leaf that is asked for and not stored, stored and not asked for, or of another shape or dtype.

    `asked` holds (abstract) leaves by path, `stored` the descriptions of leaves by path; `item` goes before the paths.
    """
    lines = [f"{prefix}/{name} is asked for and not stored" for name in expected if name not in stored]
    lines += [f"{prefix}/{name} is stored and not asked for" for name in stored if name not in expected]
    for name, leaf in expected.items():
        if name in stored:
            here, there = _format_leaf(describe_leaf(leaf)), _format_leaf(stored[name])
            if here != there:
                lines.append(f"{prefix}/{name} is asked for as {here} and stored as {there}")
    return lines


def _format_leaf(description: Mapping[str, Any]) -> str:
    return f"{description['dtype']}[{','.join(map(str, description['shape']))}]"


def partition(tree: Any, predicate: Callable[[str], bool]) -> tuple[Any, Any]:
    """(the leaves at the chosen paths, the others): two trees of one form, with None where the other has the leaf."""
    names = iter(named_leaves(tree))
    mine = jax.tree.map(lambda leaf: predicate(next(names)), tree)
    return jax.tree.map(_keep_if, mine, tree), jax.tree.map(lambda mine, leaf: _keep_if(not mine, leaf), mine, tree)


def combine(first: Any, second: Any) -> Any:
    """The tree of which `part` made two; where both have a leaf, that of the first."""
    return jax.tree.map(lambda one, other: other if one is None else one, first, second, is_leaf=_is_none)


def swap_leaves(replacement: Any, tree: Any) -> tuple[Any, Any]:
    """(`whole` with the leaves of `first`, those leaves of `whole` in the form of `first`): its own inverse."""
    taken = jax.tree.map(lambda one, leaf: None if one is None else leaf, replacement, tree, is_leaf=_is_none)
    return combine(replacement, tree), taken


def _keep_if(condition: bool, leaf: Any) -> Any:
    return leaf if condition else None


def _is_none(leaf: Any) -> bool:
    return leaf is None
