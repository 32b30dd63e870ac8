"""A self-contained HTML page: its style, light or dark, at any width, and its tables."""

import html
from collections.abc import Sequence

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --line: #d8dee4; --soft: #f6f8fa; --faint: #656d76; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --soft: #161b22; --faint: #9198a1; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 3rem) 3rem;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .75rem; } h1, h2 { font-weight: 600; }
.grid { display: grid; gap: 1rem 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; max-width: 760px; } figure svg { width: 100%; height: auto; display: block; }
figure.own svg { width: auto; max-width: 100%; }
.tables { display: flex; flex-wrap: wrap; gap: 0 3rem; } .tables section { max-width: 100%; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; } th[scope=row] { font-weight: 400; color: var(--faint); }
details { margin: 1rem 0; } summary { cursor: pointer; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: 13px; border-radius: 6px; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .45em; }
"""


def html_page(title: str, parts: Sequence[str]) -> str:
    """The HTML document of a title and the elements of its body."""
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"{meta}<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(parts) + "</body></html>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], row_names: bool = True) -> str:
    """A table of texts; the first cell of a row is its name, unless `row_names` is False. Swatches stay HTML."""
    lines = [f"<tr>{''.join(f'<th>{_cell(cell)}</th>' for cell in head)}</tr>"]
    for row in rows:
        named = [f'<th scope="row">{_cell(cell)}</th>' for cell in row[:row_names]]
        lines.append(f"<tr>{''.join(named + [f'<td>{_cell(cell)}</td>' for cell in row[row_names:]])}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def grid(figures: Sequence[str]) -> str:
    """SVG elements side by side, as many as the width of the page has room for."""
    return f'<div class="grid">{"".join(f"<figure>{figure}</figure>" for figure in figures)}</div>'


class Swatch(str):
    """A name with a square of its color before it."""

    color: str

    def __new__(cls, name: str, color: str) -> "Swatch":
        swatch = super().__new__(cls, name)
        swatch.color = color
        return swatch


def _cell(text: str) -> str:
    square = f'<span class="swatch" style="background:{text.color}"></span>' if isinstance(text, Swatch) else ""
    return square + html.escape(text)
