"""Places for the nodes of a graph, in layers from left to right.

Source: the steps of Sugiyama, Tagawa and Toda (1981), as Graphviz's dot takes them: layers by longest paths, orders
without many crossings by barycentres, then places that keep lines straight.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

SWEEPS = 12  # pairs of sweeps, from right to left and back: the last one puts nodes in the middle of their children
MOST_VISITS = 100_000  # of slots in all sweeps, if there are so many slots that fewer pairs of sweeps have to do


class Slot(NamedTuple):
    """A place in a layer: that of a node, or one that is kept free for the lines from a node further left."""

    node: int
    layer: int


Links = Mapping[Slot, Sequence[Slot]]  # for each slot, those that it is linked to in the next layer on one side


def lay_out(
    children: Sequence[Sequence[int]], node_height: float, line_height: float
) -> tuple[list[int], dict[Slot, float]]:
    """The layer of each node, and all slots with how far down the middle of each is.

    Layers count from right to left, from 0 for the last node. Slots of a layer do not overlap. A line from a child in
    layer 3 to a node in layer 1 leads through the child's slot in layer 2.

    Args:
        children: for each node, the numbers of those whose lines lead to it, all less than its own. Some path leads
            from each node to the last one.
        node_height, line_height: the height that a node takes, and that of a line which passes between nodes.
    """
    layer = _longest_paths(children)
    left, right = _links(children, layer)
    sweeps = 2 * max(1, min(SWEEPS, MOST_VISITS // (2 * len(left))))
    layers = _ordered(_depth_first(left, Slot(len(children) - 1, 0)), left, right, sweeps)
    heights = [[node_height if layer[node] == i else line_height for node, i in slots] for slots in layers]
    return layer, _placed(layers, heights, left, right, sweeps)


def _longest_paths(children: Sequence[Sequence[int]]) -> list[int]:
    """The layer of each node: the length of the longest path from it to the last one."""
    layer = [0] * len(children)
    for node in reversed(range(len(children))):
        for child in children[node]:
            layer[child] = max(layer[child], layer[node] + 1)
    return layer


def lines_to(children: Sequence[Sequence[int]], layer: Sequence[int]) -> list[dict[int, list[Slot]]]:
    """For each node, the slots of the line from each child, from left to right, the node's own the last.

    Lines from the same child share their slots: one begins where it leaves those to nodes before.
    """
    reached = list(layer)  # how far to the right the line of each node leads so far
    lines: list[dict[int, list[Slot]]] = []
    for node, own in enumerate(children):
        lines.append({})
        end = layer[node]
        for child in dict.fromkeys(own):
            begin = max(reached[child], end + 1)
            lines[-1][child] = [*(Slot(child, i) for i in range(begin, end, -1)), Slot(node, end)]
            reached[child] = min(reached[child], end + 1)
    return lines


def count_passings(children: Sequence[Sequence[int]]) -> int:
    """The number of slots that `lay_out` keeps free for lines which pass between nodes."""
    layer = _longest_paths(children)
    reached = list(layer)
    for node, own in enumerate(children):
        for child in own:
            reached[child] = min(reached[child], layer[node] + 1)
    return sum(layer) - sum(reached)


def _links(children: Sequence[Sequence[int]], layer: Sequence[int]) -> tuple[Links, Links]:
    """The links of each slot to the left and to the right."""
    left: dict[Slot, list[Slot]] = {Slot(node, layer[node]): [] for node in range(len(children))}
    for lines in lines_to(children, layer):
        for slots in lines.values():
            for begin, end in pairwise(slots):
                left.setdefault(end, []).append(begin)
    right: dict[Slot, list[Slot]] = {slot: [] for slot in left}
    for slot, begins in left.items():
        for begin in begins:
            right[begin].append(slot)
    return left, right


def _depth_first(left: Links, last: Slot) -> list[list[Slot]]:
    """The slots of each layer in the order in which they are met from the last one, children from first to last."""
    layers: list[list[Slot]] = [[] for _ in range(1 + max(slot.layer for slot in left))]
    visited, pending = set(), [last]
    while pending:
        slot = pending.pop()
        if slot not in visited:
            visited.add(slot)
            layers[slot.layer].append(slot)
            pending += reversed(left[slot])
    return layers


def _ordered(layers: list[list[Slot]], left: Links, right: Links, sweeps: int) -> list[list[Slot]]:
    """The layers in the order with the fewest crossings of those that sorting by barycentres meets."""
    best, fewest = layers, _crossings(layers, left)
    for sweep in range(sweeps):
        layers = [list(slots) for slots in layers]
        links, order = _direction(sweep, len(layers), left, right)
        share = {slot: (i + 0.5) / len(slots) for slots in layers for i, slot in enumerate(slots)}
        for slots in (layers[i] for i in order):
            centre = {slot: _mean(share, links[slot] or [slot]) for slot in slots}
            slots.sort(key=centre.__getitem__)
            share |= {slot: (i + 0.5) / len(slots) for i, slot in enumerate(slots)}
        crossings = _crossings(layers, left)
        if crossings < fewest:
            best, fewest = layers, crossings
    return best


def _direction(sweep: int, layers: int, left: Links, right: Links) -> tuple[Links, range]:
    """The links that decide about places in a sweep, and the layers in its order."""
    return (right, range(1, layers)) if sweep % 2 == 0 else (left, range(layers - 2, -1, -1))


def _mean(places: Mapping[Slot, float], slots: Sequence[Slot]) -> float:
    return sum([places[slot] for slot in slots]) / len(slots)


def _crossings(layers: list[list[Slot]], left: Links) -> int:
    """The number of pairs of links that cross."""
    index = {slot: i for slots in layers for i, slot in enumerate(slots)}
    count = 0
    for slots in layers:
        above: list[int] = []  # the left ends of links whose right ends are above
        for slot in slots:
            begins = [index[begin] for begin in left[slot]]
            count += sum(len(above) - bisect_right(above, begin) for begin in begins)
            for begin in begins:
                insort(above, begin)
    return count


def _placed(
    layers: list[list[Slot]], heights: list[list[float]], left: Links, right: Links, sweeps: int
) -> dict[Slot, float]:
    """How far down each slot is: in turns in the middle of its links to the right, and of those to the left."""
    down: dict[Slot, float] = {}
    for slots, each in zip(layers, heights):
        down |= zip(slots, _apart([0.0] * len(slots), each))
    for sweep in range(sweeps):
        links, order = _direction(sweep, len(layers), left, right)
        for i in order:
            wanted = [_mean(down, links[slot] or [slot]) for slot in layers[i]]
            down |= zip(layers[i], _apart(wanted, heights[i]))
    top = min(down[slots[0]] - each[0] / 2 for slots, each in zip(layers, heights))
    return {slot: y - top for slot, y in down.items()}


def _apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """The middles of things of these heights, one below the other, as close to where they are wanted as can be.

    Close in the sense of least squares: without what is above, the middles must not decrease, which makes it isotonic
    regression, by the pooling of adjacent violators.
    """
    above = list(accumulate((a + b) / 2 for a, b in zip([heights[0], *heights], heights)))
    pools: list[tuple[float, int]] = []  # things that touch: the sum of where they are wanted, and their number
    for middle, distance in zip(wanted, above):
        total, count = middle - distance, 1
        while pools and pools[-1][0] * count > total * pools[-1][1]:
            total, count = total + pools[-1][0], count + pools.pop()[1]
        pools.append((total, count))
    means = [total / count for total, count in pools for _ in range(count)]
    return [mean + distance for mean, distance in zip(means, above)]
