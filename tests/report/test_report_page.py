"""The page of a report: its tables, its curves, its colors."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
from fixtures.cli_runs import EXPERIMENT, command, trained  # noqa: F401

from jaxlm.config.display import differing_fields
from jaxlm.report.figures import COLORS, INK, curves_figure, figure_to_svg, smooth
from jaxlm.report.page import Swatch, table


def test_two_runs_side_by_side(command, trained, tmp_path):  # noqa: F811
    """Test scores, dates and differences are tables; a run has one color; the page needs no other file."""
    workdir, _ = trained
    first, second = (shutil.copytree(workdir, tmp_path / name) for name in ("first", "second"))
    record = json.loads((second / "experiment.json").read_text())
    record["experiment"]["seed"] = 7
    (second / "experiment.json").write_text(json.dumps(record))
    outcome = command("report", first, second, "--num-examples", 2)
    assert outcome.code == 0, outcome.err
    page = (first / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    rows = {row[0]: row[1:] for row in cells if row}
    assert rows["seed"] == [str(json.loads((first / "experiment.json").read_text())["experiment"]["seed"]), "7"]
    assert set(rows) >= {"model", "parameters", "steps", "finished", "duration", "machine", "lines"}
    assert "valid/loss" not in text, "the loss of this run is its nll, which is shown once"
    assert not re.search(r"(src|href)=\"(?!#)", page), "a page in one file"
    assert page.count(COLORS[0]) >= 3 and INK not in page and "currentColor" in page
    for name, color in zip(("first", "second"), COLORS, strict=False):
        assert f'style="background:{color}"></span>{name}' in text


def test_parameters_are_counted_before_they_are_padded(command, trained, tmp_path):  # noqa: F811
    workdir, _ = trained
    copy = shutil.copytree(workdir, tmp_path / "run")
    command("report", copy, "--num-examples", 0)
    shown = re.search(r"parameters</th><td>([\d,]+)</td>", (copy / "report.html").read_text(encoding="utf-8"))[1]
    listed = command("show", EXPERIMENT).out.decode()
    assert f"parameters {shown}" in listed


def test_a_fitted_model_is_a_horizontal_line_and_a_long_curve_is_smoothed():
    steps = list(range(1, 201))
    noisy = [1 / step + (0.1 if step % 2 else -0.1) for step in steps]
    figure = curves_figure("loss", {"fitted": ([1], [0.5]), "long": (steps, noisy), "none": ([], [])})
    (axes,) = figure.axes
    fitted, raw, smoothed = axes.lines
    assert list(fitted.get_ydata()) == [0.5, 0.5] and list(raw.get_ydata()) == noisy
    assert np.abs(np.diff(smoothed.get_ydata()[50:])).max() < 0.05
    assert [line.get_color() for line in axes.lines] == [COLORS[0], COLORS[1], COLORS[1]]
    assert "currentColor" in figure_to_svg(figure)


def test_the_moving_average_has_no_bias_and_passes_over_what_is_not_finite():
    assert smooth([2.0] * 120) == pytest.approx([2.0] * 120)
    values = smooth([math.nan, 1.0, math.inf, 1.0] * 40)
    assert math.isnan(values[0]) and values[1:] == pytest.approx(np.ones(159))


def test_cells_are_escaped():
    assert "<b>" not in table(["", "<b>"], [["<b>", Swatch("<b>", "#000000")]])


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 1


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    seed: int = 0


def test_differing_fields_of_three_configs():
    configs = [Outer(), Outer(Inner(2)), Outer(Inner(2), 5)]
    assert differing_fields(configs) == {"inner.width": ["1", "2", "2"], "seed": ["0", "0", "5"]}
    assert differing_fields(configs[:1]) == {}
