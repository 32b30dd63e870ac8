"""Batches and numbers put onto a mesh, by one process, or by several processes that each have a part."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxlm.distributed.sharding import AnyMesh, num_batch_shards, partition_spec, replicated_sharding
from jaxlm.types import Array


def batch_shardings(batch: Any, mesh: AnyMesh) -> Any:
    """The sharding of each field of a batch: rows over `data` and `fsdp`, positions over `sequence`."""
    names = ("batch", "sequence", *(None,) * 8)
    return jax.tree.map(lambda x: NamedSharding(mesh, partition_spec(names[: x.ndim], x.shape, mesh)), batch)


def host_rows(mesh: Mesh) -> tuple[int, int]:
    """(index, parts): this host's devices hold the index-th of `parts` equal parts of a batch's rows; else (0, 1)."""
    shards = num_batch_shards(mesh)
    devices = mesh.devices.reshape(shards, -1)  # (data * fsdp, sequence * tensor): rows are split over the first axis
    own = [row for row in range(shards) if any(d.process_index == jax.process_index() for d in devices[row])]
    first, size = own[0], len(own)
    if own != list(range(first, first + size)) or first % size or shards % size:
        return 0, 1
    return first // size, shards // size


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch, of which this host has the rows of its part (see `host_rows`), as arrays on the mesh."""
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
    """A batch that every host has whole, on the mesh of the parameters if they have one."""
    mesh = getattr(getattr(jax.tree.leaves(params)[0], "sharding", None), "mesh", None)
    if not isinstance(mesh, Mesh) or mesh.size == 1:
        return batch
    return jax.tree.map(_put_from_host, batch, batch_shardings(batch, mesh))


def _put_from_host(x: Any, sharding: NamedSharding) -> Array:
    """An array that every host has whole, with this sharding."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    return jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x)[index])


def replicate(x: Any, mesh: Mesh) -> Array:
    """A number or array that every host has, whole on every device of the mesh."""
    return _put_from_host(np.asarray(x), replicated_sharding(mesh))


def serialize_on_cpu(result: Any) -> Any:
    """Wait for the result of a program if a CPU simulates several devices."""
    # There, programs with collectives that run at the same time deadlock: each holds threads while it waits for the
    # others. A program that reads the result of the one before it needs no barrier.
    devices = jax.tree.leaves(result)[0].devices()
    return jax.block_until_ready(result) if len(devices) > 1 and jax.default_backend() == "cpu" else result
