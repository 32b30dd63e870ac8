"""Fine-tuning configuration: initial workdir, trainable parameters, LoRA and adapters.

Patterns are regular expressions that are searched in the path of a parameter: "query|value", "head" or "layers/ffn"
match "model/model/stack/layers/attention/query/kernel" and others.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax

from jaxlm.errors import UserError, list_some
from jaxlm.nn.layers.adapters import BOTTLENECK, LOW_RANK, init_bottleneck, init_lora, linear_paths, map_linears
from jaxlm.nn.weights.weight_formats import weight_users
from jaxlm.pytree import named_leaves
from jaxlm.types import Array, Params


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation, W + (alpha / rank) A B (Hu et al. 2022).

    Attributes:
      targets: patterns of the linear layers to adapt.
      rank, alpha: the rank of A B, and the numerator of its scale alpha / rank.
      dropout: dropout probability of the input of A.
    """

    targets: tuple[str, ...] = ("attention/(query|value)$",)
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0.0 <= self.dropout < 1.0:
            values = f"rank {self.rank} and dropout {self.dropout}"
            raise UserError(f"LoRA of {values}: expected rank >= 1, 0 <= dropout < 1")


@dataclass(frozen=True)
class Adapters:
    """Bottleneck adapters (Houlsby et al. 2019), by default after attention and feed-forward net of each layer.

    Attributes:
      targets: patterns of the linear layers that an adapter follows.
      bottleneck_dim: hidden units of an adapter.
    """

    targets: tuple[str, ...] = ("attention/out$", "ffn/down$")
    bottleneck_dim: int = 64

    def __post_init__(self) -> None:
        if self.bottleneck_dim < 1:
            raise UserError(f"adapters with bottleneck_dim = {self.bottleneck_dim}: expected 1 or more")


@dataclass(frozen=True)
class FineTuning:
    """The initial and the trainable parameters of a run. The default: random initialization, all trainable.

    Attributes:
      init: workdir of the initial parameters and the tokenizer; "": none. If its model is a published one (`jaxlm
        import-hf`), it replaces the experiment's model, except for heads and dropout. A head without a model also
        takes the model of this workdir.
      trainable: patterns of the parameters that are trained in addition to LoRA and adapters. None: all parameters, or
        only LoRA and adapters if there are any. The others get neither gradients nor optimizer state.
      lora, adapters: LoRA or adapters to add to the model; None: none.
    """

    init: str = ""
    trainable: tuple[str, ...] | None = None
    lora: LoRA | None = None
    adapters: Adapters | None = None

    def is_trainable(self, path: str) -> bool:
        """True if the parameter at this path is trained."""
        if {LOW_RANK, BOTTLENECK} & set(path.split("/")):
            return True
        if self.trainable is None:
            return not (self.lora or self.adapters)
        return _matches_any(path, self.trainable)

    def check_targets(self, params: Params, call: Callable[[Params], Any]) -> None:
        """Raises UserError if a target is a kernel of another layer than jaxlm's `Linear`, which would not use LoRA."""
        if not (self.lora or self.adapters):
            return
        users = weight_users(call, params)
        for path in linear_paths(params):
            is_linear = {"read", "kernel"} <= users.get((*path.split("/"), "kernel"), set())
            for part, name in ((self.lora, "lora"), (self.adapters, "adapters")):
                if part and _matches_any(path, part.targets) and not is_linear:
                    raise UserError(
                        f"finetuning.{name}.targets: {path!r} is not a `Linear` of jaxlm, and its layer would ignore "
                        "what is added to it: choose other targets, or train it with finetuning.trainable"
                    )

    def add_adapters(self, params: Params, key: Array) -> Params:
        """The parameters with initial LoRA and adapters. Raises UserError for a pattern that matches nothing."""
        paths = list(linear_paths(params))
        for part, name in ((self.lora, "lora"), (self.adapters, "adapters")):
            for pattern in part.targets if part else ():
                _check_pattern(pattern, paths, f"finetuning.{name}.targets", "linear layer")
        for pattern in self.trainable or ():
            _check_pattern(pattern, list(named_leaves(params)), "finetuning.trainable", "parameter")

        def change(path: str, own: dict) -> dict:
            layer_key = jax.random.fold_in(key, paths.index(path))
            if (lora := self.lora) and _matches_any(path, lora.targets):
                own = own | {LOW_RANK: init_lora(own["kernel"], layer_key, lora.rank, lora.alpha, lora.dropout)}
            if (adapters := self.adapters) and _matches_any(path, adapters.targets):
                own = own | {BOTTLENECK: init_bottleneck(own["kernel"], layer_key, adapters.bottleneck_dim)}
            return own

        return map_linears(params, change) if self.lora or self.adapters else params


def _matches_any(path: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


def _check_pattern(pattern: str, paths: list[str], option: str, kind: str) -> None:
    """Raise UserError, which shows similar paths, if a pattern is not a regular expression or matches no path."""
    try:
        if any(re.search(pattern, path) for path in paths):
            return
    except re.error as error:
        raise UserError(f"{option}: {pattern!r} is not a regular expression ({error})") from None
    tails = {path: path.rpartition("layers/")[2] for path in paths}
    near = sorted(paths, key=lambda path: -difflib.SequenceMatcher(None, pattern, tails[path]).ratio())
    shown = list_some(near, limit=8, separator="\n  ")
    raise UserError(f"{option}: {pattern!r} matches no {kind}; the model has\n  {shown}")
