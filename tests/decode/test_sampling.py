"""Sampling: exact top-k, the filters against NumPy, Gumbel-max against softmax, samples by line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.table_model import TableModel, random_cases
from jax import lax

from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.sampling import (
    Sampler,
    apply_filters,
    chunked_top_k,
    filter_min_p,
    filter_top_k,
    filter_top_p,
    line_rng_keys,
    sample,
)
from jaxlm.errors import UserError


@pytest.mark.parametrize("width, count", [(5000, 10), (4096 + 31, 3), (9000, 1), (40, 10), (4, 7)])
def test_chunked_top_k_equals_top_k_with_ties(width, count):
    rng = np.random.default_rng(width)
    score_BX = rng.integers(0, 6, (6, width)).astype(np.float32)
    score_BX[1] = -np.inf
    score_BX[2, 7:] = -np.inf
    score_BX[3] = rng.normal(size=width)
    score_BX[4] = np.arange(width)
    score_BA, index_BA = jax.device_get(jax.jit(chunked_top_k, static_argnums=1)(score_BX, count))
    expected, place = jax.device_get(lax.top_k(score_BX, min(width, count)))
    np.testing.assert_array_equal(score_BA[:, :width], expected)
    np.testing.assert_array_equal(index_BA[:, :width], place)
    assert np.isneginf(score_BA[:, width:]).all()


LOGPROB_BV = np.random.default_rng(0).normal(size=(50, 23)).astype(np.float32) * 3


def kept_by_top_p(p_V, top_p):
    order = np.argsort(-p_V, kind="stable")
    return set(order[: int(np.searchsorted(np.cumsum(p_V[order]), top_p)) + 1])


def test_filters_against_numpy():
    p_BV = np.exp(LOGPROB_BV.astype(np.float64))
    p_BV /= p_BV.sum(axis=1, keepdims=True)
    for top_k, top_p, min_p in [(3, 0.9, 0.1), (30, 0.01, 0.0)]:
        filtered = [filter_top_k(LOGPROB_BV, top_k)[0], filter_top_p(LOGPROB_BV, top_p)]
        filtered.append(filter_min_p(LOGPROB_BV, min_p))
        filtered.append(apply_filters(LOGPROB_BV, Sampler(1.0, top_k, top_p, min_p))[0])
        filtered = [np.asarray(each) for each in filtered]
        for row, p_V in enumerate(p_BV):
            by_k = set(np.argsort(-p_V)[: top_k or None])
            by_p = kept_by_top_p(p_V, top_p)
            by_min = set(np.flatnonzero(p_V >= min_p * p_V.max() * (1 - 1e-6)))
            for each, expected in zip(filtered, (by_k, by_p, by_min, by_k & by_p & by_min), strict=True):
                assert set(np.flatnonzero(each[row] > -np.inf)) == expected
                np.testing.assert_array_equal(each[row, list(expected)], LOGPROB_BV[row, list(expected)])


def test_equal_probabilities_stay_together():
    logprob_BV = np.log(np.array([[0.3, 0.3, 0.3, 0.1]], np.float32))
    for filtered in (filter_top_k(logprob_BV, 1)[0], filter_top_p(logprob_BV, 0.2)):
        np.testing.assert_array_equal(np.isneginf(filtered), [[False, False, False, True]])


def test_off_means_untouched():
    np.testing.assert_array_equal(apply_filters(LOGPROB_BV, Sampler())[0], LOGPROB_BV)


def test_gumbel_max_samples_the_softmax():
    """Chi-square with 7 degrees of freedom: above 24.3 with probability 0.001."""
    lines = 10_000
    p_V = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.02])
    logprob_BV = np.broadcast_to(np.log(p_V.astype(np.float32))[None, :] + 5, (lines, 8))
    choose = jax.jit(lambda key_B, sampler: sample(logprob_BV, key_B, 4, sampler), static_argnums=1)
    key_B = line_rng_keys(3, jnp.arange(lines))
    token_B = choose(key_B, Sampler())
    count_V = np.bincount(np.asarray(token_B), minlength=8)
    assert ((count_V - lines * p_V) ** 2 / (lines * p_V)).sum() < 24.3
    kept = np.asarray(choose(key_B, Sampler(top_k=2)))
    assert set(kept) == {0, 1} and abs((kept == 0).mean() - 0.6) < 0.02


@pytest.mark.parametrize("levels", [3, 10**6])
def test_noise_for_top_k_equals_noise_for_all(levels):
    """Sampling with top-k equals sampling from the filtered scores, with and without ties at rank k."""
    score_BV = np.random.default_rng(levels).integers(0, levels, (64, 500)).astype(np.float32) * (4 / levels)
    key_B, sampler = line_rng_keys(1, jnp.arange(64)), Sampler(top_k=7, min_p=0.01)
    once = jax.jit(lambda score_BV: sample(score_BV, key_B, 2, sampler))(score_BV)
    left_BV, _ = apply_filters(jnp.asarray(score_BV), sampler)
    assert (levels == 3) == bool(((left_BV > -jnp.inf).sum(1) > 7).any())
    np.testing.assert_array_equal(once, jax.jit(lambda score_BV: sample(score_BV, key_B, 2, Sampler()))(left_BV))


def test_a_sample_depends_on_its_line_alone():
    model, rows, length = TableModel(5), 32, 6
    cases = random_cases(model, np.random.default_rng(2), rows, prompt=2)
    sampler = Sampler(temperature=3.0, top_p=0.95)

    def write(at, line_B=None, seed=11):
        some = cases.take(at)
        limit_B, address = np.full(len(at), length, np.int32), {"seed": seed, "line_B": line_B}
        request = DecodeRequest(some.batch, some.prompt_BP, some.prompt_valid_BP, limit_B, **address)
        return jax.device_get(generate(model, {}, request, GenerationConfig(length, sampler=sampler)))

    every = np.arange(rows)
    expected = write(every)
    for at in (every[::-1], np.tile(every[5:9], 8)):
        filtered = write(at, line_B=at)
        np.testing.assert_array_equal(filtered.tokens_BT, expected.tokens_BT[at])
        np.testing.assert_array_equal(filtered.token_logprob_BT, expected.token_logprob_BT[at])
    assert (write(every, seed=12).tokens_BT != expected.tokens_BT).any()
    same = write(np.zeros(rows, int))
    assert len({tuple(tokens) for tokens in same.tokens_BT}) > 10


def test_invalid_samplers_are_refused():
    for options in ({"temperature": -1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2}):
        with pytest.raises(UserError):
            Sampler(**options)
    assert hash(Sampler()) == hash(Sampler())
