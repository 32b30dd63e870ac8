"""A table of runs: a row a workdir with its best score, its state, and the fields that differ from the other runs."""

import csv
import io
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.config.display import differing_fields
from jaxlm.errors import UserError, list_some
from jaxlm.filesystem import is_locked
from jaxlm.json_files import read_json
from jaxlm.training.metrics_log import metric_sign, read_metrics
from jaxlm.workdir import MAX_RECORD_BYTES, Workdir

TableRow = dict[str, Any]


def find_workdirs(folder: Path) -> list[Path]:
    """The workdirs in a folder, at any depth, in the order of their names."""
    if (folder / "experiment.json").is_file():
        return [folder]
    children = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for child in children if child.is_dir() and child.name[0] != "." for path in find_workdirs(child)]


def summarize_runs(folders: Iterable[Path], root: Path, sort_by_best: bool = False) -> list[TableRow]:
    """The rows of these workdirs, named from `root` on: the newest first, or the best first.

    Columns: run, experiment (task and model), step, best, metric, state, date, and `differs`: the fields that are not
    the same in all runs of this task and model, and their values. A workdir that cannot be read has a state only.
    """
    rows = [_read_row(folder, str(folder.relative_to(root)) if folder != root else root.name) for folder in folders]
    for kind in {row["experiment"] for row in rows}:
        group = [row for row in rows if row["experiment"] == kind and row["differs"]]
        differing = differing_fields([row["differs"] for row in group]) if group else {}
        for index, row in enumerate(group):
            row["differs"] = {name: values[index] for name, values in differing.items()}
    if not sort_by_best:
        return sorted(rows, key=lambda row: row["date"], reverse=True)
    return sorted(rows, key=lambda row: (row["best"] is None, -metric_sign(row["metric"]) * (row["best"] or 0.0)))


def _read_row(folder: Path, name: str) -> TableRow:
    workdir = Workdir(folder)
    row: TableRow = {"run": name, "experiment": "", "step": "", "best": None, "metric": "", "state": "", "differs": {}}
    try:
        experiment = read_json(workdir.experiment_file, dict[str, Any], max_bytes=MAX_RECORD_BYTES)["experiment"]
        lines = read_metrics(workdir.metrics_file)
        kinds = (str(experiment[part]["type"]).rpartition(".")[2] for part in ("task", "model"))
        metric, steps, step = experiment["best_metric"], experiment["steps"], lines[-1]["step"] if lines else 0
        row |= {"experiment": " ".join(kinds), "metric": metric, "step": f"{step}/{steps}", "differs": experiment}
        values = [float(line[metric]) for line in lines if metric in line]
        row["best"] = max(values, key=lambda value: metric_sign(metric) * value, default=None)
        is_done = workdir.test_file.exists() or step >= steps or (bool(lines) and "time/fit_seconds" in lines[-1])
        row["state"] = "running" if is_locked(folder) else "finished" if is_done else "stopped" if step else "no step"
    except (UserError, KeyError, TypeError, AttributeError, ValueError) as error:
        row["state"] = f"unreadable ({str(error).partition(':')[0]:.60})"
    changed = max(path.stat().st_mtime for path in (workdir.metrics_file, workdir.experiment_file) if path.exists())
    return row | {"date": time.strftime("%Y-%m-%d %H:%M", time.localtime(changed))}


def format_table(rows: Sequence[TableRow], width: int | None = None) -> str:
    """The rows as lines of text, cut to `width` characters."""
    head = ("run", "best", "metric", "step", "state", "date", "differs", "experiment")
    cells = [head] + [tuple(_cell(row[name]) for name in head) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
    return "\n".join(line if width is None or len(line) <= width else line[: width - 1] + "…" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return list_some([f"{name}={text}" for name, text in value.items()], 6)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def flat_rows(rows: Sequence[TableRow]) -> list[TableRow]:
    """The rows with a column for each field that differs."""
    return [{**{name: row[name] for name in row if name != "differs"}, **row["differs"]} for row in rows]


def csv_text(rows: Sequence[TableRow]) -> str:
    """Rows as CSV; a row need not have all columns."""
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text := io.StringIO(), list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
