"""The options of beam search, whose rules `jaxlm.decode.beam_search` defines, and those of well-known programs."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxlm.decode.logit_masks import LogitMasks
from jaxlm.decode.request import DecodeConfig
from jaxlm.errors import UserError
from jaxlm.types import Array

LengthPenaltyKind = Literal["none", "power", "gnmt"]
FinishRule = Literal["top_k", "top_2k", "all"]
MaxLengthRule = Literal["keep", "keep_top_k", "force_eos", "drop"]
StoppingRule = Literal["exact", "full", "heuristic", "first", "never"]


@dataclass(frozen=True)
class Beam:
    """Options of beam search.

    Attributes:
      num_beams: k, the size of the beam. With 1 the search is greedy: a row ends with its first finished hypothesis
        under every stopping rule.
      num_return_sequences: number n <= k of hypotheses to return.
      length_penalty_kind, length_penalty, length_reward: the score of a hypothesis of L tokens with log-probability s
        is S = s / lp(L) + length_reward * L with lp = 1 ("none"), L^alpha ("power") or ((5 + L) / 6)^alpha ("gnmt"),
        where alpha is the length penalty.
      coverage_penalty: beta of S + beta * sum_j log min(c_j, 1), where c_j is the attention that source position j
        received from all tokens (Wu et al. 2016, equation 14). The model needs a field `track_coverage`.
      count_eos: whether the length L in lp includes the stop id.
      renormalize_logits: whether step scores are normalized after the masks instead of before them.
      finish_rule: the candidates that finish if they end in a stop id: those of rank < k ("top_k"), the best
        k * (1 + number of stop ids) ("top_2k"), or all ("all").
      keep_first_finished: whether the finished set keeps the first k hypotheses instead of the best k.
      at_max_length: at its limit a live hypothesis is kept with reason `length` ("keep"), is kept if its rank is < k
        ("keep_top_k"), must end in a stop id ("force_eos"), or is dropped ("drop").
      stopping_rule: a row is done once no live hypothesis can change the n results ("exact"; only at the limit if
        length_reward > 0, which invalidates the bound), once k are finished ("full"), once k are finished and no live
        hypothesis has a better S now ("heuristic"), once n are finished with the best candidate of some step among
        them ("first"), or only at the limit ("never").
      temperature: number that divides the logits.
      min_length, suppress_tokens, no_repeat_ngram_size: minimum length, ids never generated, and the n of n-grams
        never repeated, see `jaxlm.decode.logit_masks.LogitMasks`.
      first_tokens, suppress_first_tokens, bad_words: ids of which one is the first token, ids that never are, and
        sequences of ids never generated.
    """

    num_beams: int = 5
    num_return_sequences: int = 1
    length_penalty_kind: LengthPenaltyKind = "power"
    length_penalty: float = 1.0
    length_reward: float = 0.0
    coverage_penalty: float = 0.0
    count_eos: bool = True
    renormalize_logits: bool = False
    finish_rule: FinishRule = "top_k"
    keep_first_finished: bool = False
    at_max_length: MaxLengthRule = "keep"
    stopping_rule: StoppingRule = "exact"
    temperature: float = 1.0
    min_length: int = 0
    suppress_tokens: tuple[int, ...] = ()
    no_repeat_ngram_size: int = 0
    first_tokens: tuple[int, ...] = ()
    suppress_first_tokens: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.num_return_sequences <= self.num_beams:
            raise UserError(
                f"num_beams={self.num_beams}, num_return_sequences={self.num_return_sequences}: expected 1 <= "
                "num_return_sequences <= num_beams"
            )
        rules = LengthPenaltyKind, FinishRule, MaxLengthRule, StoppingRule
        names = "length_penalty_kind", "finish_rule", "at_max_length", "stopping_rule"
        for name, choices in zip(names, rules, strict=True):
            if getattr(self, name) not in get_args(choices):
                raise UserError(f"{name}={getattr(self, name)!r} must be one of {', '.join(get_args(choices))}")
        if self.coverage_penalty < 0:
            raise UserError(f"coverage_penalty={self.coverage_penalty} must be 0 (off) or positive, such as 0.2")
        for name in ("length_penalty", "length_reward", "coverage_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name}={getattr(self, name)} must be a finite number")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature={self.temperature} must be a positive number")
        _ = self.logit_masks

    @property
    def logit_masks(self) -> LogitMasks:
        """The masks that do not depend on the row."""
        return LogitMasks(**{field.name: getattr(self, field.name) for field in fields(LogitMasks)})


@dataclass(frozen=True)
class BeamSearchConfig(DecodeConfig):
    """The static settings of `beam_search` (of which the length penalty and the rewards are not compiled in)."""

    beam: Beam = Beam()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam.at_max_length == "force_eos" and not self.stop:
            raise UserError(
                "at_max_length='force_eos' but stop=(): expected at least one stop id to force, or at_max_length='keep'"
            )


HUGGING_FACE = Beam(finish_rule="top_k", length_penalty_kind="power", at_max_length="keep", stopping_rule="heuristic")
"""`generate(num_beams=..., early_stopping=False)` of Transformers; its True is `full`, its "never" `exact`."""

FAIRSEQ = Beam(finish_rule="top_k", at_max_length="force_eos", stopping_rule="full", keep_first_finished=True)
"""`SequenceGenerator` of fairseq: the first k hypotheses that end, forced to at the limit."""

CTRANSLATE2 = Beam(finish_rule="top_k", renormalize_logits=True, at_max_length="keep_top_k", stopping_rule="full")
"""CTranslate2's `translate_batch` with a length or a coverage penalty; without, its stopping rule is `first`."""

