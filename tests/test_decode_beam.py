"""Beam search token for token against a search over Python lists, on random languages with many ties.

3,240 cases with options that matter, and 10,000 (slow) with random ones.
"""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from decode_oracle import beam_oracle
from table_model import TableModel, random_cases

from jaxlm.decode.beam import beam_search
from jaxlm.decode.constrain import Forced
from jaxlm.decode.options import CTRANSLATE2, FAIRSEQ, T2T, Beam, Finish, Limit, Stop
from jaxlm.decode.reasons import REASONS

ROWS = 270
CASES = {
    "default": (Beam(3), 5, 5, (3,)),
    "fewer ids than candidates, T2T": (Beam(**{**vars(T2T), "size": 5, "returns": 5, "stop": "never"}), 3, 4, (2,)),
    "two stop ids, forced to stop": (Beam(2, 2, limit="force_eos", stop="heuristic", min_length=9), 5, 5, (3, 1)),
    "all that stop, alpha < 0": (Beam(3, 3, alpha=-1.0, finish="all", stop="full"), 5, 5, (3,)),
    "first, minimum length": (Beam(3, penalty="none", stop="first", min_length=3), 4, 5, (3,)),
    "banned, no repeats": (Beam(3, 3, banned=(1, 4), no_repeat_ngram=2, stop="never"), 5, 5, (3,)),
    "one token": (Beam(4, 4, finish="top_2k"), 5, 1, (3, 0)),
    "three stop ids, all that stop": (Beam(3, 3, finish="all", alpha=0.6, reward=0.5), 5, 4, (3, 0, 1)),
    "fairseq": (Beam(**{**vars(FAIRSEQ), "size": 3, "returns": 3}), 4, 5, (3,)),
    "CTranslate2": (Beam(**{**vars(CTRANSLATE2), "size": 3, "returns": 3, "min_length": 3}), 4, 5, (3,)),
    "first of several, uncounted": (
        Beam(4, 3, alpha=0.0, stop="first", limit="keep_top_k", count_stop=False),
        5,
        5,
        (3,),
    ),
    "ends uncounted, exact": (Beam(3, 2, count_stop=False, banned=(1,)), 4, 5, (3, 2)),
    "malus, sharp": (Beam(4, 2, reward=-0.5, penalty="gnmt", finish="top_2k", temperature=0.5), 4, 5, (3,)),
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
        beams = [replace(beam, alpha=alpha) for alpha in (-1.0, 0.0, 0.6, 1.0, 2.0)]
        same_as_lists(rng, beams, size, length, stop, rng.random() < 0.4, 25)


def random_options(rng):
    """Anything that `Beam` takes but coverage (a table has no attention); ids are few, so that 2k may be more."""

    def one(*choices):
        return choices[rng.integers(len(choices))]

    k, size, length = one(1, 2, 3, 4, 5), one(2, 3, 4, 5, 7), one(1, 2, 4, 5, 6)
    stop = tuple(int(i) for i in rng.permutation(size)[: one(0, 1, 1, 1, 2, 3)])
    beam = Beam(
        k, int(rng.integers(1, k + 1)), one("none", "power", "power", "gnmt"), reward=one(0.0, 0.0, 0.5, -0.5),
        count_stop=one(True, True, False), renormalise=one(False, False, True), arrival=one(False, False, True),
        finish=one(*get_args(Finish)), limit=one(*(x for x in get_args(Limit) if stop or x != "force_eos")),
        stop=one(*get_args(Stop)), temperature=one(1.0, 1.0, 0.5), min_length=one(0, 0, 0, 2, 4),
        banned=one((), (), (), (1,)), no_repeat_ngram=one(0, 0, 0, 1, 2, 3),
    )  # fmt: skip
    return beam, size, length, stop


def same_as_lists(rng, beams, size, length, stop, forces, rows):
    """Each of the beams, on random languages of its own, equals the search over lists."""
    model = TableModel(size)
    for beam in beams:
        cases = random_cases(model, rng, rows, prompt=3)
        limit_B = rng.integers(1, length + 1, rows).astype(np.int32)
        forced = Forced(rng.integers(0, size, (rows, 2)).astype(np.int32), (rng.random((rows, 2)) < 0.2).cumprod(1) > 0)
        found = beam_search(
            model, {}, cases.batch, cases.prompt_BP, cases.prompt_valid_BP, limit_B,
            length=length, beam=beam, stop=stop, forced=forced if forces else None,
        )  # fmt: skip
        found = {key: np.asarray(value) for key, value in vars(found).items()}
        for row in range(rows):
            prefix = forced.token_BF[row, : forced.valid_BF[row].sum()] if forces else ()
            expected = beam_oracle(beam, cases.logprob(row, beam.temperature), limit_B[row], stop, list(prefix))
            compare(found, row, expected, beam.returns)


def compare(found, row, expected, returns):
    """Equal tokens; S within 1e-5, or where |S| > 128 the next float32: XLA's division may be off by one."""
    for n in range(returns):
        tokens, s, score, reason = expected[n] if n < len(expected) else ([], -np.inf, -np.inf, "none")
        length = found["length_BN"][row, n]
        assert list(found["tokens_BNT"][row, n, :length]) == list(tokens), (row, n)
        assert not found["tokens_BNT"][row, n, length:].any()
        assert REASONS[found["reason_BN"][row, n]] == reason
        np.testing.assert_allclose(found["logprob_BN"][row, n], s, atol=1e-5, rtol=0)
        near = np.spacing(np.float32(abs(score))) if np.isfinite(score) else 0
        np.testing.assert_allclose(found["score_BN"][row, n], score, atol=max(1e-5, near), rtol=0)
        if reason != "none":
            np.testing.assert_allclose(found["token_logprob_BNT"][row, n].sum(), s, atol=1e-5, rtol=0)
