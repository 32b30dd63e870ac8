"""Beam search token for token against `generate` of Hugging Face Transformers, on small random models.

The fast tests try every length penalty and every `early_stopping`; the slow ones the whole grid, several models each.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import jax
import numpy as np
import pytest

from jaxlm.decode.beam_config import BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.logit_masks import ForcedPrefix
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_REASONS
from jaxlm.huggingface.generation_config import EARLY_STOPPING
from jaxlm.types import Batch

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from references.beam_options import HuggingFaceOptions  # noqa: E402
from references.published_models import ENDS, GPT2, MARIAN, T5, Pair, searchable, tensors  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

ROWS, COLUMNS, LENGTH = 16, 7, 12
PENALTIES = (0.0, 0.6, 1.0, 2.0)
GAP = 1e-5
FAMILIES = {
    "marian": ("MarianMT", {**MARIAN, "encoder_layers": 1}, 0.35),
    "t5": ("T5", {**T5, "num_layers": 1}, 0.6),
    "gpt2": ("GPT2", {**GPT2, "n_layer": 1}, 0.45),
}
"""Name, config, and how large the random parameters are: hypotheses differ, and end early and late."""


@dataclass(frozen=True)
class Case:
    """The options of both programs. ends: the number of stop ids; prefix: further columns of `decoder_input_ids`."""

    num_beams: int
    num_return_sequences: int
    early_stopping: bool | str
    length_penalty: float = 1.0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    banned: tuple[int, ...] = ()
    force_eos: bool = False
    ends: int = 1
    prefix: int = 0

    @property
    def searched(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("ends", "prefix")}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    @cache
    def make(name: str, seed: int) -> Pair:
        return searchable(*FAMILIES[name], seed, (ROWS, COLUMNS, LENGTH), tmp_path_factory.mktemp(name))

    return make


def generated(pair: Pair, case: Case) -> tuple[np.ndarray, np.ndarray | None]:
    """Their tokens_BNT (0 past the end) and scores_BN."""
    stop = ENDS[: case.ends]
    options = case.searched
    banned, forced = options.pop("banned"), options.pop("force_eos")
    options.update({"bad_words_ids": [[i] for i in banned]} if banned else {})
    options.update({"forced_bos_token_id": ENDS[1], "forced_eos_token_id": stop[0]} if forced else {})
    if case.prefix:
        options["decoder_input_ids"] = tensors(prompt(pair, case)[0])[0]
    ids, valid = tensors(pair.ids_BS, pair.valid_BS)
    with torch.no_grad():
        output = pair.their.generate(
            ids, attention_mask=valid, do_sample=False, max_new_tokens=LENGTH, pad_token_id=0, output_scores=True,
            eos_token_id=list(stop) or None, return_dict_in_generate=True, **options,
        )  # fmt: skip
    read = COLUMNS if pair.start is None else 1 + case.prefix
    tokens_RT = np.pad(output.sequences.numpy()[:, read:], ((0, 0), (0, LENGTH)))[:, :LENGTH]
    stops_RT = np.isin(tokens_RT, stop)
    tokens_RT = np.where(stops_RT.cumsum(1) - stops_RT > 0, 0, tokens_RT)
    scores_R = getattr(output, "sequences_scores", None)
    shape = (ROWS, case.num_return_sequences)
    return tokens_RT.reshape(*shape, LENGTH), None if scores_R is None else scores_R.numpy().reshape(shape)


def prompt(pair: Pair, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The prompt of our search, and its mask."""
    if pair.start is None:
        return pair.ids_BS, pair.valid_BS
    prompt_BP = np.concatenate([np.full((ROWS, 1), pair.start), pair.ids_BS[:, : case.prefix]], axis=1)
    return prompt_BP, np.ones(prompt_BP.shape, bool)


