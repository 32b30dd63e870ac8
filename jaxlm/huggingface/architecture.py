"""The description of a family of published models: its config to our model and back, and its table of weights."""

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
"""Name in config.json -> ours. Of several names for one activation the first is written."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of Transformers.

    Attributes:
      hf_class, model_type: the name of its class, and `model_type` in config.json.
      to_model: config.json -> our model. Raises UserError for an unsupported entry.
      to_config: our model -> the entries of config.json that it determines.
      weight_maps: our model -> the array of each parameter.
      prefix: the beginning of the names in the file of the whole model, which the file of its trunk leaves out.
      ignored_patterns: arrays without a parameter, computed or unused, as regular expressions.
      aliases: our model -> {second name of an array: its name}; if a file has both, they must be equal.
      adjust_to_weights: (model, names of the arrays) -> the model, with what only the names tell.
      trunk_only: whether its own files leave the prefix out.
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
    """The entry of a config. Raises UserError if it is missing."""
    if config.get(name) is None:
        raise UserError(f"config.json has no {name}: fetch it again, or add the entry")
    return config[name]


def require_value(config: HFConfig, **known: Any) -> None:
    """Raise UserError if an entry has another value than the one that our model supports."""
    for name, value in known.items():
        if config.get(name, value) not in (value, None):
            raise UserError(f"config.json has {name} = {config[name]!r}; jaxlm supports only {value!r}")


def from_hf_activation(name: str) -> Any:
    """Our name of an activation. Raises UserError for an unknown one."""
    if name not in HF_ACTIVATIONS:
        raise UserError(f"config.json has the activation {name!r}; jaxlm knows {', '.join(HF_ACTIVATIONS)}")
    return HF_ACTIVATIONS[name]


def to_hf_activation(name: str) -> str:
    """The name of our activation in config.json, or ours if it has none."""
    return next((hf_name for hf_name, own_name in HF_ACTIVATIONS.items() if own_name == name), name)


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
):
    """The four linear layers of attention: `hf_projections` names query, key, value and out."""
    entries = [map_linear(f"{hf_prefix}.{name}", f"{path}/{part}", qkv_bias)
               for name, part in zip(hf_projections[:3], ("query", "key", "value"), strict=True)]  # fmt: skip
    return [*sum(entries, []), *map_linear(f"{hf_prefix}.{hf_projections[3]}", f"{path}/out", out_bias)]
