"""The graph of a `Value` in SVG and in the language of Graphviz, as the lecture about micrograd draws it."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from microgpt.display.html import escaped
from microgpt.display.layout import Slot, lay_out, lines_to
from microgpt.utils.text import visible

LONGEST = 24  # characters of a label, or of the name of an operation

# Lengths in the unit of SVG, which is a pixel on most screens.
FONT_SIZE = 12
CHARACTER = 0.61 * FONT_SIZE  # the width of one, in these fonts
FONTS = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"
HEIGHT, PADDING = 26, 8  # the height of a box or an ellipse, and the space on both sides of its text
ROW, LINE = 40, 18  # the heights that a box and a line between boxes take
SHORTEST, FARTHEST, SLOPE = 44, 160, 0.35  # distances of two columns, which grow with the heights of their lines
ARROW, HEAD = 22, 7  # the length of the arrow from an ellipse to its box, and of any arrow's head
APART = 26  # the distance of two lines from one box to the same ellipse
MARGIN = 14

PAPER, INK = "#fdfdfc", "#1d2126"
DARK_PAPER, DARK_INK = "#15181c", "#e4e6e9"
DARK = (
    "@media (prefers-color-scheme: dark) { "
    f".microgpt-graph {{ color: {DARK_INK} }} .microgpt-graph > rect {{ fill: {DARK_PAPER} }} }}"
)


@dataclass(frozen=True)
class Vertex:
    """A value as it is drawn. `children` are the places of its operands in a list where they come before it."""

    data: float
    grad: float
    label: str
    operation: str
    children: tuple[int, ...]

    def name(self) -> str:
        """The name of its operation, in an ellipse of its own."""
        return _short(self.operation)

    def cells(self) -> list[str]:
        """The text of its box; without a cell for the label if there is none."""
        numbers = [f"data {_number(self.data)}", f"grad {_number(self.grad)}"]
        return [_short(self.label), *numbers] if self.label else numbers

    def details(self) -> str:
        """All digits, and all of its label."""
        return f"{self.label}{': ' if self.label else ''}data {self.data}, grad {self.grad}"


def _number(x: float) -> str:
    """Four digits after the point, as in the lecture; as a power of ten where those would be zeros, or many."""
    return f"{x:.4f}" if x == 0 or 1e-3 <= abs(x) < 1e6 or not math.isfinite(x) else f"{x:.3e}"


def _short(text: str) -> str:
    text = visible(text, layout="")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


# --- DOT --------------------------------------------------------------------------------------------------------------


def dot(vertices: Sequence[Vertex]) -> str:
    """The graph in the language of Graphviz."""
    lines = ["rankdir=LR", 'node [fontname="monospace" fontsize=12 height=0.35]', "edge [arrowsize=0.7]"]
    for i, vertex in enumerate(vertices):
        fields = " | ".join(map(_field, vertex.cells()))
        lines.append(f'value{i} [shape=record label="{{ {fields} }}"]')
        end = f"value{i}"
        if vertex.operation:
            end = f"operation{i}"
            lines += [f'{end} [shape=ellipse label="{_text(vertex.name())}"]', f"{end} -> value{i}"]
        lines += [f"value{child} -> {end}" for child in vertex.children]
    return "digraph {\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


def _text(content: str) -> str:
    """`content` in a quoted label: no escape sequence, end of the label or entity of HTML."""
    return content.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')


def _field(content: str) -> str:
    """The same in a field of a record, without fields in it."""
    return "".join("\\" + c if c in "{}|<>" else _text(c) for c in content)


# --- SVG --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """The place of a layer, from left to right: ellipses end at `ellipses`, boxes begin at `boxes`."""

    begin: float
    ellipses: float
    boxes: float
    end: float


def svg(vertices: Sequence[Vertex]) -> str:
    """The graph as an <svg> element."""
    children = [vertex.children for vertex in vertices]
    layer, down = lay_out(children, ROW, LINE)
    paths = lines_to(children, layer)
    cells = [[_width(cell) for cell in vertex.cells()] for vertex in vertices]
    ellipses = [max(HEIGHT, _width(vertex.name())) if vertex.operation else 0.0 for vertex in vertices]
    columns = _columns(paths, layer, down, [sum(widths) for widths in cells], ellipses)
    lines: list[str] = []
    heads: list[str] = []
    shapes: list[str] = []
    texts: list[str] = []

    def arrow(begin: float, end: float, y: float) -> None:
        lines.append(f"M{begin:.1f} {y:.1f}H{end - HEAD:.1f}")
        heads.append(f"M{end:.1f} {y:.1f}l-{HEAD}-3.5v7z")

    for node, vertex in enumerate(vertices):
        column, y = columns[layer[node]], down[Slot(node, layer[node])]
        begin, end = column.boxes, column.boxes + sum(cells[node])
        shapes.append(f'<path d="{_box(begin, y, cells[node])}"/>')
        texts.append(_texts(vertex, begin, y, cells[node]))
        if layer[node] > 0:
            lines.append(f"M{end:.1f} {y:.1f}H{column.end:.1f}")
        if vertex.operation:
            arrow(column.ellipses, begin, y)
            radius = ellipses[node] / 2
            x, begin = column.ellipses - radius, column.ellipses - 2 * radius
            shapes.append(f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{radius:.1f}" ry="{HEIGHT / 2}"/>')
            texts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escaped(vertex.name())}</text>')
        if vertex.children:
            arrow(column.begin, begin, y)
        for child, times in Counter(vertex.children).items():
            path = paths[node][child]
            for slot in path[1:-1]:
                passed = columns[slot.layer]
                lines.append(f"M{passed.begin:.1f} {down[slot]:.1f}H{passed.end:.1f}")
            for left, right in pairwise(path):
                count = times if right == path[-1] else 1
                ends = columns[left.layer].end, down[left], columns[right.layer].begin, down[right]
                lines += [_curve(*ends, bend=APART * (k - (count - 1) / 2)) for k in range(count)]
    width, height = columns[0].end + MARGIN, max(down.values()) + ROW / 2 + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="microgpt-graph" role="img" aria-label="{_in_words(vertices)}" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 {-MARGIN} {width:.0f} {height:.0f}" '
        f'color="{INK}" fill="none" font-family="{FONTS}" font-size="{FONT_SIZE}" style="max-width: none">\n'
        f"<style>{DARK}</style>\n"
        f'<rect y="{-MARGIN}" width="100%" height="100%" fill="{PAPER}"/>\n'
        f'<path stroke="currentColor" stroke-opacity="0.6" d="{"".join(lines)}"/>\n'
        f'<path fill="currentColor" d="{"".join(heads)}"/>\n'
        f'<g stroke="currentColor">{"".join(shapes)}</g>\n'
        '<g fill="currentColor" dominant-baseline="central">\n' + "\n".join(texts) + "\n</g>\n</svg>\n"
    )


def _columns(
    paths: Sequence[Mapping[int, Sequence[Slot]]],
    layer: Sequence[int],
    down: Mapping[Slot, float],
    boxes: Sequence[float],
    ellipses: Sequence[float],
) -> list[_Column]:
    """The column of each layer; the last layer is on the left."""
    count = max(layer) + 1
    widest_box, widest_ellipse, steepest = [0.0] * count, [0.0] * count, [0.0] * count
    for node, i in enumerate(layer):
        widest_box[i], widest_ellipse[i] = max(widest_box[i], boxes[node]), max(widest_ellipse[i], ellipses[node])
        for path in paths[node].values():
            for left, right in pairwise(path):
                steepest[right.layer] = max(steepest[right.layer], abs(down[left] - down[right]))
    columns: list[_Column] = []
    end = float(MARGIN)
    for i in reversed(range(count)):
        begin = end + (min(max(SHORTEST, SLOPE * steepest[i]), FARTHEST) if columns else 0)
        from_ellipse = begin + HEAD + widest_ellipse[i] if widest_ellipse[i] else begin
        from_box = from_ellipse + (ARROW if columns or widest_ellipse[i] else 0)
        end = from_box + widest_box[i]
        columns.append(_Column(begin, from_ellipse, from_box, end))
    return columns[::-1]


def _width(text: str) -> float:
    """The width of a cell: characters of East Asian scripts take that of two others, accents none."""
    taken = (2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)
    return CHARACTER * sum(taken) + 2 * PADDING


def _box(x: float, y: float, widths: Sequence[float]) -> str:
    """The path of a box with cells of these widths."""
    *walls, end = accumulate(widths, initial=x)
    top = y - HEIGHT / 2
    return f"M{x:.1f} {top:.1f}H{end:.1f}v{HEIGHT}H{x:.1f}z" + "".join(
        f"M{a:.1f} {top:.1f}v{HEIGHT}" for a in walls[1:]
    )


def _texts(vertex: Vertex, x: float, y: float, widths: Sequence[float]) -> str:
    """The text of all cells, with the details for readers that point at it."""
    places = accumulate(widths, initial=x + PADDING)
    texts = (f'<text x="{place:.1f}" y="{y:.1f}">{escaped(cell)}</text>' for place, cell in zip(places, vertex.cells()))
    return f"<g><title>{escaped(vertex.details())}</title>{''.join(texts)}</g>"


def _curve(x: float, y: float, end: float, down: float, bend: float) -> str:
    """A line that begins and ends horizontally, unless it is to bend."""
    middle = (x + end) / 2
    return f"M{x:.1f} {y:.1f}C{middle:.1f} {y + bend:.1f} {middle:.1f} {down + bend:.1f} {end:.1f} {down:.1f}"


def _in_words(vertices: Sequence[Vertex]) -> str:
    """A description of the drawing, for readers who cannot see it."""
    last = vertices[-1]
    return escaped(f"Graph of {len(vertices)} values, the last of which is {last.details()}")
