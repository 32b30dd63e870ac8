"""The correspondence of parameters and the arrays of a file: one table per family, used in both directions.

Our layers are stacked and kernels are (in, out). In a file each layer has arrays of its own, mostly (out, in), and an
array may hold several of our parameters, concatenated on the last axis.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxlm.errors import UserError, list_some
from jaxlm.pytree import named_leaves
from jaxlm.types import Params


@dataclass(frozen=True)
class WeightMap:
    """One array of a file and the parameters that it holds.

    Attributes:
      hf_name: its name; `{}` is the number of the layer.
      paths: paths of parameters, as in "stack/layers/ffn/up/kernel"; several are concatenated on the last axis.
      transpose: the array is (out, in).
      leading_axis: the array has a first axis of size 1.
    """

    hf_name: str
    paths: tuple[str, ...]
    transpose: bool = False
    leading_axis: bool = False

    def hf_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of the array of one layer, from those of our parameters."""
        shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        return (1, *shape) if self.leading_axis else shape[::-1] if self.transpose else shape


def map_linear(hf_prefix: str, path: str, bias: bool = True) -> list[WeightMap]:
    """A linear layer, whose kernel is (out, in) in the file."""
    kernel = WeightMap(f"{hf_prefix}.weight", (f"{path}/kernel",), transpose=True)
    return [kernel, WeightMap(f"{hf_prefix}.bias", (f"{path}/bias",))] if bias else [kernel]


def map_norm(hf_prefix: str, path: str, bias: bool = True) -> list[WeightMap]:
    """A layer norm, or an RMS norm, which has no bias."""
    scale = WeightMap(f"{hf_prefix}.weight", (f"{path}/scale",))
    return [scale, WeightMap(f"{hf_prefix}.bias", (f"{path}/bias",))] if bias else [scale]


def map_attention(
    hf_prefix: str, path: str, hf_projections: Sequence[str], qkv_bias: bool = True, out_bias: bool = True
) -> list[WeightMap]:
    """The four linear layers of attention: `hf_projections` names query, key, value and out."""
    entries = [map_linear(f"{hf_prefix}.{name}", f"{path}/{part}", qkv_bias)
               for name, part in zip(hf_projections[:3], ("query", "key", "value"), strict=True)]  # fmt: skip
    return [*sum(entries, []), *map_linear(f"{hf_prefix}.{hf_projections[3]}", f"{path}/out", out_bias)]


@dataclass(frozen=True)
class WeightSlot:
    """One array of a file: its name and shape, and the slices of our parameters that it holds."""

    weight_map: WeightMap
    name: str
    shape: tuple[int, ...]
    slices: tuple[np.ndarray, ...]

    def load(self, tensor: np.ndarray) -> None:
        """Copy an array of the file into the parameters."""
        tensor = np.asarray(tensor)  # a quantized one is read here
        tensor = tensor[0] if self.weight_map.leading_axis else tensor.T if self.weight_map.transpose else tensor
        offset = 0
        for part in self.slices:
            part[...] = tensor[..., offset : offset + part.shape[-1]]
            offset += part.shape[-1]

    def store(self) -> np.ndarray:
        """The array of the file, from the parameters."""
        tensor = self.slices[0] if len(self.slices) == 1 else np.concatenate(self.slices, axis=-1)
        return tensor[None] if self.weight_map.leading_axis else tensor.T if self.weight_map.transpose else tensor


def params_from_tensors(
    weight_maps: Sequence[WeightMap], abstract: Params, tensors: Mapping[str, np.ndarray], location: str
) -> Params:
    """Parameters like `abstract` from the arrays of a file. Raises UserError with all arrays that do not fit."""
    shapes = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), abstract)  # no memory
    slots = {slot.name: slot for slot in _weight_slots(weight_maps, shapes)}
    if integers := [name for name in tensors if tensors[name].dtype.kind not in "fV"]:
        arrays = list_some([f"{name} {tensors[name].dtype}" for name in integers], limit=3)
        raise UserError(
            f"{location}: the weights are quantized ({arrays}), which jaxlm does not read: fetch the model in float32, "
            "float16 or bfloat16"
        )
    wrong = [f"{name} {slot.shape} is missing" for name, slot in slots.items() if name not in tensors]
    for name, slot in slots.items():
        if name in tensors and tensors[name].shape != slot.shape:
            wrong.append(f"{name} has shape {tensors[name].shape}, expected {slot.shape}")
    wrong += [f"{name} {tensors[name].shape} has no place in the model" for name in tensors if name not in slots]
    if wrong:
        listed = list_some(wrong, limit=20, separator="\n  ")
        raise UserError(
            f"{location}: the arrays do not fit the model that its config.json describes:\n  {listed}\n"
            "fetch both files from one place"
        )
    for name in slots:
        if tensors[name].dtype == np.float64 and not np.array_equal(tensors[name].astype(np.float32), tensors[name]):
            raise UserError(f"{location}: {name} is float64 with digits beyond float32: save the model in float32")
    params = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
    for slot in _weight_slots(weight_maps, params):
        slot.load(tensors[slot.name])
    return params


def params_to_tensors(weight_maps: Sequence[WeightMap], params: Params) -> dict[str, np.ndarray]:
    """The arrays of a file, from parameters. Raises UserError if the table does not name every parameter."""
    params = jax.tree.map(np.asarray, params)
    return {slot.name: slot.store() for slot in _weight_slots(weight_maps, params)}


def _weight_slots(weight_maps: Sequence[WeightMap], params: Params) -> Iterator[WeightSlot]:
    leaves = named_leaves(params)
    named = {path for entry in weight_maps for path in entry.paths}
    if named != set(leaves):
        raise UserError(
            f"parameters without a place in the file: {sorted(set(leaves) - named)}; places without a parameter: "
            f"{sorted(named - set(leaves))}: the file format has no arrays for this form of the model"
        )
    for entry in weight_maps:
        parts = [leaves[path] for path in entry.paths]
        stacked = "{}" in entry.hf_name
        for layer in range(len(parts[0]) if stacked else 1):
            slices = tuple(leaf[layer] if stacked else leaf for leaf in parts)
            name = entry.hf_name.format(layer) if stacked else entry.hf_name
            yield WeightSlot(entry, name, entry.hf_shape([part.shape for part in slices]), slices)
