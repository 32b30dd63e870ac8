"""The options of beam search, and the choices of well-known programs in terms of them.

`jaxlm.decode.beam` says what each means.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from jaxlm.decode.constrain import Constraints
from jaxlm.errors import UserError

Penalty = Literal["none", "power", "gnmt"]
Finish = Literal["top_k", "top_2k", "all"]
Limit = Literal["keep", "force_eos", "drop"]
Stop = Literal["exact", "full", "heuristic", "first", "never"]


@dataclass(frozen=True)
class Beam:
    """Options of beam search; the defaults are those of the definition.

    size: k, the beam slots. With 1 it is greedy search: a row ends with its first finished hypothesis, whatever `stop`.
    returns: n <= k, the hypotheses wanted.
    penalty, alpha, reward: S = s / lp(L) + reward * L with lp = 1 (none), L^alpha (power), ((5 + L) / 6)^alpha (gnmt).
    coverage: beta of S + beta * sum_j log min(c_j, 1), c_j being the attention that source position j got from all
        tokens (Wu et al. 2016, equation 14); needs a model with a field `covers`.
    count_stop: the stop id counts in lp's L.
    renormalise: what the constraints leave is a distribution again.
    arrival: the finished set takes what arrives until it is full, instead of keeping the best.
    finish: which candidates that end in a stop id count: those of rank < k, of the best k * (1 + stop ids), or all.
    limit: at its length limit a hypothesis is kept and marked `length`, must say a stop id, or is dropped.
    stop: `exact` once no live hypothesis can still change the n results (never, if reward > 0 voids that bound);
        `full` once k are finished; `heuristic` once k are finished and none of them is below the best live one as it
        is now; `first` once the best candidate of a step is finished; `never` before the length limit.
    temperature: divides the logits.
    min_length, banned, no_repeat_ngram: see `jaxlm.decode.constrain.Constraints`.
    """

    size: int = 5
    returns: int = 1
    penalty: Penalty = "power"
    alpha: float = 1.0
    reward: float = 0.0
    coverage: float = 0.0
    count_stop: bool = True
    renormalise: bool = False
    finish: Finish = "top_k"
    arrival: bool = False
    limit: Limit = "keep"
    stop: Stop = "exact"
    temperature: float = 1.0
    min_length: int = 0
    banned: tuple[int, ...] = ()
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.returns <= self.size:
            raise UserError(f"size={self.size}, returns={self.returns}: expected 1 <= returns <= size")
        for name, choices in (("penalty", Penalty), ("finish", Finish), ("limit", Limit), ("stop", Stop)):
            if getattr(self, name) not in get_args(choices):
                raise UserError(f"{name}={getattr(self, name)!r} must be one of {', '.join(get_args(choices))}")
        if self.coverage < 0:
            raise UserError(f"coverage={self.coverage} must be 0 (off) or a positive number such as 0.2")
        for name in ("alpha", "reward", "coverage"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name}={getattr(self, name)} must be a finite number")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature={self.temperature} must be a positive number")
        _ = self.constraints

    @property
    def constraints(self) -> Constraints:
        return Constraints(self.banned, self.min_length, self.no_repeat_ngram)


HUGGING_FACE = Beam(finish="top_k", penalty="power", limit="keep", stop="heuristic")
"""`generate(num_beams=..., early_stopping=False)` of Hugging Face Transformers; `dataclasses.replace` sets the size."""

FAIRSEQ = Beam(finish="top_k", penalty="power", limit="force_eos", stop="full", arrival=True)
"""fairseq's `SequenceGenerator`: the first k hypotheses that end, the last of them forced to."""

CTRANSLATE2 = Beam(finish="top_k", penalty="power", count_stop=False, renormalise=True, stop="full")
"""CTranslate2's `translate_batch` with a length penalty."""

T2T = Beam(finish="top_2k", penalty="gnmt", alpha=0.6, limit="drop", stop="exact", returns=1)
"""The beam search of Tensor2Tensor (Vaswani et al., 2017)."""
