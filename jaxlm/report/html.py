"""The HTML page of a report, with its figures inline."""

import html
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlm.config.display import format_config
from jaxlm.errors import UserError
from jaxlm.report.run_summary import RunSummary
from jaxlm.report.tree_picture import tree_to_svg
from jaxlm.tasks.parsing import TreeTask
from jaxlm.training.metrics_log import metric_sign
from jaxlm.trees.reader import parse_tree

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { font-weight: 600; } table { border-collapse: collapse; } td, th { padding: .25rem .8rem; text-align: left;
border-bottom: 1px solid #ddd; } figure { display: inline-block; margin: 0 1rem 1rem 0; }
svg { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 13px; } ol li { margin: .3rem 0; }
"""

HIDDEN_METRICS = ("train/tokens", "train/total")


def render_html(runs: Sequence[RunSummary]) -> str:
    """The HTML document about one or several runs."""
    parts = [
        f"<h1>{html.escape(', '.join(run.name for run in runs))}</h1>",
        _summary_table(runs),
        *_curve_figures(runs),
    ]
    if any(run.show_gradient_flow for run in runs):
        parts += ["<h2>Gradient flow</h2>", _gradient_flow_section(runs)]
    for run in runs:
        parts.append(f"<h2>{html.escape(run.name)}</h2>")
        if run.workdir.test_file.is_file():
            scores = html.escape(run.workdir.test_file.read_text(encoding="utf-8"))
            parts.append(f"<details><summary>test</summary><pre>{scores}</pre></details>")
        parts += _attention_figures(run)
        parts += _example_list(run)
        shown = format_config(run.trained.experiment)
        parts.append(f"<details><summary>configuration</summary><pre>{html.escape(shown)}</pre></details>")
    return html_page("jaxlm: " + ", ".join(run.name for run in runs), parts)


def html_page(title: str, parts: Sequence[str]) -> str:
    """The HTML document of a title and the elements of its body."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(parts) + "</body></html>\n"


def _summary_table(runs: Sequence[RunSummary]) -> str:
    """A row for each run: its size and the best value of every validation metric."""
    names = sorted({name for run in runs for line in run.metrics for name in line if name.startswith("valid/")})
    rows = [["run", "model", "parameters", "steps", *names]]
    for run in runs:
        size = sum(leaf.size for leaf in jax.tree.leaves(run.trained.params))
        last = run.metrics[-1]["step"] if run.metrics else 0
        row = [run.name, type(run.trained.model).__name__, f"{size:,}", f"{last:,}"]
        rows.append([*row, *(_best_value(run, name) for name in names)])
    head, *body = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    lines = [head.replace("td>", "th>"), *body]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _best_value(run: RunSummary, name: str) -> str:
    steps, values = run.curve(name)
    known = [
        (metric_sign(name) * value, step) for step, value in zip(steps, values, strict=True) if math.isfinite(value)
    ]
    if not known:
        return ""
    value, step = max(known, key=lambda pair: pair[0])
    return f"{metric_sign(name) * value:.4g} at {step:,}"


def _curve_figures(runs: Sequence[RunSummary]) -> Iterator[str]:
    names = sorted({name for run in runs for line in run.metrics for name in line})
    shown = [n for n in names if n.startswith(("train/", "valid/")) and n not in HIDDEN_METRICS]
    shown += [name for name in names if name == "time/tokens_per_second"]
    for name in shown:
        curves = {run.name: run.curve(name) for run in runs if run.curve(name)[0]}
        figure = curves_figure(name, curves, log=name.endswith("perplexity"))
        yield f"<figure>{figure_to_svg(figure)}</figure>"


def _gradient_flow_section(runs: Sequence[RunSummary]) -> str:
    """One figure of all runs with gradient flow, and the errors of the others."""
    flows, without = {}, []
    for run in runs:
        try:
            flows[run.name] = run.gradient_flow()
        except UserError as error:
            without.append(f"<p>{html.escape(f'{run.name}: {error}')}</p>")
    return (f"<figure>{figure_to_svg(gradient_flow_figure(flows))}</figure>" if flows else "") + "".join(without)


def _attention_figures(run: RunSummary) -> Iterator[str]:
    try:
        maps = run.attention()
    except UserError as error:
        yield f"<p>{html.escape(str(error))}</p>"
        return
    for attention in maps:
        if attention["weights"]:
            title = attention.get("title", "")
            figure = attention_figure(attention["source"], attention["target"], attention["weights"], title)
            yield f"<figure>{figure_to_svg(figure)}</figure>"


def _example_list(run: RunSummary) -> Iterator[str]:
    try:
        answers = run.examples()
    except UserError:
        return
    if answers:
        yield "<ol>" + "".join(f"<li>{html.escape(answer)}</li>" for answer in answers) + "</ol>"
    if isinstance(run.trained.experiment.task, TreeTask):
        yield from (
            f"<figure>{tree_to_svg(parse_tree(answer.partition(' (right: ')[0]))}</figure>" for answer in answers
        )


Curve = tuple[Any, Any]


def new_figure(width: float = 6.4, height: float = 3.6) -> Any:
    """An empty matplotlib Figure. Raises UserError if matplotlib, an optional package, is not installed."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError as error:
        raise UserError("figures need matplotlib, which is not installed: pip install 'jaxlm[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def curves_figure(title: str, lines: Mapping[str, Curve], log: bool = False, height: float = 3.6) -> Any:
    """A curve over the training steps for each run."""
    figure = new_figure(height=height)
    axes = figure.subplots()
    for name, (steps, values) in lines.items():
        axes.plot(steps, values, marker="." if len(values) < 40 else None, linewidth=1.3, label=name)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(True, alpha=0.3)
    if lines:
        axes.legend(frameon=False, fontsize=8)
    return figure


def attention_figure(
    source: Sequence[str], target: Sequence[str], weights: Sequence[Sequence[float]], title: str = ""
) -> Any:
    """Attention weights: a row for each target token, a column for each source token; darker is larger."""
    figure = new_figure(1.5 + 0.45 * len(source), 1.2 + 0.32 * len(target))
    axes = figure.subplots()
    axes.imshow(np.asarray(weights), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    # matplotlib reads a "$" as the start of a formula
    axes.set_xticks(range(len(source)), [token.replace("$", r"\$") for token in source], rotation=60, ha="right")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_yticks(range(len(target)), [token.replace("$", r"\$") for token in target])
    return figure


def figure_to_svg(figure: Any) -> str:
    """The figure as an <svg> element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def gradient_flow_figure(gradient_flows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """The norm of d loss_T / d h_t against T - t on a log axis, with gaps at 0: `{"Elman": gradient_flow(...)}`."""
    curves = {name: (distance, np.where(norm > 0, norm, np.nan)) for name, (distance, norm) in gradient_flows.items()}
    figure = curves_figure("", curves, log=True, height=4.0)
    from matplotlib.ticker import MaxNLocator

    (axes,) = figure.axes
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("distance T − t (tokens)")
    axes.set_ylabel("‖∂ loss at T / ∂ hidden state at t‖")
    return figure
