"""One step of a checkpoint folder: what is written, and how it is checked, since Orbax returns flipped bits unnoticed.

    <step>/params/   the parameters, a flat dict of leaves by path ("encoder/layers/kernel")
    <step>/rest/     all other state (optimizer, step, keys), in the same form
    <step>/meta/     JSON: format, the caller's meta, metric; shape, dtype and checksum of each leaf; its own digest

Parameters are an item of their own, so that they can be read alone, without the optimizer. Leaves are stored by path,
so a checkpoint does not depend on the classes that held them, nor on devices or sharding.
"""

import gc
import hashlib
import json
import logging
import math
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError, list_some
from jaxlm.pytree import describe_leaf, diff_leaves, named_leaves, replace_leaves

FORMAT_VERSION = 1
"""Written into each checkpoint. A reader accepts its own format and older ones."""

_previous_hook: Any = None


class CorruptCheckpoint(Exception):
    """A step that cannot be read back as it was written; the message is the reason."""


class DeletedCheckpoint(Exception):
    """A step that the run, which is being trained, has deleted since it was listed."""


def import_orbax() -> Any:
    """The module orbax.checkpoint (a third of a second to import), without its progress messages."""
    global _previous_hook
    import absl.logging
    import orbax.checkpoint

    absl.logging.set_verbosity(absl.logging.FATAL)
    if _previous_hook is None:
        _previous_hook, sys.unraisablehook = sys.unraisablehook, _unraisable_hook
        logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())
        # Of a save or read that has failed already, and is reported: its other parts are dropped.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    return orbax.checkpoint


class SaveBarrier:
    """Orbax's barrier for all hosts. The thread of a save that has failed does not wait there, since others may wait at
    another one: `failure` is its error, in whose handling Orbax calls this."""

    def __init__(self) -> None:
        self.caller = threading.current_thread()
        self.failure: Exception | None = None

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        error: Any = sys.exc_info()[1]
        if error is not None and threading.current_thread() is not self.caller:
            self.failure = error
            raise error
        if jax.process_count() > 1:
            import_orbax().multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def write_step(manager: Any, step: int, trees: dict[str, Any], meta: dict, metric: dict | None) -> None:
    """Start to write the trees (by item) and their metadata. Returns when the arrays may be donated."""
    args, items, leaves = import_orbax().args, {}, {}
    for item, tree in trees.items():
        named = named_leaves(tree)
        sums = checksums(named)
        leaves[item] = {name: describe_leaf(leaf) | {"checksum": sums[name]} for name, leaf in named.items()}
        # Orbax accepts neither numbers nor empty arrays.
        arrays = {name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for name, leaf in named.items()}
        if stored := {name: array for name, array in arrays.items() if array.size}:
            items[item] = args.StandardSave(stored)
    metadata = {"format": FORMAT_VERSION, "step": step, "meta": meta, "metric": metric, "leaves": leaves}
    metadata = json.loads(json.dumps(metadata))  # as it will be read back: tuples are lists
    metadata["digest"] = _digest(metadata)
    manager.save(step, args=args.Composite(**items, meta=args.JsonSave(metadata)), force=True)


def read_metadata(manager: Any, folder: Path, step: int) -> dict:
    """The metadata of a step. Raises CorruptCheckpoint, and UserError if a newer jaxlm wrote it."""
    metadata = _restore_items(manager, step, meta=import_orbax().args.JsonRestore())["meta"]
    try:
        if metadata["format"] > FORMAT_VERSION:
            raise UserError(
                f"{folder / str(step)} has checkpoint format {metadata['format']}, this jaxlm reads up to "
                f"{FORMAT_VERSION}: update jaxlm (pip install -U jaxlm) to use it"
            )
    except (KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"its meta is not that of a checkpoint: {error_summary(error)}") from error
    if metadata.get("digest") != _digest(metadata):
        raise CorruptCheckpoint("its meta does not match its digest")
    return metadata


def read_step(manager: Any, folder: Path, step: int, trees: dict[str, Any]) -> tuple[dict[str, Any], dict]:
    """(trees by item, meta) of a step; `trees` holds (abstract) leaves, whose shardings are those of the result.

    Raises CorruptCheckpoint, and UserError if leaves, shapes or dtypes are not those that were saved.
    """
    metadata = read_metadata(manager, folder, step)
    requested = {item: named_leaves(tree) for item, tree in trees.items()}
    mismatches = [line for item in trees for line in diff_leaves(requested[item], metadata["leaves"][item], item)]
    if mismatches:
        raise UserError(
            f"{folder / str(step)} does not fit: {list_some(mismatches, limit=5, separator='; ')}: it was "
            "saved with another configuration; use that one, or train into another --workdir"
        )
    read = _read_arrays(manager, step, requested)
    for item, leaves in read.items():
        for name, checksum in checksums(leaves).items():
            if checksum != (stored := metadata["leaves"][item][name]["checksum"]):
                raise CorruptCheckpoint(f"{item}/{name} does not match its checksum (stored {stored}, read {checksum})")
    return {item: replace_leaves(tree, read[item]) for item, tree in trees.items()}, metadata["meta"]


