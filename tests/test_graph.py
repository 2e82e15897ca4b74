"""`microgpt.graph`: drawings of the graph that a `Value` was computed by, on both twins."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import reference
from microgpt.display.drawing import Vertex, svg
from microgpt.display.graph import LARGEST, MOST_PASSINGS
from microgpt.display.layout import Slot, count_passings, lay_out

from conftest import needs_processes

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    'a"]; b [label="c', "</text><script>alert(1)</script>", "{x|<y>}\\N\\", "&lt;&", "\ud800\x00\n\u202e", "字é" * 40
]  # fmt: skip


@pytest.fixture(params=["reference", "compiled"])
def scalars(request):
    """The module with `Value`, once for each twin."""
    if request.param == "reference":
        return reference
    return pytest.importorskip("microgpt._value", reason="the compiled half is not built")


def neuron(scalars):
    """The one of the lecture about micrograd, after backward."""
    numbers = {"x1": 2.0, "x2": 0.0, "w1": -3.0, "w2": 1.0, "b": 6.8813735870195432}
    x1, x2, w1, w2, b = (scalars.Value(number, label=label) for label, number in numbers.items())
    n = x1 * w1 + x2 * w2 + b
    n.label = "n"
    o = n.tanh()
    o.label = "o"
    o.backward()
    return o


def drawing(graph: microgpt.Graph) -> ElementTree.Element:
    return ElementTree.fromstring(graph.to_svg())


def boxes(graph: microgpt.Graph) -> list[str]:
    """The text of each box, with | between its cells."""
    groups = [group for group in drawing(graph).iter(f"{SVG}g") if group[0].tag == f"{SVG}title"]
    return [" | ".join(text.text for text in group.iter(f"{SVG}text")) for group in groups]


def operations(graph: microgpt.Graph) -> list[str]:
    return [text.text for text in drawing(graph).iter(f"{SVG}text") if text.get("text-anchor") == "middle"]


def test_the_neuron_of_the_lecture_has_its_numbers(scalars) -> None:
    graph = microgpt.graph(neuron(scalars))
    assert repr(graph) == "Graph of 10 values"
    assert sorted(boxes(graph)) == [
        "b | data 6.8814 | grad 0.5000",
        "data -6.0000 | grad 0.5000",
        "data -6.0000 | grad 0.5000",
        "data 0.0000 | grad 0.5000",
        "n | data 0.8814 | grad 0.5000",
        "o | data 0.7071 | grad 1.0000",
        "w1 | data -3.0000 | grad 1.0000",
        "w2 | data 1.0000 | grad 0.0000",
        "x1 | data 2.0000 | grad -1.5000",
        "x2 | data 0.0000 | grad 0.5000",
    ]
    assert operations(graph) == ["*", "*", "+", "+", "tanh"]
    assert graph._repr_svg_() == graph.to_svg()
    label = "Graph of 10 values, the last of which is o: data 0.7071067811865477, grad 1.0"
    assert drawing(graph).get("aria-label") == label


def test_both_twins_give_the_same_graph() -> None:
    compiled = pytest.importorskip("microgpt._value", reason="the compiled half is not built")
    made = []
    for scalars in (reference, compiled):
        x = [scalars.Value(i / 3, label=f"x{i}") for i in range(3)]
        loss = -scalars.softmax(scalars.linear(scalars.rmsnorm(x), [x, x[::-1]]))[0].log() / 2
        loss.backward()
        made.append(microgpt.graph(loss))
    assert made[0].to_dot() == made[1].to_dot()
    assert made[0].to_svg() == made[1].to_svg()
    assert len(made[0]) > 40


def test_a_value_is_drawn_once_and_an_operand_as_often_as_it_is_one(scalars) -> None:
    a = scalars.Value(1.5, label="a")
    twice = a + a
    dot = microgpt.graph(twice * twice * a).to_dot()
    edges = re.findall(r"(\w+) -> (\w+)$", dot, re.MULTILINE)
    assert dot.count("shape=record") == 4
    assert edges.count(("value0", "operation1")) == 2
    assert edges.count(("value1", "operation2")) == 2
    assert edges.count(("value0", "operation3")) == 1
    curves = re.findall(r"(M[-\d. ]+)(C[-\d. ]+)", microgpt.graph(twice).to_svg())
    assert len(curves) == len(set(curves)) == 2
    assert curves[0][0] == curves[1][0]


def test_numbers_leaves_and_operations_of_ones_own_are_drawn(scalars) -> None:
    assert boxes(microgpt.graph(scalars.Value(2))) == ["data 2.0000 | grad 0.0000"]
    assert boxes(microgpt.graph(scalars.Value(1) + 3)) == [f"data {x}.0000 | grad 0.0000" for x in (1, 3, 4)]
    x = scalars.Value(1.0)
    unnamed, sine, tenth = (scalars.Value(1.0, (x,), (1.0,), name) for name in ("", "sin", "0123456789" * 3))
    assert sorted(operations(microgpt.graph(unnamed + sine + tenth))) == ["+", "+", "01234567890123456789012…", "sin"]
    extremes = [float("nan"), float("-inf"), 1e300, -1e-9, 999999.4, 5e-324]
    shown = boxes(microgpt.graph(scalars.Value(0.0, [scalars.Value(e) for e in extremes], [1.0] * 6, "f")))
    numbers = ["nan", "-inf", "1.000e+300", "-1.000e-09", "999999.4000", "4.941e-324", "0.0000"]
    assert shown == [f"data {number} | grad 0.0000" for number in numbers]


def test_a_graph_stays_as_it_was(scalars) -> None:
    value = neuron(scalars)
    graph = microgpt.graph(value)
    before = graph.to_dot()
    value.data, value.grad, value.label = 3.0, 4.0, "later"
    assert graph.to_dot() == before
    assert "later | data 3.0000 | grad 4.0000" in microgpt.graph(value).to_dot()


def named(text: str) -> microgpt.Graph:
    """A graph with this text for a label and for an operation."""
    x = microgpt.Value(1.0, label=text)
    return microgpt.graph(microgpt.Value(2.0, (x,), (1.0,), text))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_labels_are_text(text) -> None:
    graph = named(text)
    assert boxes(graph)[0].endswith(" | data 1.0000 | grad 0.0000")
    assert not set(boxes(graph)[0]) & set("\ud800\x00\n\u202e")
    assert {each.tag for each in drawing(graph).iter()} == {
        f"{SVG}{tag}" for tag in ("svg", "style", "rect", "path", "g", "title", "text", "ellipse")
    }
    quoted = r'"(?:[^"\\]|\\.)*"'
    lines = graph.to_dot().splitlines()[4:-1]
    kinds = rf"value\d \[shape=record label={quoted}\]", rf"operation1 \[shape=ellipse label={quoted}\]", r"\w+ -> \w+"
    assert [sum(bool(re.fullmatch(f"    {kind}", line)) for line in lines) for kind in kinds] == [2, 1, 2]
    fields = re.search(r'label="\{(.*)\}"', lines[0])[1]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*[{}|<>]", fields)) == 2


@needs_processes
@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not installed")
@pytest.mark.parametrize("text", HOSTILE)
def test_graphviz_shows_hostile_labels_as_text(text, tmp_path) -> None:
    graph = named(text)
    graph.save(tmp_path / "graph.dot")
    command = ["dot", "-Tsvg", str(tmp_path / "graph.dot")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert done.stderr == ""
    texts = [" ".join(each.text.split()) for each in ElementTree.fromstring(done.stdout).iter(f"{SVG}text")]
    assert texts.count(boxes(graph)[0].split(" | data")[0]) == 2


def test_files_are_written_by_their_ending(scalars, tmp_path) -> None:
    graph = microgpt.graph(neuron(scalars))
    for name, content in {"a": graph.to_svg(), "b": graph.to_dot()}.items():
        for suffix in ("svg", "SVG") if name == "a" else ("dot", "gv"):
            graph.save(tmp_path / f"{name}.{suffix}")
            assert (tmp_path / f"{name}.{suffix}").read_text("utf-8") == content
    written = len(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=r"^a graph must end in \.svg, \.dot, \.gv, \.png or \.pdf, got .*a\.gif$"):
        graph.save(tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"^cannot write .*a\.svg: No such file or directory$"):
        graph.save(tmp_path / "nowhere" / "a.svg")
    assert len(os.listdir(tmp_path)) == written


@pytest.mark.parametrize("value", [2.0, None, "a", [1, 2]])
def test_what_is_no_value_is_refused(value) -> None:
    with pytest.raises(TypeError, match=r"^value must be a Value, got "):
        microgpt.graph(value)


def chain(scalars, length: int):
    value = scalars.Value(0.5)
    for _ in range(length - 1):
        value = value.tanh()
    return value


class DotError(Exception):
    stderr = b"Error: \xff\n  too large\n"


def test_large_graphs_are_left_to_graphviz(scalars, tmp_path, monkeypatch) -> None:
    assert "<svg" in microgpt.graph(chain(scalars, LARGEST))._repr_svg_()
    graph = microgpt.graph(chain(scalars, LARGEST + 1))
    assert graph._repr_svg_() is None
    asked = []

    def pipe(engine: str, format: str, source: bytes, quiet: bool) -> bytes:
        asked.append((engine, format, source, quiet))
        return b"drawn"

    library = SimpleNamespace(pipe=pipe, ExecutableNotFound=ZeroDivisionError, CalledProcessError=DotError)
    monkeypatch.setitem(sys.modules, "graphviz", library)
    assert graph.to_svg() == "drawn"
    graph.save(tmp_path / "a.svg")
    microgpt.graph(chain(scalars, 1)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "a.svg").read_bytes() == b"drawn"
    assert [format for _, format, *_ in asked] == ["svg", "svg", "png"]
    needed = "^a graph of 1,001 values as .svg needs Graphviz, unlike .dot, but "
    library.pipe = lambda *_, **__: 1 / 0
    with pytest.raises(ImportError, match=f"{needed}its program dot is not installed: https://graphviz.org/download/$"):
        graph.save(tmp_path / "b.svg")
    library.pipe = lambda *_, **__: (_ for _ in ()).throw(DotError)
    with pytest.raises(RuntimeError, match=f"{needed}dot says: Error: \ufffd too large$"):
        graph.save(tmp_path / "b.svg")
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(
        ImportError, match=f'{needed}graphviz is not installed: pip install "microgpt-fast\\[graphviz\\]"$'
    ):
        graph.save(tmp_path / "b.svg")
    assert not (tmp_path / "b.svg").exists()


def sum_of_a_chain(scalars, length: int):
    """The sum of all values of a chain, last ones first: lines of length 1, 3, 5, ..."""
    values = [scalars.Value(0.5)]
    for _ in range(length - 1):
        values.append(values[-1].tanh())
    return sum(values[-2::-1], values[-1])


def test_graphs_of_long_lines_are_left_to_graphviz(scalars, tmp_path, monkeypatch) -> None:
    small, large = (microgpt.graph(sum_of_a_chain(scalars, length)) for length in (20, 200))
    assert len(large) < LARGEST
    assert "<svg" in small._repr_svg_()
    assert large._repr_svg_() is None
    assert "digraph" in large.to_dot()
    monkeypatch.setitem(sys.modules, "graphviz", None)
    message = r"^a graph of 399 values with lines that pass others ([\d,]+) times as \.svg needs Graphviz"
    with pytest.raises(ImportError, match=message) as refusal:
        large.save(tmp_path / "a.svg")
    passings = int(re.match(message, str(refusal.value))[1].replace(",", ""))
    assert passings > MOST_PASSINGS
    monkeypatch.setattr("microgpt.display.graph.MOST_PASSINGS", passings)
    assert "<svg" in large._repr_svg_()


def test_lines_of_a_value_that_is_used_again_and_again_are_drawn_once(scalars) -> None:
    x = scalars.Value(1.01, label="x")
    value = x
    for _ in range(60):
        value = value * x
    lines = re.findall(r"M[^M]+", drawing(microgpt.graph(value)).find(f"{SVG}path").get("d"))
    assert len(lines) == len(set(lines)) < 8 * 60  # not the square


def test_a_graph_of_any_depth_is_written_as_dot(scalars) -> None:
    graph = microgpt.graph(chain(scalars, 20_000))
    assert repr(graph) == "Graph of 20,000 values"
    assert graph.to_dot().count("shape=record") == 20_000


@st.composite
def graphs(draw) -> list[tuple[int, ...]]:
    """For each node, its children; a path leads from each to the last one."""
    count = draw(st.integers(1, 14))
    children = [tuple(draw(st.lists(st.integers(0, i - 1), max_size=3))) if i else () for i in range(count)]
    used = set(itertools.chain(*children))
    return [*children[:-1], (*children[-1], *(i for i in range(count - 1) if i not in used))]


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_nothing_overlaps_and_no_line_crosses_a_box(children) -> None:
    layer, down = lay_out(children, 40, 18)
    assert layer[-1] == 0
    assert count_passings(children) == len(down) - len(children)
    assert all(layer[child] > layer[node] for node, each in enumerate(children) for child in each)
    for i in range(max(layer) + 1):
        slots = sorted((y, 20 if layer[slot.node] == i else 9) for slot, y in down.items() if slot.layer == i)
        assert slots[0][0] >= slots[0][1] - 1e-9
        assert all(b - a >= half + other - 1e-9 for (a, half), (b, other) in itertools.pairwise(slots))
    assert {slot for slot in down if layer[slot.node] == slot.layer} == {Slot(*each) for each in enumerate(layer)}

    drawn = ElementTree.fromstring(svg([Vertex(0.0, 0.0, "", "+" if each else "", each) for each in children]))
    outlines, (lines, _, *_) = [], [path.get("d") for path in drawn.iter(f"{SVG}path")]
    for path in drawn.find(f"{SVG}g[@stroke]").iter(f"{SVG}path"):
        x, y, end, height = map(float, re.match(r"M([-\d.]+) ([-\d.]+)H([-\d.]+)v(\d+)", path.get("d")).groups())
        outlines.append((x, y, end, y + height))
    assert len(outlines) == len(children)
    points = []
    for line in re.findall(r"M([^M]+)", lines):
        numbers = [float(number) for number in re.findall(r"[-\d.]+", line)]
        if "H" in line:
            x, y, end = numbers
            points += [(x + (end - x) * t / 20, y) for t in range(21)]
        else:
            (x, y), *others = zip(numbers[::2], numbers[1::2])
            for t in (i / 20 for i in range(21)):
                weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
                points.append(tuple(sum(w * p[k] for w, p in zip(weights, [(x, y), *others])) for k in (0, 1)))
    for x, y, end, bottom in outlines:
        assert not [p for p in points if x + 0.2 < p[0] < end - 0.2 and y + 0.2 < p[1] < bottom - 0.2]
