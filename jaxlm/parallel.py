"""The one place that knows devices: which array lies where. Layers and losses never mention a mesh.

Today's table has one axis, "data": rows of a batch are split over it, everything else is on every device. The sums and
counts of a loss then add up over devices by themselves, since `jit` sees global arrays.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh of one axis over all devices, or the first so many."""
    chosen = jax.devices()[:devices]
    return jax.make_mesh((len(chosen),), (DATA,), axis_types=(AxisType.Auto,), devices=chosen)


def split_rows(tree: Any, mesh: Mesh) -> Any:
    """Axis 0 of every leaf over the mesh: batches and decoding states. Rows must divide by the devices."""
    return jax.device_put(tree, rows(mesh))


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of what has the batch as axis 0."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: parameters, optimizer state, scalars."""
    return NamedSharding(mesh, PartitionSpec())


def devices_of(x: Any) -> int:
    """How many devices an array may be spread over, also while it is being traced; 1 where that is not known."""
    return max(1, jax.typeof(x).sharding.mesh.size)


def with_sharding(abstract: Any, sharding: NamedSharding) -> Any:
    """ShapeDtypeStructs that say where they shall be restored to."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
