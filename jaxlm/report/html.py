"""The report on one or several runs as HTML, with its figures inline."""

import datetime
import html
import math
import re
from collections.abc import Iterator, Sequence

import jax

from jaxlm.config.display import differing_fields, format_config
from jaxlm.errors import UserError
from jaxlm.json_files import read_json
from jaxlm.report.figures import COLORS, attention_figure, curves_figure, figure_to_svg, gradient_flow_figure
from jaxlm.report.page import Swatch, grid, html_page, table
from jaxlm.report.run_summary import RunSummary
from jaxlm.report.tree_picture import tree_to_svg
from jaxlm.tasks.parsing import TreeTask
from jaxlm.training.metrics_log import metric_sign
from jaxlm.training.progress import format_duration, format_scores
from jaxlm.trees.reader import parse_tree

HIDDEN_METRICS = ("train/tokens", "train/rows", "train/total", "time/seconds")
EXAMPLE = re.compile(r"(?P<input>.*?) (?:->|\|) (?P<answer>.*?)(?: \((?:right|reference): (?P<right>.*)\))?$")


def render_html(runs: Sequence[RunSummary]) -> str:
    """The HTML document about one or several runs."""
    first, others = _curve_figures(runs)
    tables = [_summary_table(runs), *([_differences_table(runs)] if len(runs) > 1 else []), _test_table(runs)]
    title = ", ".join(run.name for run in runs)
    parts = [f"<h1>{html.escape(title)}</h1>", f'<div class="tables">{"".join(tables)}</div>']
    parts += ["<h2>Curves</h2>", grid(first)]
    if others:
        parts.append(f"<details><summary>{len(others)} more curves</summary>{grid(others)}</details>")
    if any(run.show_gradient_flow for run in runs):
        parts += ["<h2>Gradient flow</h2>", _gradient_flow_section(runs)]
    for run in runs:
        parts.append(f"<h2>{html.escape(run.name)}</h2>")
        parts += _attention_figures(run)
        parts += _example_table(run)
        shown = format_config(run.trained.experiment)
        parts.append(f"<details><summary>configuration</summary><pre>{html.escape(shown)}</pre></details>")
    return html_page(f"jaxlm: {title}", parts)


def _names(runs: Sequence[RunSummary]) -> list[str]:
    """The names of the runs, each with its color if there are several."""
    return [Swatch(run.name, COLORS[i % len(COLORS)]) if len(runs) > 1 else run.name for i, run in enumerate(runs)]


def _summary_table(runs: Sequence[RunSummary]) -> str:
    """A column for each run: size, best values of the validation metrics, date, duration, machine and commit."""
    metrics = [name for name in _shown_metrics(runs) if name.startswith("valid/")]
    columns = []
    for run in runs:
        record = read_json(run.workdir.experiment_file)
        git, versions = record.get("git") or {}, record.get("versions", {})
        experiment = run.trained.experiment  # loaded parameters may be padded for the kernels of the CPU
        params = run.trained.params if hasattr(experiment.model, "fit") else experiment.abstract_params()
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        changed = run.workdir.metrics_file.stat().st_mtime if run.metrics else None
        seconds = sum(float(line.get("time/seconds", 0)) for line in run.metrics)
        columns.append(
            {
                "model": type(run.trained.model).__name__,
                "parameters": f"{size:,}",
                "steps": f"{run.metrics[-1]['step'] if run.metrics else 0:,}",
                **{f"best {name}": _best_value(run, name) for name in metrics},
                "finished": f"{datetime.datetime.fromtimestamp(changed):%Y-%m-%d %H:%M}" if changed else "",
                "duration": format_duration(seconds) if seconds else "",
                "machine": record.get("machine", ""),
                "commit": git.get("commit", "")[:10] + (" (changed files)" if git.get("changed") else ""),
                "versions": ", ".join(f"{name} {versions[name]}" for name in ("jaxlm", "jax") if name in versions),
            }
        )
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return _section("Runs", table(["", *_names(runs)], [row for row in rows if any(row[1:])]))


