"""The sharding of arrays over a mesh of devices. Layers and losses never mention a mesh.

The dimensions of an array have logical names (`batch`, `heads`, `embed`, ...), and LOGICAL_AXIS_RULES maps each name to
axes of the mesh (see `jaxlm.distributed.mesh_axes`). Parameters, and all trees of their shapes, get the names by path
from PARAM_AXES; activations get them from `constrain`. `jit` sees global arrays, so a sum over a split dimension adds
up over the devices. A dimension that the axes do not divide is split over the first of them, or not at all.

No mesh is passed around: an array knows its mesh, also while it is traced. Without a mesh all of this does nothing.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.distributed.mesh_axes import AXES, DATA, FSDP, SEQUENCE, TENSOR, resolve_mesh_shape
from jaxlm.errors import UserError
from jaxlm.pytree import map_named, named_leaves
from jaxlm.types import Array

LOGICAL_AXIS_RULES: dict[str, tuple[str, ...]] = {
    "batch": (DATA, FSDP),
    "sequence": (SEQUENCE,),
    "group": (DATA, FSDP, SEQUENCE),  # of neighbouring tokens: see `jaxlm.losses`
    "vocab": (TENSOR,),
    "heads": (TENSOR,),
    "hidden": (TENSOR,),
    "embed": (FSDP,),
}
"""Logical name of a dimension -> the axes of the mesh that split it. Other names are not split."""

PARAM_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/(query|key|value)/kernel", ("embed", "heads")),
    (r"attention/(query|key|value)/bias", ("heads",)),
    (r"attention/out/kernel", ("heads", "embed")),
    (r"ffn/(up|gate)/kernel", ("embed", "hidden")),
    (r"ffn/(up|gate)/bias", ("hidden",)),
    (r"ffn/down/kernel", ("hidden", "embed")),
    (r"(source_embedding|embedding|output)", ("vocab", "embed")),
    (r"output_bias", ("vocab",)),
)
"""The end of a parameter's path -> the names of its dimensions. A stack of layers has one more in front.

