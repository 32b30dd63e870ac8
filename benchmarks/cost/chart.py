"""A chart with logarithmic axes as SVG text: lines with points, and a band between two bounds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 84, 236, 52, 62
"""Margins of the plot; the legend is in the right one."""

STYLE = """
  .card { fill: #fbfbfd; stroke: #d0d4dc } text { fill: #1d2733; font: 14px system-ui, "DejaVu Sans", sans-serif }
  .soft { fill: #566273 } .title { font-size: 16px; font-weight: 600 } .grid { stroke: #dfe3ea }
  .band { fill: #2f5f9e22 }
  .line { fill: none; stroke-width: 2.2 } .s0 { stroke: #2f5f9e } .s1 { stroke: #c2571a } .s2 { stroke: #2e7d4f }
  .s3 { stroke: #8c4aa8 } .s4 { stroke: #6b7280 } .f0 { fill: #2f5f9e } .f1 { fill: #c2571a } .f2 { fill: #2e7d4f }
  .f3 { fill: #8c4aa8 } .f4 { fill: #6b7280 }  .s5 { stroke: #a3333d } .f5 { fill: #a3333d }
  @media (prefers-color-scheme: dark) {
    .card { fill: #161b22; stroke: #30363d } text { fill: #e6edf3 } .soft { fill: #a5b1c0 } .grid { stroke: #2c333c }
    .band { fill: #7fb0f022 } .s0 { stroke: #7fb0f0 } .s1 { stroke: #f0975f } .s2 { stroke: #6fcf97 }
    .s3 { stroke: #c99be0 } .s4 { stroke: #9aa4b2 } .f0 { fill: #7fb0f0 } .f1 { fill: #f0975f } .f2 { fill: #6fcf97 }
    .f3 { fill: #c99be0 } .f4 { fill: #9aa4b2 } .s5 { stroke: #f08a92 } .f5 { fill: #f08a92 }
  }
"""


@dataclass(frozen=True)
class Chart:
    """The content of a chart.

    Attributes:
      lines: legend -> points (x, y); a legend that begins with `compiled` has points only.
      band: points (x, lower, upper).
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    band: Sequence[tuple[float, float, float]] = ()

    def svg(self) -> str:
        """The picture, in the color scheme of the reader."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        card = f'<rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12"/>'
        title = f'<text class="title" x="{LEFT}" y="30">{escape(self.title)}</text>'
        parts = [head, f"<title>{escape(self.title)}</title>", f"<style>{STYLE}</style>", card, title]
        return "\n".join([*parts, *self._axes(), *self._band(), *self._lines(), "</svg>\n"])

    def _x(self, value: float) -> float:
        low, high = min(self._x_values()), max(self._x_values())
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / low) / math.log(high / low)

    def _x_values(self) -> list[float]:
        return [x for points in self.lines.values() for x, _ in points] + [x for x, *_ in self.band]

    def _y_range(self) -> tuple[float, float]:
        values = [y for points in self.lines.values() for _, y in points] + [y for _, *ys in self.band for y in ys]
        values = [value for value in values if value > 0]
        return min(values) / 1.15, max(values) * 1.15

    def _y(self, value: float) -> float:
        low, high = self._y_range()
        share = math.log(max(value, low) / low) / math.log(high / low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def _axes(self) -> Iterator[str]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        low, high = self._y_range()
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if high / low < 300 else (1,)
        for tick in (factor * 10.0**decade for decade in decades for factor in factors):
            if low <= tick <= high:
                y = self._y(tick)
                yield f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
                yield f'<text class="soft" x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in sorted(set(self._x_values())):
            x = self._x(tick)
            yield f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>'
            yield f'<text class="soft" x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{short(tick)}</text>'
        place = f'x="{(LEFT + right) / 2}" y="{bottom + 46}"'
        yield f'<text class="soft" {place} text-anchor="middle">{self.x_label}</text>'
        place = f'transform="translate(24 {(TOP + bottom) / 2}) rotate(-90)"'
        yield f'<text class="soft" {place} text-anchor="middle">{self.y_label}</text>'

    def _band(self) -> Iterator[str]:
        if self.band:
            upper = [(x, high) for x, _, high in self.band]
            lower = [(x, low) for x, low, _ in reversed(self.band)]
            path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in [*upper, *lower])
            yield f'<polygon class="band" points="{path}"/>'

    def _lines(self) -> Iterator[str]:
        shown = 0
        for color, (legend, points) in enumerate(self.lines.items()):
            places = [(self._x(x), self._y(y)) for x, y in points if y > 0]
            if not places:
                continue
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            only_points = legend.startswith("compiled")
            if not only_points:
                yield f'<polyline class="line s{color}" points="{path}"/>'
            radius = 6 if only_points else 3
            yield from (f'<circle class="f{color}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in places)
            x, y = WIDTH - RIGHT + 14, TOP + 14 + 24 * shown
            shown += 1
            if only_points:
                yield f'<circle class="f{color} key" cx="{x + 12}" cy="{y}" r="6"/>'
            else:
                yield f'<line class="line s{color}" x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}"/>'
            yield f'<text x="{x + 32}" y="{y + 5}">{escape(legend)}</text>'


def short(number: float) -> str:
    """`1.5B`, `524k`, `16,384`, `16`."""
    for suffix, unit in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= max(unit, 1e5):
            return f"{number / unit:.3g}{suffix}"
    return f"{number:,.0f}"
