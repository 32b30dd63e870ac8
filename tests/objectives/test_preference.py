"""The losses of preferences against NumPy in float64, their gradients against finite differences, and their laws."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures.preference_rows import ROWS, Bigram, bigram_params, oracle_log_probs, preference_batch

from jaxlm.errors import UserError
from jaxlm.objectives.preference import KTO, PairwisePreference
from jaxlm.training.state import TrainState
from jaxlm.training.step import StepConfig, make_train_step

BATCH, PARAMS = preference_batch(), bigram_params()
JUDGED = BATCH.replace(class_B=np.array([1, 0, 1, 1, 0, 0, 1, 0], np.int32))
PAIRS = {
    "dpo": PairwisePreference(),
    "cdpo": PairwisePreference(beta=0.3, label_smoothing=0.1),
    "dpo_norm": PairwisePreference(beta=0.3, kind="dpo_norm"),
    "robust": PairwisePreference(kind="robust", label_smoothing=0.2),
    "hinge": PairwisePreference(kind="hinge", beta=0.5),
    "ipo": PairwisePreference(kind="ipo"),
    "apo_zero": PairwisePreference(kind="apo_zero", beta=0.3),
    "nll": PairwisePreference(nll_weight=0.7),
    "row_nll": PairwisePreference(nll_weight=0.7, nll_of="row"),
    "simpo": PairwisePreference(kind="simpo", beta=2.0, gamma=0.5),
    "cpo": PairwisePreference(kind="cpo", nll_weight=1.0),
    "orpo": PairwisePreference(kind="orpo", beta=0.2),
    "orpo_answer": PairwisePreference(kind="orpo", beta=0.2, nll_of="answer"),
}


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def oracle(objective, params, batch):
    """The mean loss of the pairs, formula by formula."""
    kind, beta, e = objective.kind, objective.beta, objective.label_smoothing
    s, n, row_nll = oracle_log_probs(params, batch)
    r = s - np.asarray(batch.reference_logprob_BA, np.float64)
    h, mean = r[:, 0] - r[:, 1], s / n
    norm = (r / n)[:, 0] - (r / n)[:, 1]
    if kind in ("dpo", "dpo_norm"):
        z = beta * (h if kind == "dpo" else norm)
        loss = -(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z)
    elif kind == "robust":
        loss = (-(1 - e) * log_sigmoid(beta * h) + e * log_sigmoid(-beta * h)) / (1 - 2 * e)
    elif kind == "hinge":
        loss = np.maximum(0, 1 - beta * h)
    elif kind == "ipo":
        loss = (norm - 1 / (2 * beta)) ** 2
    elif kind == "apo_zero":
        loss = 1 - np.exp(log_sigmoid(beta * r[:, 0])) + np.exp(log_sigmoid(beta * r[:, 1]))
    elif kind == "cpo":
        loss = -log_sigmoid(beta * (s[:, 0] - s[:, 1]))
    elif kind == "simpo":
        loss = -log_sigmoid(beta * (mean[:, 0] - mean[:, 1]) - objective.gamma)
    else:
        odds = mean - np.log(1 - np.exp(mean))
        loss = -beta * log_sigmoid(odds[:, 0] - odds[:, 1])
    weight = 1.0 if kind == "orpo" else objective.nll_weight
    rows = objective.nll_of == "row" or (kind == "orpo" and objective.nll_of != "answer")
    return np.mean(loss + weight * (row_nll if rows else -mean[:, 0]))


def kto_oracle(objective, params, batch):
    s, _, _ = oracle_log_probs(params, batch)
    r = s - np.asarray(batch.reference_logprob_BA, np.float64)
    z0, good = kto_baseline(params, batch), batch.class_B == 1
    sign, weight = np.where(good, 1, -1), np.where(good, objective.desirable_weight, objective.undesirable_weight)
    return np.mean(weight * (1 - np.exp(log_sigmoid(objective.beta * sign * (r[:, 0] - z0)))))


def kto_baseline(params, batch):
    s, _, _ = oracle_log_probs(params, batch)
    return max(0.0, np.mean(s[:, 1] - batch.reference_logprob_BA[:, 1]))


def mean_loss(objective, params, batch):
    """(loss, gradient) of the objective as the train step computes them."""

    def loss(params):
        sums = objective(Bigram(), params, objective.prepare_batch(Bigram(), params, batch), None)
        return sums.total / sums.count

    return jax.jit(jax.value_and_grad(loss))(params)


def check_gradient(gradient, function):
    """Three entries of the gradient against central differences in float64."""
    for name, index in (("table", (2, 1)), ("table", (6, 3)), ("output", (1, 3))):

        def moved(step, name=name, index=index):
            params = {key: value.astype(np.float64) for key, value in PARAMS.items()}
            params[name][index] += step
            return function(params)

        expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose(gradient[name][index], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_losses_of_pairs_equal_their_formulas(name):
    objective = PAIRS[name]
    loss, gradient = mean_loss(objective, PARAMS, BATCH)
    np.testing.assert_allclose(loss, oracle(objective, PARAMS, BATCH), rtol=1e-5)
    check_gradient(gradient, lambda params: oracle(objective, params, BATCH))


@pytest.mark.parametrize("shift", [0.0, 12.0], ids=["clipped", "positive"])
def test_kto_equals_its_formula(shift):
    """Both with z0 = 0, where the policy is below the reference on average, and with z0 > 0."""
    objective = KTO(0.3, desirable_weight=1.0, undesirable_weight=1.5)
    reference_BA = BATCH.reference_logprob_BA - np.float32(shift)
    batch = JUDGED.replace(reference_logprob_BA=reference_BA)
    z0 = kto_baseline(PARAMS, batch)
    assert (z0 > 0.1) == (shift > 0)

    def constant_baseline(params):  # z0 has no gradient
        s, _, _ = oracle_log_probs(params, batch)
        sign, weight = np.where(batch.class_B == 1, 1, -1), np.where(batch.class_B == 1, 1.0, 1.5)
        r = s[:, 0] - reference_BA[:, 0].astype(np.float64)
        return np.mean(weight * (1 - np.exp(log_sigmoid(0.3 * sign * (r - z0)))))

    loss, gradient = mean_loss(objective, PARAMS, batch)
    np.testing.assert_allclose(loss, kto_oracle(objective, PARAMS, batch), rtol=1e-5)
    check_gradient(gradient, constant_baseline)


@pytest.mark.parametrize(
    "objective, batch", [(PAIRS["cdpo"], BATCH), (KTO(0.5), JUDGED)], ids=["pairs", "kto"]
)  # fmt: skip
def test_accumulation_gives_the_update_of_the_whole_batch(objective, batch):
    """KTO's baseline is a mean over the whole batch: one of each micro-batch would give another update."""
    batch = batch.replace(reference_logprob_BA=batch.reference_logprob_BA - np.float32(12))
    results = []
    for grad_accum in (1, 4):
        step = make_train_step(Bigram(), objective, optax.sgd(0.5), lambda _: 0.5, StepConfig(grad_accum=grad_accum))
        params = jax.tree.map(jnp.array, PARAMS)
        results.append(step(TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(0.5).init(params)), batch))
    (state, metrics), (other, others) = results
    for a, b in zip(jax.tree.leaves((state.params, metrics)), jax.tree.leaves((other.params, others)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert set(metrics.figures) >= {"rewards/chosen", "accuracy"} or "kl" in metrics.figures
    if "kl" in metrics.figures:
        assert metrics.figures["kl"][0] > 0.1


def test_figures_of_pairs():
    objective = PAIRS["dpo"]
    s, n, _ = oracle_log_probs(PARAMS, BATCH)
    r = 0.1 * (s - BATCH.reference_logprob_BA)
    figures = jax.jit(lambda params: objective(Bigram(), params, BATCH, None).figures)(PARAMS)
    means = {name: float(total / count) for name, (total, count) in figures.items()}
    expected = {"margin": (r[:, 0] - r[:, 1]).mean(), "accuracy": (r[:, 0] > r[:, 1]).mean()}
    for side, a in (("chosen", 0), ("rejected", 1)):
        expected |= {
            f"rewards/{side}": r[:, a].mean(),
            f"logp/{side}": s[:, a].mean(),
            f"length/{side}": n[:, a].mean(),
        }
    assert means == pytest.approx(expected, rel=1e-5)


def test_rows_without_answers_count_nothing():
    """Rows that fill the shape of an evaluation batch."""
    empty = {"target_valid_BT": BATCH.target_valid_BT.copy(), "loss_mask_BT": BATCH.loss_mask_BT.copy()}
    other = BATCH.other.replace(loss_mask_BT=BATCH.other.loss_mask_BT.copy())
    for mask in (*empty.values(), other.loss_mask_BT):
        mask[-1] = False
    padded = BATCH.replace(**empty, other=other)
    whole = jax.tree.map(lambda x: x[:-1], BATCH)
    for objective in (PAIRS["dpo"], PAIRS["orpo"]):
        loss = jax.jit(
            lambda batch, objective=objective: objective(Bigram(), jax.tree.map(jnp.array, PARAMS), batch, None)
        )
        losses = [loss(batch) for batch in (padded, whole)]
        np.testing.assert_allclose(losses[0].total, losses[1].total, rtol=1e-6)
        assert losses[0].count == losses[1].count == ROWS - 1


def test_the_loss_of_the_reference_itself_is_log_2():
    objective = PAIRS["dpo"]
    sums_BA = oracle_log_probs(PARAMS, BATCH)[0].astype(np.float32)
    loss, _ = mean_loss(objective, PARAMS, BATCH.replace(reference_logprob_BA=sums_BA))
    np.testing.assert_allclose(loss, np.log(2), atol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PairwisePreference(kind="ipo", label_smoothing=0.1), "label_smoothing = 0.1 has no effect on 'ipo'"),
        (lambda: PairwisePreference(gamma=0.5), "gamma = 0.5 has no effect on 'dpo'"),
        (lambda: PairwisePreference(kind="robust", label_smoothing=0.5), "from 0 to less than 0.5"),
        (lambda: PairwisePreference(kind="orpo", nll_weight=1.0), "leave nll_weight at 0"),
        (lambda: KTO(beta=0.0), "beta = 0.0: expected a number above 0"),
        (lambda: KTO(reference="base", reference_workdir="runs/x"), "no effect on reference = 'base'"),
    ],
)
def test_options_without_effect_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_batch_without_its_reference_is_refused():
    with pytest.raises(UserError, match="lacks the log-probabilities of the reference"):
        PairwisePreference().prepare_batch(Bigram(), PARAMS, replace(BATCH, reference_logprob_BA=None))
