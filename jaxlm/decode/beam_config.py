"""The options of beam search, and the options of well-known programs in terms of them.

`jaxlm.decode.beam_search` defines the rules that they select.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from jaxlm.decode.logit_masks import LogitMasks
from jaxlm.decode.request import DecodeConfig
from jaxlm.errors import UserError

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
        return LogitMasks(self.suppress_tokens, self.min_length, self.no_repeat_ngram_size)


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

    @property
    def num_candidates(self) -> int:
        """The candidates of a step: k * (1 + number of stop ids), so that k of them do not stop."""
        return self.beam.num_beams * (1 + len(self.stop))


HUGGING_FACE = Beam(finish_rule="top_k", length_penalty_kind="power", at_max_length="keep", stopping_rule="heuristic")
"""`generate(num_beams=..., early_stopping=False)` of Transformers; see `HuggingFaceOptions`."""

EARLY_STOPPING: dict[bool | str, StoppingRule] = {True: "full", False: "heuristic", "never": "exact"}
"""`early_stopping` of Transformers. Its "never" waits until no live hypothesis can enter the k finished ones, `exact`
until none can enter the n that are returned: the results are the same."""


@dataclass(frozen=True)
class HuggingFaceOptions:
    """The options of `generate(num_beams=...)` of Hugging Face Transformers 5; `beam` converts them.

    The limit is `max_new_tokens` for every row. Lengths exclude the prompt in both programs: `decoder_start_token_id`,
    or all of `decoder_input_ids` or of a decoder-only model's `input_ids`, left padding included. Their minimum length
    does not count the stop id, ours does.

    banned: `bad_words_ids` of one id each.
    force_eos: there is a `forced_eos_token_id`, which is generated at the limit, and possibly a `forced_bos_token_id`
        (our `ForcedPrefix`).

    Deviations. Their `no_repeat_ngram_size` covers the prompt too, ours generated tokens only. They give a forced token
    the score 0 and leave other scores unnormalized; here all are renormalized, which is the same only if nothing else
    is masked.
    """

    num_beams: int = 1
    num_return_sequences: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    banned: tuple[int, ...] = ()
    force_eos: bool = False

    def beam(self) -> Beam:
        """The same search as a `Beam`."""
        return replace(
            HUGGING_FACE,
            num_beams=self.num_beams,
            num_return_sequences=self.num_return_sequences,
            length_penalty=self.length_penalty,
            at_max_length="force_eos" if self.force_eos else HUGGING_FACE.at_max_length,
            renormalize_logits=self.force_eos,
            stopping_rule=EARLY_STOPPING[self.early_stopping],
            min_length=self.min_new_tokens + 1 if self.min_new_tokens else 0,
            suppress_tokens=self.banned,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )


FAIRSEQ = Beam(finish_rule="top_k", at_max_length="force_eos", stopping_rule="full", keep_first_finished=True)
"""`SequenceGenerator` of fairseq: the first k hypotheses that end, forced to at the limit."""

CTRANSLATE2 = Beam(finish_rule="top_k", renormalize_logits=True, at_max_length="keep_top_k", stopping_rule="full")
"""CTranslate2's `translate_batch` with a length or a coverage penalty; see `CTranslate2Options`."""


@dataclass(frozen=True)
class CTranslate2Options:
    """The options of `Translator.translate_batch` of CTranslate2 4 (with patience 1); `beam` converts them.

    The limit is `max_decoding_length`, the stop id included; their minimum does not count the stop id, ours does.
    Scores are normalized after the masks, and lengths count the stop id, although their hypotheses come without it.
    Without penalties a row ends once `num_hypotheses` have ended, the best candidate of some step among them; with a
    penalty, once `beam_size` have. At the limit the best `beam_size` candidates end, whether they stop or not.

    Deviations. Their coverage is that of the last layer's first `alignment_heads` heads, by default one; ours is the
    mean of all. In a batch on a CPU, release 4.8.5 takes the coverage of the first step from another row. Immediately
    after a `target_prefix` only their best candidate may end; here all may.
    """

    beam_size: int = 2
    num_hypotheses: int = 1
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0
    min_decoding_length: int = 1
    no_repeat_ngram_size: int = 0
    banned: tuple[int, ...] = ()

    def beam(self) -> Beam:
        """The same search as a `Beam`."""
        penalized = self.length_penalty != 0 or self.coverage_penalty != 0
        return replace(
            CTRANSLATE2,
            num_beams=self.beam_size,
            num_return_sequences=self.num_hypotheses,
            length_penalty=self.length_penalty,
            coverage_penalty=self.coverage_penalty,
            stopping_rule=CTRANSLATE2.stopping_rule if penalized else "first",
            min_length=self.min_decoding_length + 1 if self.min_decoding_length else 0,
            suppress_tokens=self.banned,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )


T2T = Beam(finish_rule="top_2k", length_penalty_kind="gnmt", length_penalty=0.6, at_max_length="drop")
"""The beam search of Tensor2Tensor (Vaswani et al., 2017)."""
