"""The description of a family of published models: its config to our model and back, and its table of weights."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlm.errors import UserError
from jaxlm.huggingface.weight_map import WeightMap

HFConfig = Mapping[str, Any]

ConfigTable = Mapping[str, str | tuple[str, Any]]
"""Entry of config.json -> field of our model: of a required entry, or with the value of Transformers if it is missing.
"""

HF_ACTIVATIONS: dict[str, Any] = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu",
    "swish": "silu", "gated-gelu": "geglu", "gated-gelu_new": "geglu", "gated-silu": "swiglu",
}  # fmt: skip
"""Name in config.json -> ours. Of several names for one activation the first is written."""


MAX_SIZE = (1 << 31) - 1
"""The largest size that config.json may give: ids and positions are int32."""


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


def require_value(config: HFConfig, **known: Any) -> None:
    """Raise UserError if an entry has another value than the one that our model supports."""
    for name, value in known.items():
        if config.get(name, value) not in (value, None):
            raise UserError(f"config.json has {name} = {config[name]!r:.80}; jaxlm supports only {value!r}")


def read_entry(config: HFConfig, name: str, default: Any = None) -> Any:
    """An entry of config.json, of the kind of its default (null, too, is the default); of None a size.

    Raises UserError for a value of another type or out of range.
    """
    value = config.get(name)
    if value is None:
        return default
    if isinstance(default, bool):
        fits, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        fits, expected = _is_number(value) and 0 <= value < 1, "a number from 0 to 1"
    else:
        fits = type(value) is int and 1 <= value <= MAX_SIZE
        expected = f"a whole number from 1 to {MAX_SIZE:,}"
    if not fits:
        raise UserError(f"config.json has {name} = {value!r:.80}, expected {expected}: fetch it again")
    return value


def read_number(config: HFConfig, name: str, default: float | None = None, above: float = 0) -> float:
    """An entry of config.json that is a finite number. Raises UserError if it is not, is too small, or is missing."""
    value = config.get(name)
    value = default if value is None else value
    if value is None:
        raise UserError(f"config.json has no {name}: fetch it again")
    if not _is_number(value) or value <= above:
        raise UserError(f"config.json has {name} = {value!r:.80}, expected a number above {above}: fetch it again")
    return float(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


def read_fields(config: HFConfig, table: ConfigTable) -> dict[str, Any]:
    """The fields of our model from the entries of a table. Raises UserError for an unknown activation."""
    fields: dict[str, Any] = {}
    for name, place in table.items():
        field, default = (place, None) if isinstance(place, str) else place
        if field == place and config.get(name) is None:
            raise UserError(f"config.json has no {name}: fetch it again, or add the entry")
        if field == "activation":
            hf_name = config.get(name, default)
            if not isinstance(hf_name, str) or hf_name not in HF_ACTIVATIONS:
                raise UserError(f"config.json has {name} = {hf_name!r:.80}; jaxlm knows {', '.join(HF_ACTIVATIONS)}")
            fields[field] = HF_ACTIVATIONS[hf_name]
        else:
            fields[field] = read_entry(config, name, default)
    return fields


def to_entries(model: Any, table: ConfigTable) -> dict[str, Any]:
    """The entries of a table from the fields of our model."""
    entries = {name: getattr(model, place if isinstance(place, str) else place[0]) for name, place in table.items()}
    hf_names = {own_name: hf_name for hf_name, own_name in reversed(HF_ACTIVATIONS.items())}
    return {name: hf_names.get(value, value) if isinstance(value, str) else value for name, value in entries.items()}
