"""Which of our parameters is which array of a file: one table a family, read in both directions.

Ours are stacked, kernels are (in, out); in a file every layer has its own array, mostly (out, in), and sometimes one
array holds several of ours side by side.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxlm.errors import UserError
from jaxlm.types import Params


@dataclass(frozen=True)
class WeightMap:
    """One array of a file and the parameters that it holds.

    Attributes:
      theirs: its name; `{}` is the number of the layer.
      ours: paths of parameters, as in "stack/layers/ffn/up/kernel"; several lie side by side on the last axis.
      transpose: it lies (out, in).
      lead: it has an axis of one more, in front.
    """

    hf_name: str
    paths: tuple[str, ...]
    transpose: bool = False
    leading_axis: bool = False

    def hf_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape in the file, of one layer, from those of ours."""
        shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        return (1, *shape) if self.leading_axis else shape[::-1] if self.transpose else shape


@dataclass(frozen=True)
class WeightSlot:
    """One array of a file: its name and shape there, and the slices of our parameters that it holds."""

    weight_map: WeightMap
    name: str
    shape: tuple[int, ...]
    slices: tuple[np.ndarray, ...]

    def load(self, tensor: np.ndarray) -> None:
        """File to parameters."""
        tensor = tensor[0] if self.weight_map.leading_axis else tensor.T if self.weight_map.transpose else tensor
        at = 0
        for part in self.slices:
            part[...] = tensor[..., at : at + part.shape[-1]]
            at += part.shape[-1]

    def store(self, dtype: Any) -> np.ndarray:
        """Parameters to file."""
        tensor = self.slices[0] if len(self.slices) == 1 else np.concatenate(self.slices, axis=-1)
        tensor = tensor[None] if self.weight_map.leading_axis else tensor.T if self.weight_map.transpose else tensor
        return tensor.astype(dtype, copy=False)


def params_from_tensors(
    weight_maps: Sequence[WeightMap], abstract: Params, tensors: Mapping[str, np.ndarray], location: str
) -> Params:
    """Parameters in the shapes and dtypes of `abstract`, from the arrays of a file.

    Raises UserError with all names and shapes that are missing, left over or different.
    """
    params = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), abstract)
    places = list(_weight_slots(weight_maps, params))
    wrong = [f"{place.name} {place.shape} is missing" for place in places if place.name not in tensors]
    for place in places:
        if place.name in tensors and tensors[place.name].shape != place.shape:
            wrong.append(f"{place.name} has shape {tensors[place.name].shape}, expected {place.shape}")
    wanted = {place.name for place in places}
    wrong += [f"{name} {tensors[name].shape} has no place in the model" for name in tensors if name not in wanted]
    if wrong:
        listed = "\n  ".join(wrong[:20] + ([f"and {len(wrong) - 20} more"] if len(wrong) > 20 else []))
        raise UserError(
            f"{location}: the arrays do not fit the model that its config.json describes:\n  {listed}\n"
            "fetch both files from one place"
        )
    for place in places:
        place.load(tensors[place.name])
    return params


def params_to_tensors(weight_maps: Sequence[WeightMap], params: Params, dtype: Any) -> dict[str, np.ndarray]:
    """The arrays of a file, from parameters. Raises UserError if the table does not name every parameter."""
    params = jax.tree.map(np.asarray, params)
    return {place.name: place.store(dtype) for place in _weight_slots(weight_maps, params)}


def _weight_slots(weight_maps: Sequence[WeightMap], params: Params) -> Iterator[WeightSlot]:
    leaves = {
        "/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }  # fmt: skip
    named = {path for entry in weight_maps for path in entry.paths}
    if named != set(leaves):
        raise UserError(
            f"parameters without a place in the file: {sorted(set(leaves) - named)}; places without a parameter: "
            f"{sorted(named - set(leaves))}: this model has a form that the format cannot say"
        )
    for entry in weight_maps:
        found = [leaves[path] for path in entry.paths]
        stacked = "{}" in entry.hf_name
        for layer in range(len(found[0]) if stacked else 1):
            slices = tuple(leaf[layer] if stacked else leaf for leaf in found)
            name = entry.hf_name.format(layer) if stacked else entry.hf_name
            yield WeightSlot(entry, name, entry.hf_shape([part.shape for part in slices]), slices)
