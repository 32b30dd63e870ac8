"""Figures and tables of docs/scaling-cost.md: they are those of the stored plans."""

import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.cost import __main__ as cost
from benchmarks.cost.chart import Chart, short
from benchmarks.cost.points import points


def test_figures_and_tables_are_those_of_the_stored_plans():
    outdated = [path.name for path, text in cost.files().items() if path.read_text() != text]
    assert not outdated, f"run `python -m benchmarks.cost draw`: {outdated}"


def test_every_point_is_stored():
    assert not {point.key for point in points()} ^ set(cost.stored())


def test_a_chart_has_its_points_in_place():
    chart = Chart("title", "tokens", "seconds", {"a & b": [(1, 2), (4, 0), (16, 8)]})
    root = ElementTree.fromstring(chart.svg())
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(circles) == 2  # 0 has no place on a logarithmic axis
    (x1, y1), (x2, y2) = circles
    assert x1 == 84 and x2 == 760 - 236 and y2 < y1


@pytest.mark.parametrize(
    "number, text", [(16, "16"), (16_384, "16,384"), (524_288, "524k"), (1.558e9, "1.56B"), (124e6, "124M")]
)
def test_short_numbers(number, text):
    assert short(number) == text
