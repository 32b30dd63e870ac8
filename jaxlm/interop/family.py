"""What a family of published models is: its config in their words and in ours, and where its parameters lie."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlm.errors import UserError
from jaxlm.interop.correspondence import Entry

Config = Mapping[str, Any]
ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu",
    "swish": "silu",
}  # fmt: skip
"""Their names to ours; the first name of each is written."""


@dataclass(frozen=True)
class Family:
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

    architecture: str
    kind: str
    to_model: Callable[[Config], Any]
    to_config: Callable[[Any], dict[str, Any]]
    table: Callable[[Any], list[Entry]]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    aliases: Callable[[Any], dict[str, str]] = field(default=lambda model: {})
    stored: Callable[[Any, Collection[str]], Any] = field(default=lambda model, names: model)
    bare: bool = False


def need(config: Config, name: str) -> Any:
    """The entry of a config. Raises UserError where it is missing."""
    if config.get(name) is None:
        raise UserError(f"config.json has no {name}: fetch it again, or add the entry")
    return config[name]


def expect(config: Config, **known: Any) -> None:
    """Raises UserError where an entry is there and is not the one value that our model can do."""
    for name, value in known.items():
        if config.get(name, value) not in (value, None):
            raise UserError(f"config.json has {name} = {config[name]!r}; jaxlm can do {value!r} only")


def activation(name: str) -> Any:
    """Our name of an activation. Raises UserError on an unknown one."""
    if name not in ACTIVATIONS:
        raise UserError(f"config.json asks for the activation {name!r}; jaxlm knows {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def activation_name(name: str) -> str:
    """Their name of an activation, or ours where they have none."""
    return next((theirs for theirs, ours in ACTIVATIONS.items() if ours == name), name)


def linear(theirs: str, ours: str, bias: bool = True) -> list[Entry]:
    """An affine map that lies (out, in)."""
    kernel = Entry(f"{theirs}.weight", (f"{ours}/kernel",), transpose=True)
    return [kernel, Entry(f"{theirs}.bias", (f"{ours}/bias",))] if bias else [kernel]


def norm(theirs: str, ours: str, bias: bool = True) -> list[Entry]:
    """A layer norm, or with no bias its root mean square form."""
    scale = Entry(f"{theirs}.weight", (f"{ours}/scale",))
    return [scale, Entry(f"{theirs}.bias", (f"{ours}/bias",))] if bias else [scale]


def attention(theirs: str, ours: str, names: Sequence[str], qkv_bias: bool = True, out_bias: bool = True):
    """The four maps of attention; `names` are theirs of query, key, value and out."""
    entries = [linear(f"{theirs}.{name}", f"{ours}/{part}", qkv_bias)
               for name, part in zip(names[:3], ("query", "key", "value"), strict=True)]  # fmt: skip
    return [*sum(entries, []), *linear(f"{theirs}.{names[3]}", f"{ours}/out", out_bias)]
