"""One step of a checkpoint folder: what is written, and how it is checked when it is read.

    <step>/params/   the parameters, a flat dict of leaves by path ("encoder/layers/kernel")
    <step>/rest/     all other state (optimizer, step, keys), the same
    <step>/meta/     JSON: format, the caller's meta, metric, shape, dtype and checksum of each leaf, its own digest

Parameters are an item of their own, so that reading only them is cheap and needs no optimizer. Because leaves are
stored by path, a checkpoint does not depend on the classes that held them, nor on devices or sharding.

What is read is compared with what was written: orbax casts to another dtype and returns flipped bits without a word.
"""

import contextlib
import gc
import hashlib
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.checkpoint.checksum import checksums
from jaxlm.errors import UserError
from jaxlm.pytree import describe_leaf, diff_leaves, named_leaves, replace_leaves

FORMAT_VERSION = 1
"""Written into each checkpoint. A reader takes its own format and older ones."""

MAX_MISMATCHES_SHOWN = 5

_previous_hook: Any = None


class CorruptCheckpoint(Exception):
    """A step that cannot be read back as it was written; the message is the reason."""


def import_orbax() -> Any:
    """orbax.checkpoint (a third of a second to import), with its progress notes turned off."""
    global _previous_hook
    import absl.logging
    import orbax.checkpoint

    absl.logging.set_verbosity(absl.logging.FATAL)
    if _previous_hook is None:
        _previous_hook, sys.unraisablehook = sys.unraisablehook, _unraisable_hook
    return orbax.checkpoint


def write_step(manager: Any, step: int, trees: dict[str, Any], meta: dict, metric: dict | None) -> None:
    """Start to write the trees (by item) and the record of them. Returns when the arrays may be donated."""
    record = _build_metadata(step, trees, meta, metric)
    args = import_orbax().args
    items = {item: args.StandardSave(stored) for item, tree in trees.items() if (stored := _storable_leaves(tree))}
    manager.save(step, args=args.Composite(**items, meta=args.JsonSave(record)), force=True)


def read_metadata(manager: Any, folder: Path, step: int) -> dict:
    """The JSON of a step. Raises Damaged, and UserError where a newer jaxlm wrote it."""
    args = import_orbax().args
    record = _restore_items(manager, step, meta=args.JsonRestore())["meta"]
    try:
        newer = record["format"] > FORMAT_VERSION
    except (KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"its meta is not that of a checkpoint: {error_summary(error)}") from error
    if newer:
        raise UserError(
            f"{folder / str(step)} has checkpoint format {record['format']}, this jaxlm reads up to {FORMAT_VERSION}: "
            "update jaxlm (pip install -U jaxlm) to use it"
        )
    if record.get("digest") != _digest(record):
        raise CorruptCheckpoint("its meta does not match its digest")
    return record


def read_step(manager: Any, folder: Path, step: int, trees: dict[str, Any]) -> tuple[dict[str, Any], dict]:
    """(trees by item, meta) of a step; `trees` holds (abstract) leaves whose shardings say where each goes.

    Raises Damaged, and UserError where leaves, shapes or dtypes are not those that were saved.
    """
    record = read_metadata(manager, folder, step)
    asked = {item: named_leaves(tree) for item, tree in trees.items()}
    wrong = [line for item in trees for line in diff_leaves(asked[item], record["leaves"][item], item)]
    if wrong:
        more = f"; and {len(wrong) - MAX_MISMATCHES_SHOWN} more" if len(wrong) > MAX_MISMATCHES_SHOWN else ""
        raise UserError(
            f"{folder / str(step)} does not fit: {'; '.join(wrong[:MAX_MISMATCHES_SHOWN])}{more}: "
            "it was saved with another configuration; use that one, or train into another --workdir"
        )
    read = _read_arrays(manager, step, asked)
    for item, leaves in read.items():
        for name, found in checksums(leaves).items():
            if found != (stored := record["leaves"][item][name]["checksum"]):
                raise CorruptCheckpoint(f"{item}/{name} does not match its checksum (stored {stored}, read {found})")
    return {item: replace_leaves(tree, read[item]) for item, tree in trees.items()}, record["meta"]


