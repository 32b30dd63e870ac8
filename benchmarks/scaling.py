"""Refits of published tables of runs, next to the values that other fits of the same tables found.

    python -m benchmarks.scaling

Reads `scaling_chinchilla_toy` and `scaling_openlm_testbed` in $JAXLM_DATA. Prints one Markdown table, and the seconds
of the bootstrap of 1,000.
"""

import time

import numpy as np

from jaxlm.scaling import fit
from jaxlm.scaling.laws import constants, optimal_size
from jaxlm.scaling.summary import scaling_record, with_bounds
from jaxlm.scaling.table import Runs, read_runs

BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)
EXPECTED_OPENLM = {
    "c4_original": "a .253 b .262 E 1.620; a .225; 1.50 %, 4.30 %",
    "rpj": "a .243 b .273 E 1.720; a .196; .71 %, .73 %",
    "rw_original": "a .223 b .290 E 1.701; a .190; .01 %, 1.62 %",
}


def main() -> None:
    """Print the table."""
    print("| table, law | here | expected |\n|---|---|---|")
    toy = read_runs("scaling_chinchilla_toy/df.csv", {"N": "N", "D": "D", "L": "loss", "C": "C"})
    began = time.process_time()
    record = scaling_record("chinchilla", toy, budgets=BUDGETS, at=[5.76e23])
    seconds = time.process_time() - began
    figures = ", ".join(f"{name} {with_bounds(values)}" for name, values in record["constants"].items())
    expected = "A 442.16, B 1271.8, E 1.7839 (1.745 to 1.829), a .3426 (.314 to .372), b .3420 (.310 to .377), "
    _row("Chinchilla, 234 runs, chinchilla", figures, expected + "a_opt .4995 (.459 to .541)")
    _row("objective", f"{record['objective']:.6e}", "8.40093e-4")
    params, tokens = optimal_size("chinchilla", record["theta"], 5.76e23)
    _row("best run of 5.76e23 FLOPs", f"N {params:.3g}, D {tokens:.3g}", "N 6.5e10, D 1.48e12")
    minima = [(flops, minimum) for flops, minimum in record["minima"] if minimum]
    outside = ", ".join(f"{flops:.0e}" for flops, minimum in record["minima"] if not minimum)
    approaches = f"{fit.growth(record['envelope']):.3f}, {fit.growth(minima):.3f} (left out: {outside})"
    _row("a_opt by approaches 1 and 2", approaches, ".495, .519 (left out: 1e20)")
    _row("the same, cut otherwise", "{:.3f}, {:.3f}".format(*_other_cuts(toy)), ".495, .519")
    kaplan = fit.fit_law("kaplan", toy)
    figures = ", ".join(f"{name} {value:.3g}" for name, value in constants("kaplan", kaplan["theta"]).items())
    errors = f"{kaplan['rms_log_error']:.4f} against {record['rms_log_error']:.4f}"
    _row(
        "the same, kaplan",
        f"{figures}, rms {errors}",
        "Nc 8.2e12, Dc 3.5e13, aN .096, aD .112, rms .0159 against .0055",
    )
    for dataset, values in EXPECTED_OPENLM.items():
        _row(f"openlm {dataset}: N; N without embeddings; overtrained, errors", _openlm(dataset), values)
    print(f"\nbootstrap of 1,000: {seconds:.1f} CPU seconds")


def _other_cuts(runs: Runs) -> tuple[float, float]:
    """a_opt of approach 1 from C = 10^18.25 on, best runs at the edge of their sizes kept; of 2 within .08 decades."""
    quarters, points, minima = np.floor(4 * np.log10(runs.flops)), [], []
    for group in (runs[quarters == number] for number in np.unique(quarters) if number >= 4 * 18.25):
        best = group[np.argmin(group.loss)]
        points.append((best.flops, best.params))
    for flops in BUDGETS:
        group = runs[np.abs(np.log10(runs.flops / flops)) < 0.08]
        curve = np.polyfit(np.log(group.params), group.loss, 2)
        minima.append((flops, np.exp(-curve[1] / (2 * curve[0]))))
    return fit.growth(points) or np.nan, fit.growth(minima) or np.nan


def _row(name: str, here: str, expected: str) -> None:
    print(f"| {name} | {here} | {expected} |", flush=True)


def _openlm(dataset: str) -> str:
    """Chinchilla with both counts of N, and the relative errors of the overtrained law of five small runs."""
    runs, hidden = (_read_openlm(dataset, column) for column in ("params", "params_no_embed"))
    values = constants("chinchilla", fit.fit_law("chinchilla", runs)["theta"])
    without = constants("chinchilla", fit.fit_law("chinchilla", hidden)["theta"])
    times = runs.tokens / runs.params / 20
    small = (np.isclose(times, 1) & (runs.params < 5e8)) | (np.isclose(times, 16) & (runs.params < 2e7))
    large = runs[(runs.params > 1e9) & ~((runs.params < 2e9) & np.isclose(times, 1))]
    predicted = fit.predict_loss("overtrained", fit.fit_law("overtrained", runs[small])["theta"], large)
    errors = ", ".join(f"{abs(error):.2%}" for error in predicted / large.loss - 1)
    fits = f"a {values['a']:.3f} b {values['b']:.3f} E {values['E']:.3f}; a {without['a']:.3f}"
    return f"{fits}; {errors}"


def _read_openlm(dataset: str, column: str) -> Runs:
    columns = {"N": column, "D": "tokens", "L": "c4_val_loss"}
    return read_runs("scaling_openlm_testbed/models_c4val.csv", columns, [f"dataset={dataset}"])


if __name__ == "__main__":
    main()
