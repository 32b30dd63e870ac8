"""The one place that knows devices: which array lies where. Layers and losses never mention a mesh.

An array's dimensions have names (`batch`, `heads`, `embed`, ...), and `RULES` says over which axes of the mesh (see
`jaxlm.distributed.mesh_axes`) each is split. Of parameters, and of everything shaped like them, `LEAVES` has
the names by path; of activations, `constrain` is told them. `jit` sees global arrays, so sums over a
dimension that is split add up over devices by themselves. Where axes do not divide a dimension it is split
over the first of them, or left whole.

No mesh is passed around: an array knows its own, also while it is being traced, and without one nothing here does
anything.
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
"""Name of a dimension -> the axes of the mesh that it is split over. A name that is not here is not split."""

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

What is not here is split like a matrix (..., embed) if it has two dimensions or more. So are those of recurrent
networks: a cut through the gates of a cell, which lie side by side, would move them at every step.
"""

STATE_AXES = {"G": "heads"}
"""Shape letter in the name of a field of a decoding state, as in `key_BGHCK` -> the name of that dimension."""

UNCONSTRAINED = "free"
"""The name of a dimension that `constrain` says nothing of."""

AnyMesh = Mesh | AbstractMesh


def make_mesh(axis_sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all of AXES over the devices (default: all), or over the first so many where fewer are asked for.

    Raises UserError where the devices cannot be arranged so.
    """
    devices = jax.devices() if devices is None else devices
    shape = resolve_mesh_shape(axis_sizes, len(devices))
    size = math.prod(shape.values())
    if size < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"the mesh has {size} devices and the {jax.process_count()} processes {len(devices)}: "
            "with several processes all devices take part, leave the size of one axis out"
        )
    return Mesh(arrange_devices(devices[:size], shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange_devices(devices: Sequence[Any], shape: dict[str, int]) -> np.ndarray:
    """The devices as an array of that shape. Only `data`, or else `fsdp`, goes from slice to slice of TPUs: the network
    between slices is slow. Raises UserError where neither divides by the number of slices."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        try:
            return mesh_utils.create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True)
        except AssertionError:  # places that JAX's rules do not know: in the order that they come in
            return np.asarray(devices).reshape(tuple(shape.values()))
    across = next((axis for axis in (DATA, FSDP) if shape[axis] % slices == 0), None)
    if across is None:
        raise UserError(
            f"{slices} slices, and the mesh has data={shape[DATA]}, fsdp={shape[FSDP]}: one of them has to be a "
            f"multiple of {slices}, since only these two go from slice to slice"
        )
    inside = shape | {across: shape[across] // slices}
    outside = dict.fromkeys(shape, 1) | {across: slices}
    return mesh_utils.create_hybrid_device_mesh(
        tuple(inside.values()), tuple(outside.values()), devices, allow_split_physical_axes=True
    )


def num_batch_shards(mesh: AnyMesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES["batch"])


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh whose rows are dealt out to all devices, or to the first so many."""
    return make_mesh({} if devices is None else {DATA: devices})


def partition_spec(
    names: Sequence[str | None], shape: Sequence[int], mesh: AnyMesh, excluded_axis: str = ""
) -> PartitionSpec:
    """How an array with dimensions of these names and sizes is split, but for the axis `without`."""

    def axes_of(name: str | None, size: int) -> Any:
        if name == UNCONSTRAINED:
            return PartitionSpec.UNCONSTRAINED
        axes = tuple(
            a for a in LOGICAL_AXIS_RULES.get(name or "", ()) if a != excluded_axis and mesh.shape.get(a, 1) > 1
        )
        while axes and size % math.prod(mesh.shape[axis] for axis in axes):
            axes = axes[:-1]
        return axes or None

    parts = [axes_of(*dimension) for dimension in zip(names, shape, strict=True)]
    while parts and parts[-1] is None:  # as JAX writes the sharding of what a jitted function returns
        parts.pop()
    return PartitionSpec(*parts)


def logical_axes(path: str, rank: int) -> tuple[str | None, ...]:
    """The names of the dimensions of a leaf, from the end of its path: `opt_state/0/mu/stack/layers/ffn/up/kernel`."""
    rank -= (stacked := "layers" in path.split("/") and rank > 0)
    found = (names for pattern, names in PARAM_AXES if re.search(rf"(^|/){pattern}$", path) and len(names) == rank)
    names = next(found, (None,) * (rank - 1) + ("embed",) if rank > 1 else (None,) * rank)
    return (None,) * stacked + tuple(names)


def constrain(x: Array, *names: str | None) -> Array:
    """x, and while it is traced the word that its dimensions, so named, are split as `RULES` says."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.size <= 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition_spec(names, x.shape, mesh)))


def constrain_state(state: Any) -> Any:
    """A decoding state, constrained: its rows, and the heads of what is kept for each (see `STATE_LETTERS`)."""
    return jax.tree_util.tree_map_with_path(lambda path, x: constrain(x, *_decode_state_axes(path, x.ndim)), state)


def decode_state_shardings(state: Any, mesh: AnyMesh) -> Any:
    """Where each leaf of a decoding state lies."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(_decode_state_axes(path, leaf.ndim), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, state)


def _decode_state_axes(path: tuple, rank: int) -> tuple[str | None, ...]:
    """The names of a leaf's dimensions, from the shape letters that end its own name; the first one is always rows."""
    letters = _path_name(path).rpartition("_")[2]
    if rank == 0 or len(letters) != rank or not letters.isupper():
        return ("batch", *(None,) * rank)[:rank]
    return ("batch", *(STATE_AXES.get(letter) for letter in letters[1:]))


def platform_of(x: Any) -> str:
    """The platform ("cpu", "gpu", "tpu") of the program that is being traced with x in it."""
    device = getattr(getattr(jax.typeof(x).sharding, "mesh", None), "abstract_device", None)
    return device.platform if device is not None else jax.default_backend()


def is_single_device(x: Any) -> bool:
    """Whether x is not on a mesh of several devices."""
    return math.prod(jax.typeof(x).sharding.mesh.shape.values()) == 1


def num_shards(x: Any, name: str) -> int:
    """Over how many devices a dimension of that name may be split; 1 where that is not known."""
    mesh = jax.typeof(x).sharding.mesh
    return math.prod(mesh.shape.get(axis, 1) for axis in LOGICAL_AXIS_RULES[name])


def all_gather_params(params: Any, dtype: Any = None) -> Any:
    """The parameters whole along `fsdp`, for use; their gradients come back split as the parameters are.

    Kernels travel in `dtype`, that of the products that they are for. Layers of a stack are left: it gathers each when
    its turn comes.
    """

    def each(path: tuple, leaf: Any) -> Any:
        name, mesh = _path_name(path), jax.typeof(leaf).sharding.mesh
        if mesh.shape.get(FSDP, 1) == 1 or "layers" in name.split("/"):
            return leaf
        names = logical_axes(name, leaf.ndim)
        stored, used = (NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, axis)) for axis in ("", FSDP))
        if stored == used:
            return leaf
        leaf = leaf.astype(dtype) if dtype is not None and name.endswith("kernel") else leaf
        # Backwards, a gradient is first added up where it was made and then cut, like its parameter.
        return jax.lax.with_sharding_constraint(_shard_gradient(stored, leaf), used)

    return jax.tree_util.tree_map_with_path(each, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _shard_gradient(stored: NamedSharding, x: Array) -> Array:
    return x


_shard_gradient.defvjp(
    lambda stored, x: (x, None), lambda stored, _, d_x: (jax.lax.with_sharding_constraint(d_x, stored),)
)


def save_all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """Policy of `jax.checkpoint`: keep everything for the backward pass but gathered parameters."""
    if primitive.name != "sharding_constraint":
        return True
    return any(FSDP in (part if isinstance(part, tuple) else (part,)) for part in params["sharding"].spec)


def train_state_shardings(state: Any, mesh: AnyMesh, shard_optimizer_state: bool = False) -> Any:
    """Where each leaf of a training state lies: parameters and all that is shaped like them by `LEAVES`, `carry` by
    rows. With `split_moments` the optimizer's part is also split over `data` (Rajbhandari et al. 2020, stage 1)."""

    def place(path: tuple, leaf: Any) -> NamedSharding:
        name = _path_name(path)
        if name.split("/")[0] == "carry":
            return NamedSharding(mesh, partition_spec(("batch", *(None,) * (leaf.ndim - 1)), leaf.shape, mesh))
        spec = partition_spec(logical_axes(name, leaf.ndim), leaf.shape, mesh)
        if shard_optimizer_state and name.startswith("opt_state/"):
            spec = _shard_over_data(spec, leaf.shape, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, state)


def _shard_over_data(spec: PartitionSpec, shape: Sequence[int], mesh: AnyMesh) -> PartitionSpec:
    """The same, and the last dimension that can be is split over `data` too."""
    parts = [*spec, *(None,) * (len(shape) - len(spec))]
    for at in reversed(range(len(shape))):
        more = (*(parts[at] or ()), DATA)
        if shape[at] % math.prod(mesh.shape.get(axis, 1) for axis in more) == 0:
            return PartitionSpec(*parts[:at], more, *parts[at + 1 : len(spec)])
    return spec


def unsharded_params(params: Any, mesh: AnyMesh) -> list[str]:
    """A line for each parameter of which a dimension is left whole because its axes do not divide it."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = logical_axes(_path_name(path), leaf.ndim)
        spec = partition_spec(names, leaf.shape, mesh)
        for at, (name, size) in enumerate(zip(names, leaf.shape, strict=True)):
            parts = {axis: mesh.shape[axis] for axis in LOGICAL_AXIS_RULES.get(name or "", ()) if mesh.shape[axis] > 1}
            if parts and (at >= len(spec) or spec[at] is None):
                asked = ", ".join(f"{axis}={count}" for axis, count in parts.items())
                lines.append(f"{_path_name(path)} ({size} by {asked})")
    return lines


def shard_rows(tree: Any, mesh: Mesh) -> Any:
    """Axis 0 of every leaf over the mesh: decoding states and their like. Rows must divide by the devices."""
    return jax.device_put(tree, row_sharding(mesh))


def row_sharding(mesh: AnyMesh) -> NamedSharding:
    """The sharding of what has the batch as axis 0."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL_AXIS_RULES["batch"]))


def replicated_sharding(mesh: AnyMesh) -> NamedSharding:
    """The sharding of what every device holds whole: scalars."""
    return NamedSharding(mesh, PartitionSpec())


def with_shardings(abstract: Any, sharding: Any) -> Any:
    """ShapeDtypeStructs that say where they shall be restored to: all to one sharding, or each to its own."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, abstract)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, sharding)


def _path_name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