def error_summary(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {text:.200}"


def _build_metadata(step: int, trees: dict[str, Any], meta: dict, metric: dict | None) -> dict:
    leaves = {}
    for item, tree in trees.items():
        named = named_leaves(tree)
        sums = checksums(named)
        leaves[item] = {name: describe_leaf(leaf) | {"checksum": sums[name]} for name, leaf in named.items()}
    record = {"format": FORMAT_VERSION, "step": step, "meta": meta, "metric": metric, "leaves": leaves}
    record = json.loads(json.dumps(record))  # what will be read back: tuples are lists
    return record | {"digest": _digest(record)}


def _digest(metadata: dict) -> str:
    content = {key: value for key, value in metadata.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _storable_leaves(tree: Any) -> dict[str, Any]:
    """The leaves that orbax takes: numbers as NumPy arrays, and none that is empty."""
    named = named_leaves(tree).items()
    leaves = {name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for name, leaf in named}
    return {name: leaf for name, leaf in leaves.items() if leaf.size}


def _read_arrays(manager: Any, step: int, requested: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The leaves by item and path, of the kinds that were asked for. Raises Damaged."""
    args = import_orbax().args
    targets = {
        item: {name: _restore_target(leaf) for name, leaf in leaves.items()} for item, leaves in requested.items()
    }
    stored = {item: {name: leaf for name, leaf in t.items() if math.prod(leaf.shape)} for item, t in targets.items()}
    items = {item: args.StandardRestore(leaves) for item, leaves in stored.items() if leaves}
    read = _restore_items(manager, step, **items) if items else {}
    result: dict[str, dict[str, Any]] = {}
    for item, leaves in requested.items():
        got = read[item] if item in items else {}
        result[item] = {
            name: _to_requested_type(leaf, got.get(name), targets[item][name]) for name, leaf in leaves.items()
        }
    return result


def _restore_items(manager: Any, step: int, **items: Any) -> Any:
    """Orbax's restore of the items. Raises Damaged where it fails: orbax has no one kind of error for that."""
    with _silence_dropped_reads():
        try:
            return manager.restore(step, args=import_orbax().args.Composite(**items))
        except MemoryError:
            raise
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = error_summary(error)
        logging.getLogger("asyncio").addFilter(_is_unexpected)  # a read may end after this, in a thread of tensorstore
        gc.collect()
    raise CorruptCheckpoint(reason)


@contextlib.contextmanager
def _silence_dropped_reads() -> Iterator[None]:
    """When one array cannot be read, orbax drops its reads of the others; asyncio reports each when it is collected."""
    log = logging.getLogger("asyncio")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        log.setLevel(level)


def _is_unexpected(record: logging.LogRecord) -> bool:
    """False for what asyncio says of a read that failed too, after the checkpoint was found damaged and let go."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, ValueError) and "never retrieved" in record.getMessage() and "driver" in str(error))


def _unraisable_hook(unraisable: Any) -> None:
    """The dropped reads end later, in threads of tensorstore, and find the event loop closed: that is no news."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        _previous_hook(unraisable)


def _restore_target(leaf: Any) -> Any:
    """What to ask orbax for: an abstract array with a sharding, or a NumPy array in place of a number."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return np.asarray(leaf)
    sharding = leaf.sharding if leaf.sharding is not None else _default_sharding()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _default_sharding() -> jax.sharding.Sharding:
    if jax.process_count() == 1:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices(), "all"), jax.sharding.PartitionSpec())


def _to_requested_type(leaf: Any, read: Any, target: Any) -> Any:
    if isinstance(target, jax.ShapeDtypeStruct):
        return read if read is not None else jax.device_put(jnp.zeros(target.shape, target.dtype), target.sharding)
    read = np.zeros_like(target) if read is None else np.asarray(read)
    return read if isinstance(leaf, np.ndarray) else type(leaf)(read[()])
