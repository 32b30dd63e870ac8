"""All figures of a table of runs: the record law.json, its text, and the HTML page."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.scaling import fit
from jaxlm.scaling.laws import LAWS, constants, optimal_size
from jaxlm.scaling.table import Runs, logarithms

DEFAULTS: dict[str, Any] = {"delta": 1e-3, "bootstrap": 1000, "seed": 0, "cut": None, "budgets": (), "at": ()}
"""The options of `scaling_record`, as `jaxlm scale fit --help` explains them."""


def scaling_record(law: str, runs: Runs, **options: Any) -> dict[str, Any]:
    """The record of law.json, see `DEFAULTS`. Raises UserError if the runs do not determine the law."""
    options = DEFAULTS | options
    fit.check_runs(law, runs)
    fitted = fit.fit_law(law, runs, options["delta"])
    fitted = fit.bootstrap(fitted, runs, options["bootstrap"], options["seed"], options["delta"])
    values = [constants(law, theta) for theta in (fitted["theta"], *fitted["samples"])]
    record: dict[str, Any] = {**fitted, "constants": {name: bounded([of[name] for of in values]) for name in values[0]}}
    record["left_out"] = fit.left_out_error(law, runs, options["cut"], options["delta"])
    if not LAWS[law].frontier:
        record["envelope"] = fit.envelope(runs)
        record["minima"] = [(c, minimum and minimum[1]) for c, _, minimum in fit.isoflops(runs, options["budgets"])]
        budgets = options["at"] or [factor * fitted["largest_flops"] for factor in (1, 10, 100)]
        record["optimal"] = [optimal_sizes(fitted, flops) for flops in budgets]
    return record


def bounded(values: Sequence[float]) -> list[float]:
    """The first value, and the 2.5 and 97.5 percentiles of the others, its resamples, if there are any."""
    return [float(values[0]), *(np.percentile(values[1:], [2.5, 97.5]).tolist() if len(values) > 1 else [])]


def optimal_sizes(fitted: fit.FittedLaw, flops: float, serve: float = 0.0) -> dict[str, list[float]]:
    """C, and N, D and D / N of its best run with bounds, see `optimal_size`."""
    sizes = [optimal_size(fitted["law"], theta, flops, serve) for theta in (fitted["theta"], *fitted["samples"])]
    columns = {"N": [n for n, _ in sizes], "D": [d for _, d in sizes], "D/N": [d / n for n, d in sizes]}
    return {"C": [flops]} | {name: bounded(values) for name, values in columns.items()}


def with_bounds(figures: Sequence[float]) -> str:
    """`2.31 (2.1 to 2.6)`, or the value alone."""
    value, *bounds = (f"{figure:.4g}" for figure in figures)
    return value + (f" ({' to '.join(bounds)})" if bounds else "")


def summary_text(record: Mapping[str, Any]) -> str:
    """The record in lines."""
    lines = [f"{record['law']}: {record['rows']} runs, 95 % intervals of {len(record['samples']):,} resamples"]
    lines += [f"  {name:6}{with_bounds(values)}" for name, values in record["constants"].items()]
    lines.append(f"  objective {record['objective']:.6e}, rms log error {record['rms_log_error']:.4f}")
    lines.append(f"  left out: {record['left_out']}")
    if "minima" in record:
        inside = [point for point in record["minima"] if point[1]]
        outside = ", ".join(f"{flops:.3g}" for flops, size in record["minima"] if not size) or "none"
        first, second = (f"{fit.growth(points) or np.nan:.3f}" for points in (record["envelope"], inside))
        lines += [
            f"  approach 1: a_opt {first}, the best runs of {len(record['envelope'])} quarter decades of C; biased if "
            "the table has losses from inside a decay of the learning rate",
            f"  approach 2: a_opt {second}, parabolas of {len(inside)} budgets (minimum outside of the data, left out: "
            f"{outside}); biased if a and b differ, or if the sizes are not centered on the minimum",
        ]
        for sizes in record["optimal"]:
            lines.append("  " + ", ".join(f"{name} {with_bounds(values)}" for name, values in sizes.items()))
    return "\n".join(lines)


def summary_page(title: str, entries: Mapping[str, tuple[Runs, dict[str, Any]]]) -> str:
    """The page of one or several fits by name, such as those of two ways to count N, with a row of figures for each:
    residuals, predicted and seen loss, losses of each budget, and the best N and D."""
    from jaxlm.report.figures import figure_to_svg, new_figure
    from jaxlm.report.page import html_page

    figure = new_figure(18, 3.2 * len(entries))
    rows = figure.subplots(len(entries), 6, squeeze=False)
    for panels, (name, (runs, record)) in zip(rows, entries.items(), strict=True):
        predicted_R = fit.predict_loss(record["law"], record["theta"], runs)
        for panel, logs_R, label in zip(panels, logarithms(runs), "NDC", strict=False):
            panel.semilogx(np.exp(logs_R), np.log(runs.loss / predicted_R), ".")
            panel.set(xlabel=label, ylabel="log (seen / predicted)")
        panels[0].set_title(name, loc="left", fontsize=10)
        panels[3].plot(predicted_R, runs.loss, ".")
        panels[3].axline((runs.loss[0], runs.loss[0]), slope=1, linewidth=0.8)
        panels[3].set(xlabel="predicted loss", ylabel="seen loss")
        if "minima" not in record:
            continue
        for flops, group, minimum in fit.isoflops(runs, [flops for flops, _ in record["minima"]]):
            (points,) = panels[4].semilogx(group.params, group.loss, ".", label=f"C = {flops:.2g}")
            sizes = np.geomspace(group.params.min(), group.params.max(), 50)
            if minimum:
                panels[4].plot(sizes, np.polyval(minimum[0], np.log(sizes)), color=points.get_color())
                panels[4].plot(*minimum[1:], "o", color=points.get_color())
        panels[4].set(xlabel="N", ylabel="loss")
        span = np.geomspace(runs.flops.min(), 10 * runs.flops.max(), 20)
        sizes = np.array([optimal_size(record["law"], record["theta"], flops) for flops in span])
        panels[5].loglog(span, sizes, label=["N", "D"])
        for points, label in ((record["envelope"], "approach 1"), (record["minima"], "approach 2")):
            panels[5].plot(*np.array([point for point in points if point[1]] or [(np.nan,) * 2]).T, ".", label=label)
        panels[5].set(xlabel="C", ylabel="best N and D")
        panels[4].legend(frameon=False, fontsize=6)
        panels[5].legend(frameon=False, fontsize=6)
    texts = [
        f"<h2>{html.escape(name)}</h2><pre>{html.escape(summary_text(r))}</pre>" for name, (_, r) in entries.items()
    ]
    return html_page(title, [f"<h1>{html.escape(title)}</h1>", f"<figure>{figure_to_svg(figure)}</figure>", *texts])