def error_summary(error: BaseException) -> str:
    """The class of an error and the first line of its message."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {text:.200}"


def _digest(metadata: dict) -> str:
    content = {key: value for key, value in metadata.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_arrays(manager: Any, step: int, requested: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The leaves by item and path, each of the type of the requested leaf."""
    targets = {item: {name: _restore_target(leaf) for name, leaf in of.items()} for item, of in requested.items()}
    stored = {
        item: {name: target for name, target in of.items() if math.prod(target.shape)} for item, of in targets.items()
    }
    items = {item: import_orbax().args.StandardRestore(of) for item, of in stored.items() if of}
    read = _restore_items(manager, step, **items) if items else {}
    return {
        item: {
            name: _to_requested_type(read[item].get(name) if item in items else None, leaf, targets[item][name])
            for name, leaf in leaves.items()
        }
        for item, leaves in requested.items()
    }


def _restore_items(manager: Any, step: int, **items: Any) -> Any:
    """Restore the items with Orbax. Raises CorruptCheckpoint for any failure: Orbax has no class of errors for it."""
    with warnings.catch_warnings():
        # When one array cannot be read, Orbax drops its reads of the others; these are collected here.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        try:
            return manager.restore(step, args=import_orbax().args.Composite(**items))
        except MemoryError:
            raise
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            reason = error_summary(error)
        gc.collect()
    raise CorruptCheckpoint(reason)


def _unraisable_hook(unraisable: Any) -> None:
    """Ignore that a dropped read, which ends later in a thread of tensorstore, finds its event loop closed."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        _previous_hook(unraisable)


def _restore_target(leaf: Any) -> Any:
    """The argument for Orbax: an abstract array with a sharding, or a NumPy array for a number."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return np.asarray(leaf)
    sharding: Any = leaf.sharding
    if sharding is None and jax.process_count() == 1:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    elif sharding is None:
        sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices(), "all"), jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _to_requested_type(array: Any, leaf: Any, target: Any) -> Any:
    """The array that was read (None: an empty one, never stored) as `leaf` is: JAX array, NumPy array or number."""
    if isinstance(target, jax.ShapeDtypeStruct):
        return array if array is not None else jax.device_put(jnp.zeros(target.shape, target.dtype), target.sharding)
    array = np.zeros_like(target) if array is None else np.asarray(array)
    return array if isinstance(leaf, np.ndarray) else type(leaf)(array[()])


INDEX_FACTOR = 0x9E3779B1


def checksums(leaves: Mapping[str, Any]) -> dict[str, str]:
    """The checksum of the bits of each leaf (array, PRNG key or number) as 16 hexadecimal digits, on its devices.

    Word w_i holds the bits of the i-th element (one wider than 32 bits is several words); with an odd constant p and
    `mix` the finalizer of MurmurHash3 (a bijection on 32 bits):

        t_i = mix(w_i xor p i)        first = sum_i t_i        second = sum_i (2 i + 1) t_i        (all modulo 2^32)

    For a fixed position w -> t is a bijection and the factors are odd, so any change within one word changes both sums;
    moved elements change them too. Sums modulo 2^32 do not depend on the order, so the value does not depend on the
    sharding. Each byte is read once. NaN equals itself and 0.0 differs from -0.0.
    """
    # device_get waits for each leaf in turn: on a CPU that simulates several devices, programs with collectives that
    # run at the same time deadlock, since each holds some of the threads while it waits for the others.
    words = {name: jax.device_get(_checksum(_to_jax_compatible(leaf))) for name, leaf in leaves.items()}
    return {name: "".join(f"{int(word):08x}" for word in pair) for name, pair in words.items()}


def _to_jax_compatible(leaf: Any) -> Any:
    """A leaf as an array that JAX accepts without narrowing it to 32 bits."""
    if isinstance(leaf, jax.Array) or (array := np.asarray(leaf)).dtype.itemsize <= 4:
        return leaf
    return np.ascontiguousarray(array).reshape(-1).view(np.uint32)


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    words = _to_uint32_words(leaf)
    index = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    h = words ^ (index * jnp.uint32(INDEX_FACTOR))  # fmix32 of MurmurHash3 (Appleby, 2008):
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    h = h ^ (h >> 16)
    zeros, axes = (jnp.uint32(0), jnp.uint32(0)), tuple(range(words.ndim))
    # One reduction of pairs reads the array once; it is 3 to 5 times as fast as two sums.
    return jnp.stack(jax.lax.reduce((h, h * (2 * index + 1)), zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), axes))


def _to_uint32_words(leaf: jax.Array) -> jax.Array:
    """The bits of each element as uint32; two words (a new last axis) for an element of 64 bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    if leaf.dtype.itemsize > 4:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        leaf = jax.lax.bitcast_convert_type(leaf, f"uint{jnp.finfo(leaf.dtype).bits}")
    return leaf.astype(jnp.uint32)
