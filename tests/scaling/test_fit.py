"""Scaling laws: synthetic tables are recovered, published tables are refitted, resamples repeat."""

import numpy as np
import pytest

from jaxlm.scaling import fit
from jaxlm.scaling.laws import LAWS, constants, optimal_size
from jaxlm.scaling.summary import scaling_record, summary_page, summary_text
from jaxlm.scaling.table import logarithms, make_runs, read_runs

NINE_BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)
TRUTH = {
    "chinchilla": (np.log(400.0), np.log(2000.0), np.log(1.7), 0.34, 0.29),
    "kaplan": (0.74 * np.log(6.4e13), np.log(1.8e13), 0.74, 0.103),
    "overtrained": (np.log(150.0), np.log(250.0), np.log(1.8), 0.26),
    "compute": (np.log(2000.0), np.log(1.8), 0.16),
    "kaplan-N": (0.076 * np.log(8.8e13), 0.076),
    "kaplan-D": (0.095 * np.log(5.4e13), 0.095),
    "kaplan-C": (0.05 * np.log(1e25), 0.05),
}


def synthetic(law: str, scale: float = 1.0):
    """Five sizes and five numbers of tokens, without noise; N and D in units of `scale`."""
    params, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5)))
    runs = make_runs(params, tokens, np.ones(25))
    return make_runs(params * scale, tokens * scale, fit.predict_loss(law, TRUTH[law], runs), runs.flops)


@pytest.mark.parametrize("law", LAWS)
def test_derivatives(law):
    theta, logs_3R = np.array(TRUTH[law]), logarithms(synthetic(law))
    ends = [
        (LAWS[law].log_loss(theta + s, logs_3R)[0], LAWS[law].log_loss(theta - s, logs_3R)[0])
        for s in 1e-6 * np.eye(len(theta))
    ]
    numeric = [(after - before) / 2e-6 for after, before in ends]
    np.testing.assert_allclose(LAWS[law].log_loss(theta, logs_3R)[1], numeric, atol=1e-7)


@pytest.mark.parametrize("scale", (1.0, 1e-9))
@pytest.mark.parametrize("law", LAWS)
def test_a_table_without_noise_is_recovered_in_any_units(law, scale):
    fitted = fit.fit_law(law, synthetic(law, scale))
    exponents = slice(len(LAWS[law].variables), None)
    if law == "kaplan-N" and scale == 1:
        assert constants(law, fitted["theta"]) == pytest.approx({"Nc": 8.8e13, "aN": 0.076}, rel=1e-3)
    np.testing.assert_allclose(fitted["theta"][exponents], TRUTH[law][exponents], rtol=0, atol=1e-4)


def test_a_bootstrap_repeats_and_draws_clusters_whole():
    runs = synthetic("chinchilla")
    noisy = make_runs(runs.params, runs.tokens, runs.loss * np.exp(0.01 * np.random.default_rng(0).normal(size=25)))
    fitted = fit.fit_law("chinchilla", noisy)
    first, again, other = (fit.bootstrap(fitted, noisy, 4, seed)["samples"] for seed in (3, 3, 4))
    assert first == again != other
    one = make_runs(noisy.params, noisy.tokens, noisy.loss, cluster=["all"] * 25)
    assert np.allclose(fit.bootstrap(fitted, one, 2)["samples"], fitted["theta"], rtol=1e-3)


def test_optimal_sizes():
    theta = TRUTH["chinchilla"]
    params, tokens = optimal_size("chinchilla", theta, 1e21)
    assert 6 * params * tokens == pytest.approx(1e21)
    sizes = params * np.array([0.9, 1.0, 1.1])
    losses = fit.predict_loss("chinchilla", theta, make_runs(sizes, 1e21 / 6 / sizes, np.ones(3)))
    assert losses.argmin() == 1
    served, longer = optimal_size("chinchilla", theta, 1e21, serve=1e12)
    assert served < params and longer > tokens
    same = fit.predict_loss("chinchilla", theta, make_runs([params, served], [tokens, longer], [1, 1]))
    assert same[0] == pytest.approx(same[1])
    assert 6 * served * longer + 2e12 * served < 6 * params * tokens + 2e12 * params


def test_text():
    text = summary_text(scaling_record("chinchilla", synthetic("chinchilla"), bootstrap=2))
    assert "approach 1: a_opt" in text and "runs up to C" in text and "A     400 (400 to 400)" in text


@pytest.mark.slow
def test_page():
    """Seconds of matplotlib."""
    runs = synthetic("compute")
    record = scaling_record("compute", runs, bootstrap=0)
    both = synthetic("chinchilla")
    page = summary_page(
        "Laws <1>", {"one": (runs, record), "two": (both, scaling_record("chinchilla", both, bootstrap=2))}
    )
    assert (
        page.count("<h2>") == 2 and page.startswith("<!doctype html>") and "<svg" in page and "Laws &lt;1&gt;" in page
    )
    assert "approach" not in summary_text(record)