All other parameters of two dimensions or more are split like a matrix (..., embed). This includes recurrent networks:
the gates of a cell are adjacent in one matrix, and splitting them would move them at every step.
"""

STATE_AXES = {"G": "heads"}  # shape letter in a field's name of a decoding state, as `key_BGHCK` -> that dimension
UNCONSTRAINED = "free"  # the name of a dimension whose sharding `constrain` leaves to XLA

AnyMesh = Mesh | AbstractMesh


def make_mesh(axis_sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with all of AXES over the devices (default: all), or over as many as the product of the sizes."""
    devices = jax.devices() if devices is None else devices
    shape = resolve_mesh_shape(axis_sizes, len(devices))
    size = math.prod(shape.values())
    if size < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"the mesh has {size} devices and the {jax.process_count()} processes {len(devices)}: "
            "several processes must use all devices: leave the size of one axis out"
        )
    return Mesh(arrange_devices(devices[:size], shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange_devices(devices: Sequence[Any], shape: dict[str, int]) -> np.ndarray:
    """The devices as an array of this shape; only `data`, or else `fsdp`, may cross the slow network between slices.

    Raises UserError if neither is a multiple of the number of slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        try:
            return mesh_utils.create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True)
        except AssertionError:  # a topology that JAX does not know: in the given order
            return np.asarray(devices).reshape(tuple(shape.values()))
    across = next((axis for axis in (DATA, FSDP) if shape[axis] % slices == 0), None)
    if across is None:
        raise UserError(
            f"{slices} slices, and the mesh has data={shape[DATA]}, fsdp={shape[FSDP]}: one of them must be a "
            f"multiple of {slices}, since only these two axes may cross slices"
        )
    inside = shape | {across: shape[across] // slices}
    outside = dict.fromkeys(shape, 1) | {across: slices}
    return mesh_utils.create_hybrid_device_mesh(
        tuple(inside.values()), tuple(outside.values()), devices, allow_split_physical_axes=True
    )


def num_batch_shards(mesh: AnyMesh) -> int:
    """The number of devices over which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES["batch"])


def num_token_shards(mesh: AnyMesh) -> int:
    """The number of devices over which the tokens of a batch, its rows and their positions, are split."""
    return num_batch_shards(mesh) * mesh.shape[SEQUENCE]


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh that splits the rows of a batch over all devices, or over the first `devices` of them."""
    return make_mesh({} if devices is None else {DATA: devices})


def partition_spec(
    names: Sequence[str | None], shape: Sequence[int], mesh: AnyMesh, excluded_axis: str = ""
) -> PartitionSpec:
    """The partition of an array with dimensions of these names and sizes, without the axis `excluded_axis`."""

    def axes_of(name: str | None, size: int) -> Any:
        if name == UNCONSTRAINED:
            return PartitionSpec.UNCONSTRAINED
        allowed = (axis for axis in LOGICAL_AXIS_RULES.get(name or "", ()) if axis != excluded_axis)
        axes = tuple(axis for axis in allowed if mesh.shape.get(axis, 1) > 1)
        while axes and size % math.prod(mesh.shape[axis] for axis in axes):
            axes = axes[:-1]
        return axes or None

    parts = [axes_of(*dimension) for dimension in zip(names, shape, strict=True)]
    while parts and parts[-1] is None:  # the form of JAX's own specs: equal shardings must compare as equal
        parts.pop()
    return PartitionSpec(*parts)


def logical_axes(path: str, rank: int) -> tuple[str | None, ...]:
    """The names of the dimensions of a leaf, from the end of its path: `opt_state/0/mu/stack/layers/ffn/up/kernel`."""
    rank -= (stacked := "layers" in path.split("/") and rank > 0)  # (layers, ...): one dimension without a name
    matching = (of for pattern, of in PARAM_AXES if len(of) == rank and re.search(rf"(^|/){pattern}$", path))
    names = next(matching, (*(None,) * (rank - 1), "embed") if rank > 1 else (None,) * rank)
    return (None,) * stacked + names


def constrain(x: Array, *names: str | None) -> Array:
    """Constrain the sharding of `x` by the logical names of its dimensions. Does nothing without a mesh."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.size <= 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition_spec(names, x.shape, mesh)))


def constrain_state(state: Any) -> Any:
    """Constrain a decoding state: its rows, and the heads of its caches (see STATE_AXES)."""
    return map_named(lambda name, x: constrain(x, *_decode_state_axes(name, x.ndim)), state)


def decode_state_shardings(state: Any, mesh: AnyMesh) -> Any:
    """The sharding of each leaf of a decoding state."""

    def sharding(name: str, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(_decode_state_axes(name, leaf.ndim), leaf.shape, mesh))

    return map_named(sharding, state)


def _decode_state_axes(name: str, rank: int) -> tuple[str | None, ...]:
    """The names of a leaf's dimensions, from the shape letters at the end of its name; the first is always the rows."""
    letters = name.rpartition("_")[2]
    if rank == 0 or len(letters) != rank or not letters.isupper():
        return ("batch", *(None,) * rank)[:rank]
    return ("batch", *(STATE_AXES.get(letter) for letter in letters[1:]))


def platform_of(x: Any) -> str:
    """The platform ("cpu", "gpu", "tpu") of the program in which x is traced."""
    device = _abstract_device(x)
    return device.platform if device is not None else jax.default_backend()


def device_kind_of(x: Any) -> str:
    """The kind of the devices of the program in which x is traced, as JAX names it."""
    device = _abstract_device(x)
    return device.device_kind if device is not None else jax.devices()[0].device_kind


def _abstract_device(x: Any) -> Any:
    return getattr(getattr(jax.typeof(x).sharding, "mesh", None), "abstract_device", None)


def is_single_device(x: Any) -> bool:
    """True if x is not on a mesh of several devices."""
    return math.prod(jax.typeof(x).sharding.mesh.shape.values()) == 1


def num_shards(x: Any, name: str) -> int:
    """The number of devices over which a dimension of this name may be split; 1 if x has no mesh."""
    mesh = jax.typeof(x).sharding.mesh
    return math.prod(mesh.shape.get(axis, 1) for axis in LOGICAL_AXIS_RULES[name])


def all_gather_params(params: Any, dtype: Any = None) -> Any:
    """All-gather the parameters along `fsdp`, kernels in `dtype`, that of their products; gradients come back sharded.

    The layers of a stack stay sharded: the stack gathers one layer at a time.
    """

    def gather(name: str, leaf: Any) -> Any:
        mesh = jax.typeof(leaf).sharding.mesh
        if mesh.shape.get(FSDP, 1) == 1 or "layers" in name.split("/"):
            return leaf
        names = logical_axes(name, leaf.ndim)
        stored, used = (NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, axis)) for axis in ("", FSDP))
        if stored == used:
            return leaf
        leaf = leaf.astype(dtype) if dtype is not None and name.endswith("kernel") else leaf
        # In the backward pass a gradient is first summed over the devices and then sharded like its parameter.
        return jax.lax.with_sharding_constraint(_shard_gradient(stored, leaf), used)

    return map_named(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _shard_gradient(stored: NamedSharding, x: Array) -> Array:
    return x


_shard_gradient.defvjp(
    lambda stored, x: (x, None), lambda stored, _, d_x: (jax.lax.with_sharding_constraint(d_x, stored),)
)


def save_all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """Policy of `jax.checkpoint`: save everything for the backward pass but gathered parameters."""
    if primitive.name != "sharding_constraint":
        return True
    return any(FSDP in (part if isinstance(part, tuple) else (part,)) for part in params["sharding"].spec)


def train_state_shardings(state: Any, mesh: AnyMesh, shard_optimizer_state: bool = False) -> Any:
    """The sharding of each leaf of a training state: `carry` by rows, all others by PARAM_AXES.

    With `shard_optimizer_state` the optimizer state is also split over `data` (ZeRO stage 1, Rajbhandari et al. 2020).
    """

    def sharding(name: str, leaf: Any) -> NamedSharding:
        if name.split("/")[0] == "carry":
            return NamedSharding(mesh, partition_spec(("batch", *(None,) * (leaf.ndim - 1)), leaf.shape, mesh))
        spec = partition_spec(logical_axes(name, leaf.ndim), leaf.shape, mesh)
        if shard_optimizer_state and name.startswith("opt_state/"):
            spec = _shard_over_data(spec, leaf.shape, mesh)
        return NamedSharding(mesh, spec)

    return map_named(sharding, state)


def _shard_over_data(spec: PartitionSpec, shape: Sequence[int], mesh: AnyMesh) -> PartitionSpec:
    """The partition with its last divisible dimension split over `data` too."""
    parts = [*spec, *(None,) * (len(shape) - len(spec))]
    for dimension in reversed(range(len(shape))):
        axes = (*(parts[dimension] or ()), DATA)
        if shape[dimension] % math.prod(mesh.shape.get(axis, 1) for axis in axes) == 0:
            return PartitionSpec(*parts[:dimension], axes, *parts[dimension + 1 : len(spec)])
    return spec


def unsharded_params(params: Any, mesh: AnyMesh) -> list[str]:
    """A line for each parameter with a dimension that is not split because its axes do not divide it."""
    lines = []
    for path, leaf in named_leaves(params).items():
        names = logical_axes(path, leaf.ndim)
        spec = partition_spec(names, leaf.shape, mesh)
        for dimension, (name, size) in enumerate(zip(names, leaf.shape, strict=True)):
            axes = [axis for axis in LOGICAL_AXIS_RULES.get(name or "", ()) if mesh.shape[axis] > 1]
            if axes and (dimension >= len(spec) or spec[dimension] is None):
                sizes = ", ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
                lines.append(f"{path} ({size} by {sizes})")
    return lines


def row_sharding(mesh: AnyMesh) -> NamedSharding:
    """The sharding of arrays with the batch as axis 0."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL_AXIS_RULES["batch"]))


def replicated_sharding(mesh: AnyMesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def with_shardings(abstract: Any, sharding: Any) -> Any:
    """The ShapeDtypeStructs with one sharding for all, or with a tree of shardings."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, abstract)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, sharding)
