"""Beam search token for token against a search over Python lists, on 2,400 random languages with many ties."""

import numpy as np
import pytest
from decode_oracle import beam_oracle
from table_model import TableModel, random_cases

from jaxlm.decode.beam import beam_search
from jaxlm.decode.constrain import Forced
from jaxlm.decode.options import CTRANSLATE2, FAIRSEQ, T2T, Beam
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
    "ends uncounted, exact": (Beam(3, 2, count_stop=False, banned=(1,)), 4, 5, (3, 2)),
    "malus, sharp": (Beam(4, 2, reward=-0.5, penalty="gnmt", finish="top_2k", temperature=0.5), 4, 5, (3,)),
}


@pytest.mark.parametrize("name", CASES)
def test_same_as_lists(name):
    beam, size, length, stop = CASES[name]
    seed = list(CASES).index(name)
    rng = np.random.default_rng(seed)
    model = TableModel(size)
    cases = random_cases(model, rng, ROWS, prompt=3)
    limit_B = rng.integers(1, length + 1, ROWS).astype(np.int32)
    forced = Forced(rng.integers(0, size, (ROWS, 2)).astype(np.int32), (rng.random((ROWS, 2)) < 0.2).cumprod(1) > 0)
    found = beam_search(
        model, {}, cases.batch, cases.prompt_BP, cases.prompt_valid_BP, limit_B,
        length=length, beam=beam, stop=stop, forced=forced if seed % 2 else None,
    )  # fmt: skip
    found = {key: np.asarray(value) for key, value in vars(found).items()}
    for row in range(ROWS):
        prefix = forced.token_BF[row, : forced.valid_BF[row].sum()] if seed % 2 else ()
        expected = beam_oracle(beam, cases.logprob(row, beam.temperature), limit_B[row], stop, list(prefix))
        compare(found, row, expected, beam.returns)


def compare(found, row, expected, returns):
    for n in range(returns):
        tokens, s, score, reason = expected[n] if n < len(expected) else ([], -np.inf, -np.inf, "none")
        length = found["length_BN"][row, n]
        assert list(found["tokens_BNT"][row, n, :length]) == list(tokens), (row, n)
        assert not found["tokens_BNT"][row, n, length:].any()
        assert REASONS[found["reason_BN"][row, n]] == reason
        np.testing.assert_allclose(found["logprob_BN"][row, n], s, atol=1e-5, rtol=0)
        rtol = 1e-5 if length == 1 and score < -1e20 else 0  # a stop id alone that does not count: S = s / 1e-30
        np.testing.assert_allclose(found["score_BN"][row, n], score, atol=1e-5, rtol=rtol)
        if reason != "none":
            np.testing.assert_allclose(found["token_logprob_BNT"][row, n].sum(), s, atol=1e-5, rtol=0)
