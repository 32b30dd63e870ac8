"""Beam search token for token against `translate_batch` of CTranslate2, on small random Marian models."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decode.beam_config import BeamSearchConfig
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_REASONS
from jaxlm.types import Batch

program = pytest.importorskip("ctranslate2")
pytest.importorskip("torch")
pytest.importorskip("transformers")
from references.beam_options import CTranslate2Options  # noqa: E402
from references.published_models import ENDS, MARIAN, VOCAB, Pair, searchable  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

ROWS, COLUMNS, LENGTH = 16, 7, 12
PENALTIES = (0.0, 0.6, 1.0)
GAP = 1e-5
SMALL = {**MARIAN, "decoder_layers": 2, "activation_function": "relu", "scale_embedding": True}


@dataclass(frozen=True)
class Case:
    """The options of both programs, named as in CTranslate2."""

    beam_size: int
    num_hypotheses: int
    length_penalty: float
    coverage_penalty: float = 0.0
    min_decoding_length: int = 0
    no_repeat_ngram_size: int = 0
    banned: tuple[int, ...] = ()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Our model of a seed, and CTranslate2's translator with its parameters."""

    @cache
    def make(seed: int) -> tuple[Pair, Any]:
        folder = tmp_path_factory.mktemp("marian")
        pair = searchable("MarianMT", SMALL, 0.35, seed, (ROWS, COLUMNS, LENGTH), folder)
        convert(pair.their, folder / "ctranslate2")
        return pair, program.Translator(str(folder / "ctranslate2"), compute_type="float32", intra_threads=1)

    return make


def convert(their: Any, folder: Path) -> None:
    """Words are ids; attention for the coverage penalty is the mean of all heads."""
    from ctranslate2.converters.transformers import BartLoader

    their.config.normalize_before = their.config.normalize_embedding = False
    spec = BartLoader().get_model_spec(their)
    spec.decoder.alignment_heads = np.dtype("int16").type(their.config.decoder_attention_heads)
    words = [str(i) for i in range(VOCAB)]
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    spec.config.bos_token = spec.config.decoder_start_token = str(their.config.decoder_start_token_id)
    spec.config.eos_token, spec.config.unk_token = str(ENDS[0]), "1"
    spec.validate()
    spec.optimize()
    folder.mkdir()
    spec.save(str(folder))


def translated(translator: Any, pair: Pair, case: Case) -> tuple[list[list[list[int]]], np.ndarray]:
    """Their tokens, [row][n], and scores_BN.

    With a coverage penalty a line at a time: in a batch CTranslate2 4.8 takes the attention of row i's first step from
    row i // beams (on a CPU, where the first step runs one row a line), so that a line's answer depends on the others.
    """
    lines = [[str(i) for i in ids_S[valid_S]] for ids_S, valid_S in zip(pair.ids_BS, pair.valid_BS, strict=True)]
    options = dict(vars(case))
    options["suppress_sequences"] = [[str(i)] for i in options.pop("banned")] or None
    options["max_batch_size"] = 1 if case.coverage_penalty else 0
    output = translator.translate_batch(lines, max_decoding_length=LENGTH, return_scores=True, **options)
    tokens = [[[int(i) for i in words] for words in row.hypotheses] for row in output]
    return tokens, np.array([row.scores for row in output])


def searched(pair: Pair, case: Case) -> dict[str, np.ndarray]:
    prompt_B1 = jnp.full((ROWS, 1), pair.start)
    request = DecodeRequest(Batch(pair.ids_BS, pair.valid_BS), prompt_B1, prompt_B1 > 0, jnp.full(ROWS, LENGTH))
    config = BeamSearchConfig(LENGTH, ENDS[:1], CTranslate2Options(**vars(case)).beam())
    output = beam_search(pair.model, pair.params, request, config)
    return {name: np.asarray(value) for name, value in vars(output).items()}


@dataclass
class Tally:
    """Hypotheses compared, those that are equal, and how they ended."""

    compared: int = 0
    equal: int = 0
    stopped: int = 0
    empty: int = 0

    def compare(self, pair: Pair, translator: Any, case: Case) -> None:
        tokens, score_BN = translated(translator, pair, case)
        output = searched(pair, case)
        for row, n in np.ndindex(score_BN.shape):
            stopped = FINISH_REASONS[output["reason_BN"][row, n]] == "stop"
            ours = list(output["tokens_BNT"][row, n, : output["length_BN"][row, n] - stopped])
            equal = ours == tokens[row][n]
            gap = abs(output["score_BN"][row, n] - score_BN[row, n])
            assert gap < (1e-5 * max(1, abs(score_BN[row, n])) if equal else GAP), (case, row, n, gap)
            self.equal, self.stopped, self.empty = self.equal + equal, self.stopped + stopped, self.empty + (not ours)
        self.compared += score_BN.size

    def check(self) -> None:
        print(f"{self.equal} of {self.compared} hypotheses equal; {self.stopped} stopped, {self.empty} empty")
        assert self.equal >= 0.999 * self.compared
        assert 0.1 * self.compared < self.stopped < 0.97 * self.compared, "rows must end early, and at the limit"


def test_every_penalty(pairs):
    """Four beams with and without a length penalty, and with a coverage penalty."""
    tally = Tally()
    for seed, length_penalty in product((0, 1, 2), PENALTIES):
        tally.compare(*pairs(seed), Case(4, 4, length_penalty))
        tally.compare(*pairs(seed), Case(4, 4, length_penalty, 0.3, 1))
    assert tally.empty, "a text that ends at once must be among them"
    tally.check()


GRID = {
    "plain": {},
    "minimum": {"min_decoding_length": 4},
    "coverage": {"coverage_penalty": 0.2, "min_decoding_length": 1},
    "no_repeat": {"no_repeat_ngram_size": 2},
    "banned": {"banned": (5, 9, 17)},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", GRID)
def test_the_grid(pairs, options):
    """Beams 1, 2, 4; one, two and all hypotheses; several models.

    No coverage penalty with one beam, which crashes CTranslate2 4.8.5 (where it searches greedily).
    """
    tally = Tally()
    for case, seed in product(grid(GRID[options]), range(6)):
        tally.compare(*pairs(seed), case)
    tally.check()


def grid(options: dict[str, Any]) -> Iterator[Case]:
    for size in (2, 4) if "coverage_penalty" in options else (1, 2, 4):
        for count, penalty in product([n for n in sorted({1, 2, size}) if n <= size], PENALTIES):
            yield Case(size, count, penalty, **options)