def searched(pair: Pair, case: Case) -> dict[str, np.ndarray]:
    """Our hypotheses."""
    prompt_BP, valid_BP = prompt(pair, case)
    forced = ForcedPrefix(np.full((ROWS, 1), ENDS[1]), np.ones((ROWS, 1), bool)) if case.force_eos else None
    batch = Batch(target_BT=prompt_BP) if pair.start is None else Batch(pair.ids_BS, pair.valid_BS)
    request = DecodeRequest(batch, prompt_BP, valid_BP, np.full(ROWS, LENGTH), forced_prefix=forced)
    config = BeamSearchConfig(LENGTH, ENDS[: case.ends], HuggingFaceOptions(**case.searched).beam())
    output = beam_search(pair.model, pair.params, request, config)
    return {name: np.asarray(value) for name, value in vars(output).items()}


@dataclass
class Tally:
    """Hypotheses compared, those that are equal, and how they ended."""

    compared: int = 0
    equal: int = 0
    stopped: int = 0
    cases: int = 0

    def compare(self, pair: Pair, case: Case) -> None:
        tokens_BNT, scores_BN = generated(pair, case)
        output = searched(pair, case)
        same_BN = (output["tokens_BNT"] == tokens_BNT).all(-1)
        if scores_BN is not None:
            np.testing.assert_allclose(output["score_BN"][same_BN], scores_BN[same_BN], rtol=1e-5, atol=1e-5)
            gap_BN = np.abs(output["score_BN"] - scores_BN)
            assert (gap_BN[~same_BN] < GAP).all(), (case, np.argwhere(~same_BN), gap_BN[~same_BN])
        else:
            assert same_BN.all(), (case, np.argwhere(~same_BN))
        self.cases += 1
        self.compared += same_BN.size
        self.equal += int(same_BN.sum())
        self.stopped += int((output["reason_BN"] == FINISH_REASONS.index("stop")).sum())

    def add(self, other: "Tally") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def check(self) -> None:
        print(
            f"{self.cases} cases, {self.equal} of {self.compared} hypotheses equal, {self.stopped} ended by a stop id"
        )
        assert self.equal >= 0.999 * self.compared
        assert 0.1 * self.compared < self.stopped < 0.97 * self.compared, "rows must end early, and at the limit"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_early_stopping(pairs, name):
    """Four beams, all length penalties; a minimum and a ban."""
    tally = Tally()
    for early_stopping in EARLY_STOPPING:
        for length_penalty in PENALTIES:
            for seed in (0, 1):
                tally.compare(pairs(name, seed), Case(4, 4, early_stopping, length_penalty, min_new_tokens=2))
    tally.check()


GRID = {
    "plain": {},
    "min_new_tokens": {"min_new_tokens": 5},
    "banned": {"banned": (5, 9, 17)},
    "two_ends": {"ends": 2},
    "two_ends_minimum": {"ends": 2, "min_new_tokens": 3},
    "forced_end": {"force_eos": True},
    "prefix": {"prefix": 3},
    "no_repeat": {"no_repeat_ngram_size": 2},
}
"""The further options of the slow tests. A prefix and first ids need an encoder-decoder; so does the ban on repeats,
which Transformers extends to the prompt (there one id, which is banned here)."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_grid(pairs, name):
    """Beams 1, 2, 4, 5; all penalties and stops; one, two and all hypotheses; several models."""
    total = Tally()
    for asked, options in GRID.items():
        if name == "gpt2" and asked in ("forced_end", "prefix", "no_repeat"):
            continue
        tally = Tally()
        for case, seed in product(grid(options, asked == "plain"), range(4)):
            pair = pairs(name, seed)
            banned = (*case.banned, pair.start) if case.no_repeat_ngram_size else case.banned
            tally.compare(pair, replace(case, suppress_tokens=banned))
        print(f"{name}, {asked}: {tally}")
        total.add(tally)
        jax.clear_caches()  # hundreds of compiled searches would be more memory maps than a process may have
    total.check()


def grid(options: dict[str, Any], returns: bool) -> Iterator[Case]:
    """Every case; few numbers of hypotheses, since each compiles a program."""
    for size, early_stopping in product((1, 2, 4, 5), EARLY_STOPPING):
        for count in sorted({1, 2, size}) if returns else (size,):
            if count <= size:
                yield from (Case(size, count, early_stopping, penalty, **options) for penalty in PENALTIES)
