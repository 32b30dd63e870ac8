"""The picture of a constituency tree as SVG: words in a line below, each constituent above the middle of its parts."""

import html

from jaxlm.trees.tree import Tree, unescape

CHARACTER_WIDTH, GAP, LEVEL = 8, 14, 44


def tree_to_svg(tree: Tree) -> str:
    """The SVG element of a tree."""
    texts: list[tuple[str, float, float]] = []
    lines: list[str] = []
    bottom, right = LEVEL * (_height(tree) + 1), 0

    def draw(tree: Tree, y: int) -> float:
        nonlocal right
        if tree.word is None:
            parts = [(draw(child, y + LEVEL), y + LEVEL) for child in tree.children]
        else:
            word = unescape(tree.word)
            width = CHARACTER_WIDTH * max(len(word), len(tree.label)) + GAP
            parts, right = [(right + width / 2, bottom)], right + width
            texts.append((word, *parts[0]))
        x = (parts[0][0] + parts[-1][0]) / 2
        texts.append((tree.label, x, y))
        lines.extend(f'<line x1="{x}" y1="{y + 5}" x2="{to}" y2="{end - 15}" stroke="#999"/>' for to, end in parts)
        return x

    draw(tree, LEVEL // 2)
    shapes = [f'<text x="{x}" y="{y}" text-anchor="middle">{html.escape(text)}</text>' for text, x, y in texts]
    size = f'width="{right}" height="{bottom + GAP}" font-family="sans-serif" font-size="13"'
    return f'<svg viewBox="0 0 {right} {bottom + GAP}" {size}>{"".join(lines + shapes)}</svg>'


def _height(tree: Tree) -> int:
    return 1 + max(map(_height, tree.children), default=0) if tree.word is None else 0
