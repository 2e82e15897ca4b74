"""Drawings of the graph that a `Value` was computed by, as the lecture about micrograd draws it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from microgpt.display.drawing import Vertex, dot, svg
from microgpt.display.layout import count_passings
from microgpt.engine.backend import is_value
from microgpt.utils.arguments import ending, shown
from microgpt.utils.files import write_atomically
from microgpt.utils.optional import require
from microgpt.utils.text import one_line

if TYPE_CHECKING:
    from microgpt.reference import Value

# Limits of what is laid out here, in about a second: values, and how often a line passes between others.
LARGEST, MOST_PASSINGS = 1000, 20_000


class Graph:
    """The result of `graph`: what a `Value` was computed by, drawn from left to right.

    Each value is a box with its label, its data and its grad, each operation an ellipse before the value that it
    gives. In Jupyter, a graph displays itself. It shows the values as they were when it was made.
    """

    def __init__(self, vertices: Sequence[Vertex]) -> None:
        self._vertices = vertices
        self._passings = count_passings([vertex.children for vertex in vertices])

    def __len__(self) -> int:
        """The number of values."""
        return len(self._vertices)

    def __repr__(self) -> str:
        return f"Graph of {len(self):,} value{'s' if len(self) > 1 else ''}"

    def _repr_svg_(self) -> str | None:
        """The drawing, for notebooks; None if it would be too large, which leaves them the words of `repr`."""
        return svg(self._vertices) if self._is_small() else None

    def to_svg(self) -> str:
        """The drawing as SVG, light or dark as the reader's system is, for graphs of up to 1,000 values.

        Larger ones, and those whose lines pass between other values more than 20,000 times, are laid out by Graphviz
        (`pip install "microgpt-fast[graphviz]"`, and its program dot), which can take minutes for thousands of values.
        `ImportError` if it is missing.
        """
        return svg(self._vertices) if self._is_small() else self._by_graphviz("svg").decode()

    def to_dot(self) -> str:
        """The graph in Graphviz's language, DOT, of any size."""
        return dot(self._vertices)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the drawing to a file whose ending says how: .svg, .dot or .gv, or .png or .pdf, drawn by Graphviz.

        `ValueError` for another ending, or if the file cannot be written; `ImportError` if Graphviz is missing.
        """
        format = ending("a graph", path, ("svg", "dot", "gv", "png", "pdf"))
        if format in ("dot", "gv"):
            content = self.to_dot().encode()
        else:
            content = self.to_svg().encode() if format == "svg" else self._by_graphviz(format)
        write_atomically(path, content)

    def _is_small(self) -> bool:
        return len(self) <= LARGEST and self._passings <= MOST_PASSINGS

    def _by_graphviz(self, format: str) -> bytes:
        passing = f" with lines that pass others {self._passings:,} times" if self._passings > MOST_PASSINGS else ""
        needed = f"a graph of {len(self):,} values{passing} as .{format} needs Graphviz, unlike .dot, but"
        try:
            graphviz = require("graphviz", "graphviz")
            content: bytes = graphviz.pipe("dot", format, self.to_dot().encode(), quiet=True)
        except ImportError as error:
            raise ImportError(f"{needed} {error}") from None
        except graphviz.ExecutableNotFound:
            raise ImportError(f"{needed} its program dot is not installed: https://graphviz.org/download/") from None
        except graphviz.CalledProcessError as error:
            raise RuntimeError(
                f"{needed} dot says: {one_line((error.stderr or b'').decode(errors='replace'))}"
            ) from None
        return content


def graph(value: Value) -> Graph:
    """The graph that `value` was computed by, a `Graph`, which shows itself in Jupyter and is saved as SVG or DOT.

    A value that is used several times is shown once, and numbers are values without a label. The graph shows `data`,
    `grad` and `label` as they are now: call `backward` first, and set `label` of what should have a name. `TypeError`
    if `value` is not a `Value`.

    Source: `draw_dot` of the lecture about micrograd (Karpathy, 2022).
    """
    if not is_value(value):
        raise TypeError(f"value must be a Value, got {shown(value)}")
    children, pending = {value: value._children}, [value]
    while pending:
        for child in children[pending.pop()]:
            if child not in children:
                children[child] = child._children
                pending.append(child)
    place = {each: i for i, each in enumerate(TopologicalSorter(children).static_order())}
    return Graph(
        [
            Vertex(each.data, each.grad, each.label, each._op, tuple(place[child] for child in children[each]))
            for each in place
        ]
    )