def _test_table(runs: Sequence[RunSummary]) -> str:
    """The scores of the test splits: a row a metric, a column a run."""
    files = [run.workdir.test_file for run in runs]
    columns = [format_scores(read_json(file).get("test", {})) if file.is_file() else {} for file in files]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return _section("Test", table(["", *_names(runs)], rows)) if rows else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _differences_table(runs: Sequence[RunSummary]) -> str:
    """The fields of the experiments that are not the same in all runs."""
    rows = differing_fields([run.trained.experiment for run in runs])
    body = [[name, *values] for name, values in rows.items()] or [["none", *(["the same"] * len(runs))]]
    return _section("Differences", table(["", *_names(runs)], body))


def _best_value(run: RunSummary, name: str) -> str:
    steps, values = run.curve(name)
    known = [
        (metric_sign(name) * value, step) for step, value in zip(steps, values, strict=True) if math.isfinite(value)
    ]
    if not known:
        return ""
    value, step = max(known, key=lambda pair: pair[0])
    return f"{metric_sign(name) * value:.4g} at {step:,}"


def _curve_figures(runs: Sequence[RunSummary]) -> tuple[list[str], list[str]]:
    """The figures that matter first, those by which checkpoints are chosen and the training loss, and the others."""
    kept = _shown_metrics(runs)
    first = dict.fromkeys([run.trained.experiment.best_metric for run in runs] + ["train/loss", "train/nll"])
    shown = {name: _curve_figure(runs, name) for name in kept}
    return [shown[name] for name in first if name in kept], [shown[name] for name in kept if name not in first]


def _shown_metrics(runs: Sequence[RunSummary]) -> list[str]:
    """The metrics of training and validation; a loss that is nothing but the nll is shown once."""
    names = {name for run in runs for line in run.metrics for name in line} - {*HIDDEN_METRICS}
    shown = [n for n in names if n.startswith(("train/", "valid/")) or n == "time/tokens_per_second"]
    equal = [n for n in shown if n.endswith("/loss") and all(run.curve(n) == run.curve(n[:-4] + "nll") for run in runs)]
    return sorted({*shown} - {*equal})


def _curve_figure(runs: Sequence[RunSummary], name: str) -> str:
    return figure_to_svg(curves_figure(name, {run.name: run.curve(name) for run in runs}, name.endswith("perplexity")))


def _gradient_flow_section(runs: Sequence[RunSummary]) -> str:
    """One figure of all runs with gradient flow, and the errors of the others."""
    flows, without = {}, []
    for run in runs:
        try:
            flows[run.name] = run.gradient_flow()
        except UserError as error:
            without.append(f"<p>{html.escape(f'{run.name}: {error}')}</p>")
    return (grid([figure_to_svg(gradient_flow_figure(flows))]) if flows else "") + "".join(without)


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
            yield f'<figure class="own">{figure_to_svg(figure)}</figure>'


def _example_table(run: RunSummary) -> Iterator[str]:
    """Inputs, answers and what is right, or trees."""
    try:
        answers = run.examples()
    except UserError:
        return
    matches = [EXAMPLE.fullmatch(answer) for answer in answers]
    if isinstance(run.trained.experiment.task, TreeTask):
        trees = [tree_to_svg(parse_tree(answer.partition(" (right: ")[0])) for answer in answers]
        yield from (f'<figure class="own wide">{tree}</figure>' for tree in trees)
    elif answers and all(matches):
        rows = [[match["input"], match["answer"], match["right"] or ""] for match in matches if match]
        has_right = any(row[2] for row in rows)
        yield table(["input", "answer", "right"][: 2 + has_right], [row[: 2 + has_right] for row in rows], False)
    elif answers:
        yield table(["example"], [[answer] for answer in answers], False)
