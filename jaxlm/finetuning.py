"""How a run that starts from another one goes on: what comes from there, what is trained, what is put beside it.

Patterns are regular expressions that are looked for in the path of a parameter, as in
"model/model/stack/layers/attention/query/kernel" ("query|value", "head", "layers/ffn").
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import jax

from jaxlm.errors import UserError
from jaxlm.nn.layers.adapters import BOTTLENECK, LOW_RANK, init_bottleneck, init_lora, linear_paths, map_linears
from jaxlm.pytree import named_leaves
from jaxlm.types import Array, Params

MAX_PATHS_SHOWN = 8
"""Paths that a message names."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank maps beside others (Hu et al. 2022).

    Attributes:
      where: patterns of the affine maps that get one.
      rank, alpha: R, and the factor alpha / R of A B.
      dropout: of what they read.
    """

    targets: tuple[str, ...] = ("attention/(query|value)$",)
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0.0 <= self.dropout < 1.0:
            raise UserError(
                f"LoRA of rank {self.rank} and dropout {self.dropout}: expected rank >= 1, 0 <= dropout < 1"
            )


@dataclass(frozen=True)
class Adapters:
    """Bottlenecks after maps (Houlsby et al. 2019): after attention and after the feed-forward net of each layer.

    Attributes:
      where: patterns of the affine maps that get one.
      width: M, units of a bottleneck.
    """

    targets: tuple[str, ...] = ("attention/out$", "ffn/down$")
    bottleneck_dim: int = 64

    def __post_init__(self) -> None:
        if self.bottleneck_dim < 1:
            raise UserError(f"adapters of width {self.bottleneck_dim}: expected 1 or more")


@dataclass(frozen=True)
class FineTuning:
    """Where a run starts, and what of it is trained. The default: from nothing, all.

    Attributes:
      init: the workdir that parameters and tokenizer come from; "" for none. A model without a trunk takes its too,
        and a published model (`jaxlm import-hf`) takes the place of the experiment's own, heads and dropout apart.
      train: patterns of the parameters that are trained, beside what `lora` and `adapters` add. None: all, or where
        something is added, that alone. The others get neither gradients nor optimizer state.
      lora, adapters: what is added.
    """

    init: str = ""
    trainable: tuple[str, ...] | None = None
    lora: LoRA | None = None
    adapters: Adapters | None = None

    def is_trainable(self, path: str) -> bool:
        """Whether the parameter at this path is trained."""
        if {LOW_RANK, BOTTLENECK} & set(path.split("/")):
            return True
        if self.trainable is None:
            return not (self.lora or self.adapters)
        return any(re.search(pattern, path) for pattern in self.trainable)

    def add_adapters(self, params: Params, key: Array) -> Params:
        """The parameters and what stands beside them at first. Raises UserError for a pattern that finds nothing."""
        paths = list(linear_paths(params))
        for part, name in ((self.lora, "lora"), (self.adapters, "adapters")):
            for pattern in part.targets if part else ():
                _check_pattern(pattern, paths, f"finetuning.{name}.targets", "affine map")
        for pattern in self.trainable or ():
            _check_pattern(pattern, named_leaves(params), "finetuning.trainable", "parameter")

        def change(path: str, own: dict) -> dict:
            at = jax.random.fold_in(key, paths.index(path))
            if (lora := self.lora) and _matches_any(path, lora.targets):
                own = own | {LOW_RANK: init_lora(own["kernel"], at, lora.rank, lora.alpha, lora.dropout)}
            if (adapters := self.adapters) and _matches_any(path, adapters.targets):
                own = own | {BOTTLENECK: init_bottleneck(own["kernel"], at, adapters.bottleneck_dim)}
            return own

        return map_linears(params, change) if self.lora or self.adapters else params


def _matches_any(path: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


def _check_pattern(pattern: str, paths: Iterable[str], option: str, kind: str) -> None:
    """Raises UserError where a pattern is no regular expression or finds no path, with those that are near."""
    paths = list(paths)
    try:
        if any(re.search(pattern, path) for path in paths):
            return
    except re.error as error:
        raise UserError(f"{option}: {pattern!r} is no regular expression ({error})") from None
    tails = {path: path.rpartition("layers/")[2] for path in paths}
    near = sorted(paths, key=lambda path: -difflib.SequenceMatcher(None, pattern, tails[path]).ratio())
    more = f" and {len(near) - MAX_PATHS_SHOWN} more" if len(near) > MAX_PATHS_SHOWN else ""
    raise UserError(
        f"{option}: {pattern!r} finds no {kind}; there are\n  " + "\n  ".join(near[:MAX_PATHS_SHOWN]) + more
    )