def _toy():
    return read_runs("scaling_chinchilla_toy/df.csv", {"N": "N", "D": "D", "L": "loss", "C": "C"})


@pytest.mark.data
def test_refit_of_the_chinchilla_table(data_root):
    """The points of the figure of Hoffmann et al. with D / N >= 1: the minimum that 4,500 starts find too."""
    runs = _toy()
    fitted = fit.fit_law("chinchilla", runs)
    assert len(runs) == 234 and fitted["objective"] == pytest.approx(8.40093e-4, rel=1e-6)
    found = constants("chinchilla", fitted["theta"])
    assert found == pytest.approx(dict(A=442.16, B=1271.8, E=1.7839, a=0.3426, b=0.3420, a_opt=0.4995), rel=1e-4)
    assert optimal_size("chinchilla", fitted["theta"], 5.76e23) == pytest.approx((6.5e10, 1.48e12), rel=0.01)
    kaplan = fit.fit_law("kaplan", runs)
    assert constants("kaplan", kaplan["theta"])["Nc"] == pytest.approx(8.2e12, rel=0.01)
    assert constants("kaplan", kaplan["theta"])["Dc"] == pytest.approx(3.5e13, rel=0.01)
    assert kaplan["rms_log_error"] == pytest.approx(0.0159, abs=1e-4)
    assert fitted["rms_log_error"] == pytest.approx(0.0055, abs=1e-4)


@pytest.mark.data
def test_approaches_1_and_2_of_the_chinchilla_table(data_root):
    runs = _toy()
    minima = fit.isoflops(runs, NINE_BUDGETS)
    assert [flops for flops, _, minimum in minima if not minimum] == [1e20]
    assert fit.growth([(flops, minimum[1]) for flops, _, minimum in minima if minimum]) == pytest.approx(
        0.519, abs=3e-3
    )
    assert fit.growth(fit.envelope(runs)) == pytest.approx(0.495, abs=3e-3)


@pytest.mark.data
@pytest.mark.slow
def test_intervals_of_the_chinchilla_table(data_root):
    """A bootstrap of 1,000: 14 seconds of one core of a two-core EPYC machine."""
    constants_of = scaling_record("chinchilla", _toy())["constants"]
    expected = {"a": (0.314, 0.372), "b": (0.310, 0.377), "E": (1.745, 1.829), "a_opt": (0.459, 0.541)}
    for name, bounds in expected.items():
        assert constants_of[name][1:] == pytest.approx(bounds, abs=0.005), name


OPENLM = {
    "c4_original": (34, (0.253, 0.262, 1.620, 0.225), {(1.44, 4): 1.50, (6.89, 1): 4.30}),
    "rpj": (35, (0.243, 0.273, 1.720, 0.196), {(1.44, 32): 0.71, (6.89, 1): 0.73}),
    "rw_original": (35, (0.223, 0.290, 1.701, 0.190), {(1.44, 16): 0.01, (6.89, 1): 1.62}),
}


@pytest.mark.data
@pytest.mark.parametrize("dataset", OPENLM)
def test_refit_of_the_openlm_tables(dataset, data_root):
    """Gadre et al.: chinchilla with both counts of N, and the overtrained law of five small runs."""
    rows, (a, b, floor, a_hidden), errors = OPENLM[dataset]
    columns = {"N": "params", "D": "tokens", "L": "c4_val_loss"}
    runs, hidden = (
        read_runs("scaling_openlm_testbed/models_c4val.csv", columns | {"N": name}, [f"dataset={dataset}"])
        for name in ("params", "params_no_embed")
    )
    found = constants("chinchilla", fit.fit_law("chinchilla", runs)["theta"])
    assert len(runs) == rows
    assert (found["a"], found["b"]) == pytest.approx((a, b), abs=1e-3) and found["E"] == pytest.approx(floor, rel=0.01)
    assert constants("chinchilla", fit.fit_law("chinchilla", hidden)["theta"])["a"] == pytest.approx(a_hidden, abs=1e-3)
    times = runs.tokens / runs.params / 20
    small = (np.isclose(times, 1) & (runs.params < 5e8)) | (np.isclose(times, 16) & (runs.params < 2e7))
    assert small.sum() == 5
    theta = fit.fit_law("overtrained", runs[small])["theta"]
    for (billions, multiplier), percent in errors.items():
        run = runs[np.isclose(runs.params / 1e9, billions, rtol=0.01) & np.isclose(times, multiplier)]
        assert abs(fit.predict_loss("overtrained", theta, run) / run.loss - 1) * 100 == pytest.approx(percent, abs=0.01)
