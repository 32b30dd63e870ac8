"""Batches and numbers put onto a mesh, by one process or by several of which each has a part."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxlm.distributed.sharding import AnyMesh, num_batch_shards, partition_spec, replicated_sharding
from jaxlm.types import Array


def batch_shardings(batch: Any, mesh: AnyMesh) -> Any:
    """Where each field of a batch lies: rows over `data` and `fsdp`, positions over `sequence`."""

    def place(leaf: Any) -> NamedSharding:
        names = ("batch", "sequence", *(None,) * leaf.ndim)[: leaf.ndim]
        return NamedSharding(mesh, partition_spec(names, leaf.shape, mesh))

    return jax.tree.map(place, batch)


def host_rows(mesh: Mesh) -> tuple[int, int]:
    """(index, of): the devices of this host hold the rows of the index-th of `of` equal parts of a batch.

    (0, 1), all rows, where there is one host or its devices hold no such part.
    """
    shards = num_batch_shards(mesh)
    by_rows = mesh.devices.reshape(shards, -1)  # rows are split over the first two axes
    mine = [row for row in range(shards) if any(d.process_index == jax.process_index() for d in by_rows[row])]
    first, size = mine[0], len(mine)
    if mine != list(range(first, first + size)) or first % size or shards % size:
        return 0, 1
    return first // size, shards // size


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch, of which this host has the rows of its `row_share`, as arrays on the mesh."""
    if jax.process_count() == 1:
        return jax.device_put(batch, batch_shardings(batch, mesh))
    index, of = host_rows(mesh)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(x) * of, *x.shape[1:]), x.dtype), batch)

    def put(x: Any, whole: Any, sharding: NamedSharding) -> Array:
        def held(at: Any) -> Any:
            begin, end, _ = at[0].indices(whole.shape[0])
            return x[begin - index * len(x) : end - index * len(x), *at[1:]]

        return jax.make_array_from_callback(whole.shape, sharding, held)

    return jax.tree.map(put, batch, shapes, batch_shardings(shapes, mesh))


def put_like_params(params: Any, batch: Any) -> Any:
    """A batch that every host has whole, on the mesh of the parameters if they lie on one."""
    mesh = getattr(getattr(jax.tree.leaves(params)[0], "sharding", None), "mesh", None)
    if not isinstance(mesh, Mesh) or mesh.size == 1:
        return batch
    return jax.tree.map(_put_from_host, batch, batch_shardings(batch, mesh))


def _put_from_host(x: Any, sharding: NamedSharding) -> Array:
    """What every host has whole, as it is to lie."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    return jax.make_array_from_callback(x.shape, sharding, lambda at: np.asarray(x)[at])


def replicate(x: Any, mesh: Mesh) -> Array:
    """A number or array that all hosts have, on every device of the mesh."""
    return _put_from_host(np.asarray(x), replicated_sharding(mesh))


def serialize_on_cpu(result: Any) -> Any:
    """What a program gives; on a CPU that stands for several devices, once it is there.

    Several programs with collectives under way at once are a deadlock there: each holds threads while it waits for
    others. Programs that take what the one before them gave need no such care.
    """
    devices = jax.tree.leaves(result)[0].devices()
    return jax.block_until_ready(result) if len(devices) > 1 and jax.default_backend() == "cpu" else result
