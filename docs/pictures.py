"""The pictures of the documentation as SVG text: the contract, and the floors of the package.

Both are a card with a background of its own, so they can be read on a light and on a dark page; the card follows the
color scheme of the reader.
"""

import ast
from collections.abc import Iterable
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

STYLE = """
  .card { fill: #fbfbfd; stroke: #d0d4dc } .box { fill: #ffffff; stroke: #5b6b82; stroke-width: 1.5 }
  .accent { fill: #e3edfb; stroke: #2f5f9e; stroke-width: 1.5 } text { fill: #1d2733 } .soft { fill: #566273 }
  .line { stroke: #2f5f9e; stroke-width: 2; fill: none } .head { fill: #2f5f9e }
  @media (prefers-color-scheme: dark) {
    .card { fill: #161b22; stroke: #30363d } .box { fill: #1f2630; stroke: #8b98a9 }
    .accent { fill: #1c3152; stroke: #7fb0f0 } text { fill: #e6edf3 } .soft { fill: #a5b1c0 }
    .line { stroke: #7fb0f0 } .head { fill: #7fb0f0 }
  }
  text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 15px }
  .code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: 14px }
  .title { font-size: 17px; font-weight: 600 }
"""

METHODS = (
    ("start", "(batch, capacity)", "→ state", "read the source, make the state"),
    ("extend", "(tokens, state, valid)", "→ features, state", "read T more tokens"),
    ("readout", "(features)", "→ logits", "score the vocabulary"),
)

USES = (
    ("Training", "one call: extend reads the whole target, readout scores it for the loss"),
    ("Decoding", "a loop: extend reads one token, readout scores the next, until the text ends"),
    ("Beam search", "the same loop with K hypotheses a row: rows of the state are reordered"),
)

FAMILIES = (
    ("n-gram", "counts"),
    ("feed-forward LM", "2003"),
    ("Elman, LSTM, GRU", "2010"),
    ("seq2seq", "2014"),
    ("+ attention", "2015"),
    ("Transformer", "2017"),
    ("GPT-2, BERT, T5", "2019"),
    ("Llama, Mistral, Qwen", "2023"),
)


def _svg(width: int, height: int, title: str, elements: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    card = f'<rect class="card" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="12"/>'
    marker = '<marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    marker += '<path class="head" d="M0 0 L10 5 L0 10 z"/></marker>'
    parts = [head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", f"<defs>{marker}</defs>", card]
    return "\n".join([*parts, *elements, "</svg>\n"])


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{css}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, css: str = "box") -> str:
    return f'<rect class="{css}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'


def _arrow(path: str) -> str:
    return f'<path class="line" d="{path}" marker-end="url(#arrow)"/>'


def contract_picture() -> str:
    """The three methods, their three uses, and the model families that implement them."""
    elements = []
    boxes = ((24, 274), (330, 234), (596, 214))  # x and width of each method
    for (x, width), (name, arguments, result, purpose) in zip(boxes, METHODS, strict=True):
        middle = x + width / 2
        elements += [_box(x, 58, width, 118, "accent"), _text(middle, 86, name, "title", "middle")]
        elements += [_text(middle, 110, arguments, "code", "middle"), _text(middle, 131, result, "code", "middle")]
        elements.append(_text(middle, 160, purpose, "soft", "middle"))
    elements += [_arrow("M 298 117 H 328"), _arrow("M 564 117 H 594")]
    elements.append(_arrow("M 703 57 C 703 22, 447 22, 447 54"))  # readout -> extend
    elements.append(_text(575, 25, "next token", "soft", "middle"))
    for i, (name, purpose) in enumerate(USES):
        y = 212 + 29 * i
        elements += [_text(24, y, name, "title"), _text(160, y, purpose)]
    elements.append(_text(24, 318, "One contract for every family:", "title"))
    for i, (family, year) in enumerate(FAMILIES):
        column, row = i % 4, i // 4
        x, y = 24 + 200 * column, 336 + 60 * row
        elements += [_box(x, y, 186, 44), _text(x + 93, y + 19, family, "", "middle")]
        elements.append(_text(x + 93, y + 37, year, "soft", "middle"))
        if column:
            elements.append(f'<path class="line" d="M {x - 14} {y + 22} H {x}"/>')
    title = "start, extend and readout: training is one call, decoding is a loop, beam search the same loop with K rows"
    return _svg(834, 456, title, elements)


def floors() -> list[list[str]]:
    """The lines of FLOORS in tests/test_architecture.py, ground floor first."""
    tree = ast.parse((ROOT / "tests/test_architecture.py").read_text(encoding="utf-8"))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "FLOORS" for target in targets):
            strings = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            return [line.split() for line in strings[0].strip().splitlines()]
    raise ValueError("tests/test_architecture.py defines no FLOORS")


def floors_picture() -> str:
    """The packages from the ground floor up: a module imports from its own line to the left, and from below."""
    storeys = list(reversed(floors()))
    width, storey, top, inner = 834, 46, 96, 780
    elements = [_arrow(f"M 24 {top - 8} L 417 20 L 810 {top - 8}").replace(' marker-end="url(#arrow)"', "")]
    elements.append(_text(417, 66, "experiments/, benchmarks/", "soft", "middle"))
    for i, packages in enumerate(storeys):
        y, gap = top + storey * i, 6
        share = inner - gap * (len(packages) - 1)
        names = [name.removeprefix("jaxlm.") for name in packages]
        weights = [len(name) + 2 for name in names]
        x: float = 27
        for name, weight in zip(names, weights, strict=True):
            box = share * weight / sum(weights)
            elements += [_box(round(x, 1), y, round(box, 1), storey - 8, "accent" if "." not in name else "box")]
            elements.append(_text(round(x + box / 2, 1), y + 24, name, "small", "middle"))
            x += box + gap
    height = top + storey * len(storeys) + 40
    elements.append(
        _text(417, height - 18, "A module imports from its own box, to the left, and below.", "soft", "middle")
    )
    elements.insert(0, "<style>.small { font-size: 12.5px }</style>")
    return _svg(width, height, "The packages of jaxlm, one floor above the other", elements)
