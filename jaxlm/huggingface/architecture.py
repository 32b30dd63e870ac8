"""What a family of published models is: its config in their words and in ours, and where its parameters lie."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlm.errors import UserError
from jaxlm.huggingface.weight_map import WeightMap

HFConfig = Mapping[str, Any]

HF_ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu",
    "swish": "silu",
}  # fmt: skip
"""Their names to ours; the first name of each is written."""


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
      architecture, kind: the class in Transformers, and `model_type`.
      to_model: config.json -> our model. Raises UserError on what the model cannot do.
      to_config: our model -> the entries of config.json that it decides.
      table: our model -> where each parameter lies.
      prefix: what names begin with in the file of the whole model, and not in that of its trunk.
      ignored: arrays that the table may leave out, computed or of no use, as regular expressions.
      aliases: other names of one array, which are the same numbers where both are there: our model -> other: name.
      stored: what the names of the arrays tell of the model that its config does not: (model, names) -> model.
      bare: whether its own files leave the prefix out: those of a trunk.
    """

    hf_class: str
    model_type: str
    to_model: Callable[[HFConfig], Any]
    to_config: Callable[[Any], dict[str, Any]]
    weight_maps: Callable[[Any], list[WeightMap]]
    prefix: str = ""
    ignored_patterns: tuple[str, ...] = ()
    aliases: Callable[[Any], dict[str, str]] = field(default=lambda model: {})
    adjust_to_weights: Callable[[Any, Collection[str]], Any] = field(default=lambda model, names: model)
    trunk_only: bool = False


def require_entry(config: HFConfig, name: str) -> Any:
    """The entry of a config. Raises UserError where it is missing."""
    if config.get(name) is None:
        raise UserError(f"config.json has no {name}: fetch it again, or add the entry")
    return config[name]


def require_value(config: HFConfig, **known: Any) -> None:
    """Raises UserError where an entry is there and is not the one value that our model can do."""
    for name, value in known.items():
        if config.get(name, value) not in (value, None):
            raise UserError(f"config.json has {name} = {config[name]!r}; jaxlm can do {value!r} only")


def from_hf_activation(name: str) -> Any:
    """Our name of an activation. Raises UserError on an unknown one."""
    if name not in HF_ACTIVATIONS:
        raise UserError(f"config.json asks for the activation {name!r}; jaxlm knows {', '.join(HF_ACTIVATIONS)}")
    return HF_ACTIVATIONS[name]


def to_hf_activation(name: str) -> str:
    """Their name of an activation, or ours where they have none."""
    return next((theirs for theirs, ours in HF_ACTIVATIONS.items() if ours == name), name)


def map_linear(hf_prefix: str, path: str, bias: bool = True) -> list[WeightMap]:
    """An affine map that lies (out, in)."""
    kernel = WeightMap(f"{hf_prefix}.weight", (f"{path}/kernel",), transpose=True)
    return [kernel, WeightMap(f"{hf_prefix}.bias", (f"{path}/bias",))] if bias else [kernel]


def map_norm(hf_prefix: str, path: str, bias: bool = True) -> list[WeightMap]:
    """A layer norm, or with no bias its root mean square form."""
    scale = WeightMap(f"{hf_prefix}.weight", (f"{path}/scale",))
    return [scale, WeightMap(f"{hf_prefix}.bias", (f"{path}/bias",))] if bias else [scale]


def map_attention(
    hf_prefix: str, path: str, hf_projections: Sequence[str], qkv_bias: bool = True, out_bias: bool = True
):
    """The four maps of attention; `names` are theirs of query, key, value and out."""
    entries = [map_linear(f"{hf_prefix}.{name}", f"{path}/{part}", qkv_bias)
               for name, part in zip(hf_projections[:3], ("query", "key", "value"), strict=True)]  # fmt: skip
    return [*sum(entries, []), *map_linear(f"{hf_prefix}.{hf_projections[3]}", f"{path}/out", out_bias)]
