"""Beam search token for token against a search over Python lists, on random languages with many ties.

3,240 cases with options that matter, and 10,000 (slow) with random ones.
"""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from fixtures.table_model import TableModel, random_cases
from references.decode_oracle import beam_oracle

from jaxlm.decode.beam_config import (
    CTRANSLATE2,
    FAIRSEQ,
    T2T,
    Beam,
    BeamSearchConfig,
    FinishRule,
    MaxLengthRule,
    StoppingRule,
)
from jaxlm.decode.beam_search import beam_search
from jaxlm.decode.logit_masks import ForcedPrefix
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.results import FINISH_REASONS

ROWS = 270
CASES = {
    "default": (Beam(3), 5, 5, (3,)),
    "fewer ids than candidates, T2T": (
        Beam(**{**vars(T2T), "num_beams": 5, "num_return_sequences": 5, "stopping_rule": "never"}),
        3,
        4,
        (2,),
    ),
    "two stop ids, forced to stop": (
        Beam(2, 2, at_max_length="force_eos", stopping_rule="heuristic", min_length=9),
        5,
        5,
        (3, 1),
    ),
    "all that stop, alpha < 0": (Beam(3, 3, length_penalty=-1.0, finish_rule="all", stopping_rule="full"), 5, 5, (3,)),
    "first, minimum length": (Beam(3, length_penalty_kind="none", stopping_rule="first", min_length=3), 4, 5, (3,)),
    "banned, no repeats": (
        Beam(3, 3, suppress_tokens=(1, 4), no_repeat_ngram_size=2, stopping_rule="never"),
        5,
        5,
        (3,),
    ),
    "one token": (Beam(4, 4, finish_rule="top_2k"), 5, 1, (3, 0)),
    "three stop ids, all that stop": (
        Beam(3, 3, finish_rule="all", length_penalty=0.6, length_reward=0.5),
        5,
        4,
        (3, 0, 1),
    ),
    "fairseq": (Beam(**{**vars(FAIRSEQ), "num_beams": 3, "num_return_sequences": 3}), 4, 5, (3,)),
    "CTranslate2": (
        Beam(**{**vars(CTRANSLATE2), "num_beams": 3, "num_return_sequences": 3, "min_length": 3}),
        4,
        5,
        (3,),
    ),
    "first of several, uncounted": (
        Beam(4, 3, length_penalty=0.0, stopping_rule="first", at_max_length="keep_top_k", count_eos=False),
        5,
        5,
        (3,),
    ),
    "ends uncounted, exact": (Beam(3, 2, count_eos=False, suppress_tokens=(1,)), 4, 5, (3, 2)),
    "malus, sharp": (
        Beam(4, 2, length_reward=-0.5, length_penalty_kind="gnmt", finish_rule="top_2k", temperature=0.5),
        4,
        5,
        (3,),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_as_lists(name):
    beam, size, length, stop = CASES[name]
    seed = list(CASES).index(name)
    same_as_lists(np.random.default_rng(seed), (beam,), size, length, stop, bool(seed % 2), ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_options(seed):
    """1,250 cases each: ten compiled searches with random options, five length penalties, 25 languages."""
    rng = np.random.default_rng(1000 + seed)
    for _ in range(10):
        beam, size, length, stop = random_options(rng)
        beams = [replace(beam, length_penalty=alpha) for alpha in (-1.0, 0.0, 0.6, 1.0, 2.0)]
        same_as_lists(rng, beams, size, length, stop, rng.random() < 0.4, 25)


def random_options(rng):
    """Random options of `Beam` except coverage (a table has no attention); few ids, so that 2k may exceed them."""

    def one(*choices):
        return choices[rng.integers(len(choices))]

    k, size, length = one(1, 2, 3, 4, 5), one(2, 3, 4, 5, 7), one(1, 2, 4, 5, 6)
    stop = tuple(int(i) for i in rng.permutation(size)[: one(0, 1, 1, 1, 2, 3)])
    beam = Beam(
        k, int(rng.integers(1, k + 1)), one("none", "power", "power", "gnmt"), length_reward=one(0.0, 0.0, 0.5, -0.5),
        count_eos=one(True, True, False), renormalize_logits=one(False, False, True),
        keep_first_finished=one(False, False, True),
        finish_rule=one(*get_args(FinishRule)),
        at_max_length=one(*(x for x in get_args(MaxLengthRule) if stop or x != "force_eos")),
        stopping_rule=one(*get_args(StoppingRule)), temperature=one(1.0, 1.0, 0.5), min_length=one(0, 0, 0, 2, 4),
        suppress_tokens=one((), (), (), (1,)), no_repeat_ngram_size=one(0, 0, 0, 1, 2, 3),
    )  # fmt: skip
    return beam, size, length, stop


def same_as_lists(rng, beams, size, length, stop, forces, rows):
    """Each of the beams, on random languages of its own, equals the search over lists."""
    model = TableModel(size)
    for beam in beams:
        cases = random_cases(model, rng, rows, prompt=3)
        limit_B = rng.integers(1, length + 1, rows).astype(np.int32)
        forced = ForcedPrefix(
            rng.integers(0, size, (rows, 2)).astype(np.int32), (rng.random((rows, 2)) < 0.2).cumprod(1) > 0
        )
        request = DecodeRequest(
            cases.batch, cases.prompt_BP, cases.prompt_valid_BP, limit_B, forced_prefix=forced if forces else None
        )
        hypotheses = beam_search(model, {}, request, BeamSearchConfig(length, stop, beam))
        hypotheses = {key: np.asarray(value) for key, value in vars(hypotheses).items()}
        for row in range(rows):
            prefix = forced.token_BF[row, : forced.valid_BF[row].sum()] if forces else ()
            expected = beam_oracle(beam, cases.logprob(row, beam.temperature), limit_B[row], stop, list(prefix))
            compare(hypotheses, row, expected, beam.num_return_sequences)


def compare(hypotheses, row, expected, returns):
    """Equal tokens; S within 1e-5, or where |S| > 128 the next float32: XLA's division may be off by one."""
    for n in range(returns):
        tokens, s, score, reason = expected[n] if n < len(expected) else ([], -np.inf, -np.inf, "none")
        length = hypotheses["length_BN"][row, n]
        assert list(hypotheses["tokens_BNT"][row, n, :length]) == list(tokens), (row, n)
        assert not hypotheses["tokens_BNT"][row, n, length:].any()
        assert FINISH_REASONS[hypotheses["reason_BN"][row, n]] == reason
        np.testing.assert_allclose(hypotheses["logprob_BN"][row, n], s, atol=1e-5, rtol=0)
        near = np.spacing(np.float32(abs(score))) if np.isfinite(score) else 0
        np.testing.assert_allclose(hypotheses["score_BN"][row, n], score, atol=max(1e-5, near), rtol=0)
        if reason != "none":
            np.testing.assert_allclose(hypotheses["token_logprob_BNT"][row, n].sum(), s, atol=1e-5, rtol=0)
