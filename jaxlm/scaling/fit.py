"""Fits of scaling laws: approaches 1 to 3 of Hoffmann et al. 2022, bootstrap, and the error on runs left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from jaxlm.errors import UserError
from jaxlm.json_files import read_json
from jaxlm.scaling.laws import LAWS
from jaxlm.scaling.table import Runs, logarithms

OBJECTIVE_SCALE = 1e3
"""Factor of the objective while it is minimized: at its own size, 1e-3, the optimizer's tolerances end it early."""
MAX_CONDITION, BUDGET_WIDTH, BUDGET_ROWS = 100.0, 0.08, 4


class FittedLaw(TypedDict):
    """A fit as in law.json: `samples` are the values of theta (see `ScalingLaw`) of the bootstrap."""

    law: str
    theta: list[float]
    rows: int
    objective: float
    rms_log_error: float
    largest_flops: float
    samples: list[list[float]]


def read_law(path: Path) -> FittedLaw:
    """The law of a law.json. Raises UserError if it is not one."""
    cure = "write it with `jaxlm scale fit TABLE --out law.json`"
    fitted: FittedLaw = read_json(path, FittedLaw, cure)
    num = len(LAWS[fitted["law"]].names) if fitted["law"] in LAWS else 0
    if any(len(theta) != num for theta in (fitted["theta"], *fitted["samples"])):
        raise UserError(f"{path}: expected one of the laws {', '.join(LAWS)} and all of its parameters: {cure}")
    return fitted


def fit_law(name: str, runs: Runs, delta: float = 1e-3, near: Sequence[float] = ()) -> FittedLaw:
    """Minimize the sum of Huber losses of log L (or of squared errors of L, see `ScalingLaw.squared`) by BFGS from the
    three best starts of a grid; with `near` from this theta and the best of a coarse grid."""
    from scipy.optimize import minimize

    law, runs = LAWS[name], frontier(runs, LAWS[name].frontier)
    logs_3R = logarithms(runs)
    centers = logs_3R.mean(1)
    logs_3R -= centers[:, None]
    starts = law.starts(logs_3R, runs.loss, 7 if near else 19)[: 1 if near else 3]
    starts += [law.shift(near, -centers)] if near else []

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        log_loss_R, derivatives_PR = law.log_loss(theta, logs_3R)
        slope, bound = (np.exp(log_loss_R), np.inf) if law.squared else (1.0, delta)
        error_R = slope - runs.loss if law.squared else log_loss_R - np.log(runs.loss)
        clipped_R = np.clip(error_R, -bound, bound)
        total = np.sum(clipped_R * (error_R - 0.5 * clipped_R))  # error^2 / 2 within the bound, linear beyond it
        return OBJECTIVE_SCALE * total, OBJECTIVE_SCALE * derivatives_PR @ (clipped_R * slope)

    with np.errstate(all="ignore"):  # a step of the line search may leave the range of exp
        ends = [minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-9}) for start in starts]
        best = min(ends, key=lambda result: np.nan_to_num(result.fun, nan=np.inf))
        errors_R = law.log_loss(best.x, logs_3R)[0] - np.log(runs.loss)
    figures = best.fun / OBJECTIVE_SCALE, np.sqrt(np.mean(errors_R**2)), runs.flops.max()
    keys = ("objective", "rms_log_error", "largest_flops")
    fitted: Any = {"law": name, "theta": law.shift(best.x, centers).tolist(), "rows": len(runs), "samples": []}
    return fitted | dict(zip(keys, map(float, figures), strict=True))


def check_runs(name: str, runs: Runs) -> None:
    """Raise UserError if the runs do not determine the law: the message names the exponent or the ridge."""
    law, rows = LAWS[name], len(frontier(runs, LAWS[name].frontier))
    if rows < law.min_rows:
        raise UserError(f"{rows} runs, expected {law.min_rows} or more for the law {name}: add runs")
    if law.frontier:
        return
    for values, variable in ((runs.params, "N"), (runs.tokens, "D")):
        if (distinct := len(np.unique(values))) < 3:
            unknown = f"the exponent of {variable} cannot be determined"
            raise UserError(f"{distinct} values of {variable}, expected 3 or more: {unknown}: add runs")
    logs = logarithms(runs)[:2]
    scaled = (logs - logs.mean(1, keepdims=True)) / logs.std(1, keepdims=True)
    if (condition := np.linalg.cond(scaled)) > MAX_CONDITION:
        raise UserError(
            f"N and D are proportional in all runs (condition number {condition:.3g}, at most {MAX_CONDITION:g}): the "
            "exponents of N and D cannot be separated: add runs with another D / N"
        )


