"""Cost of a step as the work grows, by compiler and plan: measured once into a file, drawn from it into docs/.

python -m benchmarks.cost plan [--only CURVES]     compiles what `points.jsonl` lacks; needs libtpu, minutes a point
python -m benchmarks.cost draw [--check]           writes the figures and the tables of docs/scaling-cost.md
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.cost.chart import Chart, short
from benchmarks.cost.points import plan, point_key, points

POINTS_FILE = Path(__file__).with_name("points.jsonl")
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "scaling-cost.md"

CURVES = {
    "tokens": ("GPT-2 small on one v5e: tokens a step", "tokens a step"),
    "context": ("GPT-2 small on one v5e: 131k tokens a step, longer windows", "tokens of a window"),
    "parameters": ("GPT-2 on 16 v5e: 524k tokens a step", "parameters"),
    "devices": ("GPT-2 small, 524k tokens a step: more v5e", "chips"),
}
"""Curve -> title and label of the axis."""


def main() -> int:
    """Returns 1 if --check finds a file out of date, or if a plan failed."""
    options = _options()
    if options.action == "plan":
        return compile_missing(options.only)
    changed = [path.name for path, text in files().items() if not path.exists() or path.read_text() != text]
    if options.check:
        print("\n".join(f"out of date: {name}" for name in changed))
        return int(bool(changed))
    for path, text in files().items():
        path.write_text(text)
    return 0


def stored() -> dict[str, dict[str, Any]]:
    """Name of a point -> the plan in the file."""
    lines = POINTS_FILE.read_text().splitlines() if POINTS_FILE.exists() else []
    records = [json.loads(line) for line in lines]
    return {point_key(record["curve"], record["x"], record["compiled"]): record for record in records}


def compile_missing(only: str) -> int:
    """Compile the points that the file lacks, and add each at once."""
    failed = 0
    for point in points():
        if point.key in stored() or (only and not {point.curve, point.key.split()[-1]} & set(only.split(","))):
            continue
        print(point.command, flush=True)
        try:
            record = plan(point)
        except Exception as error:  # the other points are independent
            print(f"failed: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        with POINTS_FILE.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"  MFU {_middle_mfu(record):.0%} at the middle of the bounds", flush=True)
    return int(failed > 0)


def files() -> dict[Path, str]:
    """The figures and the page, from the stored plans."""
    records = list(stored().values())
    made = {}
    text = PAGE.read_text()
    for curve, (title, label) in CURVES.items():
        of_curve = sorted(
            (r for r in records if r["curve"] == curve and r["seconds"]), key=lambda r: (r["x"], r["compiled"])
        )
        made[DOCS / f"scaling_{curve}.svg"] = _chart(title, label, of_curve).svg()
        text = _insert(text, curve, _table(label, of_curve))
    presets = [record for record in records if record["curve"] == "presets" and record["seconds"]]
    return made | {PAGE: _insert(text, "presets", _preset_table(presets))}


def _chart(title: str, label: str, records: list[dict[str, Any]]) -> Chart:
    estimated = [record for record in records if not record["compiled"]]

    def line(name: str, records: list[dict[str, Any]]) -> list[tuple[float, float]]:
        return [(r["x"], r["seconds"][name]) for r in records if r["seconds"][name] > 0]

    parts = {"arithmetic": "compute", "memory": "memory", "links": "links"}
    lines = {legend: line(name, estimated) for legend, name in parts.items()}
    lines["sum of these"] = line("upper_bound", estimated)
    compiled = [record for record in records if record["compiled"]]
    lines["compiled: memory"] = line("memory", compiled)
    lines["compiled: sum"] = line("upper_bound", compiled)
    band = [(r["x"], r["seconds"]["lower_bound"], r["seconds"]["upper_bound"]) for r in estimated]
    return Chart(title, label, "seconds a step", lines, band)


def _insert(text: str, name: str, table: str) -> str:
    """The page with a table between its two marks."""
    pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", text)


def _middle_mfu(record: dict[str, Any]) -> float:
    """MFU of a step that takes the mean of the two bounds."""
    if not record["seconds"]:
        return 0.0
    low, high = (record["mfu"][name] for name in ("lower_bound", "upper_bound"))
    return 2 / (1 / low + 1 / high)  # of the mean of the times


def _method(record: dict[str, Any]) -> str:
    return "compiler" if record["compiled"] else "formula"


def _bounds(record: dict[str, Any]) -> str:
    """Seconds of a step and MFU, from bound to bound, and the MFU at their middle: three cells."""
    seconds, mfu = record["seconds"], record["mfu"]
    return (
        f"{seconds['lower_bound']:.3g} to {seconds['upper_bound']:.3g} | {mfu['lower_bound']:.0%} to "
        f"{mfu['upper_bound']:.0%} | {_middle_mfu(record):.0%}"
    )


def _gibibytes(record: dict[str, Any]) -> str:
    return f"{record['memory']['total'] / 2**30:.1f}"


def _table(label: str, records: Iterable[dict[str, Any]]) -> str:
    head = [label, "by", "GiB a chip", "arithmetic s", "memory s", "links s", "step s", "MFU", "middle"]
    rows = [" | ".join(head)]
    for record in records:
        parts = " | ".join(f"{record['seconds'][part]:.3g}" for part in ("compute", "memory", "links"))
        cells = [short(record["x"]), _method(record), _gibibytes(record), parts, _bounds(record)]
        rows.append(" | ".join(cells))
    return _framed(rows, len(head))


def _preset_table(records: Iterable[dict[str, Any]]) -> str:
    head = ["experiment and options", "by", "tokens a step", "GiB a chip", "step s", "MFU", "middle"]
    rows = [" | ".join(head)]
    for record in sorted(records, key=lambda record: (record["x"], record["compiled"])):
        words = record["command"].removesuffix(" --analytic").partition("experiments.")[2]
        cells = [f"`{words}`", _method(record), f"{record['tokens']:,}", _gibibytes(record), _bounds(record)]
        rows.append(" | ".join(cells))
    return _framed(rows, len(head))


def _framed(rows: list[str], columns: int) -> str:
    lines = [f"| {row} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * columns, *lines[1:]])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("plan", "draw"))
    parser.add_argument("--only", default="", metavar="CURVES", help="curves, separated by commas")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
