"""The conditional random field against an enumeration of all label sequences."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.layers.crf import CRF, FORBIDDEN_SCORE

LABELS, LENGTH = 3, 5
SIZES = np.array([5, 4, 1, 0, 3, 5])
FORBIDDEN = ((-1, 2), (0, 2))


def parameters(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    shapes = {"transition": (LABELS, LABELS), "start": (LABELS,), "end": (LABELS,)}
    return {"params": {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}}


def places(layout: str) -> np.ndarray:
    rng = np.random.default_rng(4)
    valid_BS = np.arange(LENGTH)[None] < SIZES[:, None]
    return {"right": valid_BS, "left": valid_BS[:, ::-1], "holes": rng.permuted(valid_BS, axis=1)}[layout]


def emissions(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(SIZES), LENGTH, LABELS)).astype(np.float32)


def scores(variables: dict, emission_SC: np.ndarray, forbidden: tuple) -> dict[tuple[int, ...], float]:
    """Every label sequence and its score, by the equation."""
    p = {name: value.astype(np.float64) for name, value in variables["params"].items()}
    for before, after in forbidden:
        p["start"][after] = FORBIDDEN_SCORE if before < 0 else p["start"][after]
        p["transition"][before, after] = FORBIDDEN_SCORE if before >= 0 else p["transition"][before, after]
    actual = {}
    for y in product(range(LABELS), repeat=len(emission_SC)):
        emitted = sum(emission[label] for emission, label in zip(emission_SC, y, strict=True))
        passed = sum(p["transition"][pair] for pair in zip(y, y[1:], strict=False))
        actual[y] = emitted + passed + (p["start"][y[0]] + p["end"][y[-1]] if y else 0.0)
    return actual


def log_sum(values) -> float:
    return float(np.logaddexp.reduce(np.fromiter(values, np.float64)))


@pytest.mark.parametrize("forbidden", [(), FORBIDDEN], ids=["all", "forbidden"])
@pytest.mark.parametrize("layout", ["right", "left", "holes"])
def test_partition_function_and_viterbi(layout, forbidden):
    crf, variables, emission_BSC, valid_BS = CRF(LABELS, forbidden), parameters(), emissions(), places(layout)
    label_BS = np.random.default_rng(2).integers(0, LABELS, valid_BS.shape)
    label_BS[1, valid_BS[1].argmax()] = -1  # a word without a label, the first one of its row
    nll_B = jax.jit(crf.apply)(variables, emission_BSC, label_BS, valid_BS)
    best_BS = jax.jit(partial(crf.apply, method="viterbi"))(variables, emission_BSC, valid_BS)
    for row, valid_S in enumerate(valid_BS):
        every = scores(variables, emission_BSC[row][valid_S], forbidden)
        gold = label_BS[row][valid_S]
        fits = [score for y, score in every.items() if all(g in (-1, label) for g, label in zip(gold, y, strict=True))]
        np.testing.assert_allclose(nll_B[row], log_sum(every.values()) - log_sum(fits), rtol=2e-5, atol=2e-5)
        assert tuple(best_BS[row][valid_S]) == max(every, key=every.__getitem__)
        assert (best_BS[row][~valid_S] == -1).all()


def test_forbidden_transitions_are_never_predicted():
    crf, variables = CRF(LABELS, FORBIDDEN), parameters()
    emission_BSC = emissions() + 50.0 * np.eye(LABELS, dtype=np.float32)[2][None, None]  # all would be label 2
    valid_BS = places("right")
    best_BS = np.asarray(crf.apply(variables, emission_BSC, valid_BS, method="viterbi"))
    assert (best_BS[valid_BS] == 2).any() and (best_BS[:, 0] != 2).all()
    assert not ((best_BS[:, :-1] == 0) & (best_BS[:, 1:] == 2)).any()


def test_the_gradient_is_the_marginal_minus_the_label():
    """d(-log p)/d emission = p(label at t) - 1[label at t]; it sums to 0 over the labels, and is 0 on padding."""
    crf, variables, emission_BSC, valid_BS = CRF(LABELS), parameters(), emissions(), places("holes")
    label_BS = np.random.default_rng(2).integers(0, LABELS, valid_BS.shape)
    total = lambda emission_BSC: crf.apply(variables, emission_BSC, label_BS, valid_BS).sum()  # noqa: E731
    gradient_BSC = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(emission_BSC)))
    for row, valid_S in enumerate(valid_BS):
        every = scores(variables, emission_BSC[row][valid_S], ())
        whole, expected_SC = log_sum(every.values()), np.zeros((valid_S.sum(), LABELS))
        for y, score in every.items():
            expected_SC[np.arange(len(y)), list(y)] += np.exp(score - whole)
        expected_SC[np.arange(len(expected_SC)), label_BS[row][valid_S]] -= 1.0
        np.testing.assert_allclose(gradient_BSC[row][valid_S], expected_SC, atol=2e-5)
        np.testing.assert_array_equal(gradient_BSC[row][~valid_S], 0.0)