def bootstrap(fitted: FittedLaw, runs: Runs, count: int, seed: int = 0, delta: float = 1e-3) -> FittedLaw:
    """The fit with `count` resamples of the runs, or of their clusters, with replacement."""
    generator, samples = np.random.default_rng(seed), []
    members = np.split(np.argsort(runs.cluster, kind="stable"), np.cumsum(np.bincount(runs.cluster))[:-1])
    for _ in range(count):
        rows = np.concatenate([members[index] for index in generator.integers(len(members), size=len(members))])
        samples.append(fit_law(fitted["law"], runs[rows], delta, fitted["theta"])["theta"])
    return {**fitted, "samples": samples}


def left_out_error(name: str, runs: Runs, cut: float | None, delta: float = 1e-3) -> str:
    """The errors of the runs above C = `cut` (None: the upper fifth) by the fit of the others, as text."""
    cut = float(np.quantile(runs.flops, 0.8)) if cut is None else cut
    below, above = runs[runs.flops <= cut], runs[runs.flops > cut]
    try:
        check_runs(name, below)
    except UserError as error:
        return f"C up to {cut:.3g}: {error}"
    errors = np.abs(predict_loss(name, fit_law(name, below, delta)["theta"], above) / above.loss - 1)
    figures = f"{errors.mean():.2%} off on average, {errors.max():.2%} at most" if len(above) else "no run"
    return f"{len(below)} runs up to C {cut:.3g} predict the {len(above)} above: {figures}"


def predict_loss(name: str, theta: Sequence[float], runs: Runs) -> np.ndarray:
    """The loss (R,) of runs by a law."""
    return np.exp(LAWS[name].log_loss(theta, logarithms(runs))[0])


def frontier(runs: Runs, variable: str) -> Runs:
    """The runs that are better than all with a smaller or equal value of a field, sorted by it; all if it is ""."""
    if not variable:
        return runs
    runs = runs[np.lexsort((runs.loss, runs[variable]))]
    best = np.minimum.accumulate(runs.loss)
    return runs[np.r_[True, best[1:] < best[:-1]]]


def envelope(runs: Runs) -> list[tuple[float, float]]:
    """Approach 1: (C, N) of the lowest loss in each quarter decade of C, if a larger and a smaller N are there too."""
    bins, points = np.floor(4 * np.log10(runs.flops)), []
    for group in (runs[bins == number] for number in np.unique(bins)):
        best = group[np.argmin(group.loss)]
        if group.params.min() < best.params < group.params.max():
            points.append((float(best.flops), float(best.params)))
    return points


def isoflops(runs: Runs, budgets: Sequence[float] = ()) -> list[tuple[float, Runs, Any]]:
    """Approach 2: (C, the runs within 8 % of it, the parabola of the loss in log N and its minimum N, loss) of each
    budget, by default of each C with four runs or more just above it; None if the minimum is not inside the data."""
    left, parabolas = np.ones(len(runs), bool), []
    for flops in sorted(budgets) or np.sort(runs.flops):
        rows = left & (np.abs(np.log(runs.flops / flops)) < BUDGET_WIDTH)
        sizes = np.log(runs.params[rows])
        if len(sizes) < BUDGET_ROWS or len(np.unique(sizes)) < 3:
            continue
        left &= ~rows
        curve = np.polyfit(sizes, runs.loss[rows], 2)
        bottom = -curve[1] / (2 * curve[0])
        inside = curve[0] > 0 and sizes.min() < bottom < sizes.max()
        minimum = (curve, float(np.exp(bottom)), float(np.polyval(curve, bottom))) if inside else None
        parabolas.append((float(flops), runs[rows], minimum))
    return parabolas


def growth(points: Sequence[tuple[float, float]]) -> float | None:
    """The exponent a of N ~ C^a through points (C, N), by least squares; None for fewer than two."""
    flops, params = np.log(np.array(points)).T if points else ((), ())
    return float(np.polyfit(flops, params, 1)[0]) if len(points) > 1 else None