T2T = Beam(finish_rule="top_2k", length_penalty_kind="gnmt", length_penalty=0.6, at_max_length="drop")
"""The beam search of Tensor2Tensor (Vaswani et al., 2017)."""


@struct.dataclass
class ScoreParams:
    """The score of hypotheses of different lengths, S = s / lp(L) + length_reward * L.

    penalty_T: lp(L) at index L = 0 .. length; the length reward and the coverage penalty are scalars. Float32, computed
    in NumPy, and arguments of the compiled search: a sweep over alpha compiles once, with the same values everywhere.
    """

    penalty_T: Array
    length_reward: Array
    coverage_penalty: Array


def make_score_params(beam: Beam, length: int) -> ScoreParams:
    """Return the table of a beam's length penalty (gnmt: Wu et al., 2016, equation 14) and its scalars."""
    lengths = np.arange(length + 1, dtype=np.float64)
    bases = {"none": np.ones_like(lengths), "power": np.maximum(lengths, 1), "gnmt": (5 + lengths) / 6}
    penalty = bases[beam.length_penalty_kind] ** beam.length_penalty
    numbers: Any = (np.asarray(x, np.float32) for x in (penalty, beam.length_reward, beam.coverage_penalty))
    return ScoreParams(*numbers)


def final_score(logprob: Array, length: Array, score_params: ScoreParams, uncounted: Array | int = 0) -> Array:
    """Return S of hypotheses (any shape) without the coverage penalty; lp is taken at length - uncounted."""
    penalty = jnp.take(score_params.penalty_T, jnp.maximum(length - uncounted, 0), mode="clip")
    return logprob / penalty + score_params.length_reward * length.astype(jnp.float32)


def log_coverage(coverage_RS: Array, slots: int) -> Array:
    """Return sum_j log min(c_j, 1) of each slot_BK; a position without attention counts as the least float, not 0."""
    clipped_RS = jnp.clip(coverage_RS.astype(jnp.float32), jnp.finfo(jnp.float32).tiny, 1.0)
    return jnp.log(clipped_RS).sum(-1).reshape(-1, slots)


def can_stop(
    beam: Beam,
    score_params: ScoreParams,
    length_B: Array,
    limit_B: Array,
    live_BK: Array,
    score_BK: Array,
    top_stopped_B: Array,
) -> Array:
    """Apply `beam.stopping_rule` after a step: True_B on the rows that are done.

    length_B: the tokens of the live hypotheses. live_BK: their s, best first. score_BK: S of the finished ones, best
    first, -inf in empty slots. top_stopped_B: the best candidate of some step so far was finished.
    """
    full_B = score_BK[:, -1] > -jnp.inf
    if beam.num_beams == 1 or beam.stopping_rule == "full":
        return full_B
    if beam.stopping_rule == "first":
        return top_stopped_B & (score_BK[:, beam.num_return_sequences - 1] > -jnp.inf)
    if beam.stopping_rule == "heuristic":
        return full_B & (score_BK[:, -1] >= final_score(live_BK[:, 0], length_B, score_params))
    if beam.stopping_rule == "never":
        return jnp.zeros(full_B.shape, bool)
    # The exact rule: the best S that a live hypothesis can reach, for a length reward that is not positive. Step scores
    # are <= 0, so s can only fall, and the coverage penalty adds at most 0. lp is monotone in L, so s / lp(L) is
    # greatest at an end of [length + 1, limit]: at the limit for alpha > 0, at the next token for alpha < 0.
    penalty_B = jnp.take(score_params.penalty_T, length_B + beam.count_eos, mode="clip")
    penalty_B = jnp.maximum(penalty_B, jnp.take(score_params.penalty_T, limit_B, mode="clip"))
    reachable_B = live_BK[:, 0] / penalty_B + score_params.length_reward * (length_B + 1).astype(jnp.float32)
    return (score_BK[:, beam.num_return_sequences - 1] >= reachable_B) & (score_params.length_reward <= 0)
