"""SVG drawings of attention and embeddings, in the fonts and colours of their page.

display/page.css styles their classes.
"""

from __future__ import annotations

import base64
import math
import zlib
from typing import TYPE_CHECKING

import numpy as np

from microgpt.display.curves import TRAINING as ACCENT
from microgpt.display.html import escaped

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEGEND = (0.0, 0.05, 0.25, 0.5, 1.0)  # attention weights


def attention_legend() -> str:
    """The legend for the colours of the maps."""
    opacities = _opacity(np.array(LEGEND)).tolist()
    items = "".join(
        f'<li><i style="--opacity: {100 * opacity:.0f}%"></i>{weight:g}</li>'
        for weight, opacity in zip(LEGEND, opacities)
    )
    return f'<ul class="legend" aria-label="Weights">{items}</ul>\n'


def attention_axes(labels: list[str]) -> str:
    """The labels of all maps, needed once per page: rows left of the origin, columns above it."""
    rows = "".join(
        f'<text x="-0.3" y="{i + 0.5}" text-anchor="end" dominant-baseline="central">{escaped(label)}</text>'
        for i, label in enumerate(labels)
    )
    upright, turned = 'text-anchor="middle" transform="{}"', 'dominant-baseline="central" transform="{} rotate(-90)"'
    columns = "".join(
        f"<text {(turned if len(label) > 1 else upright).format(f'translate({i + 0.5} -0.3)')}>{escaped(label)}</text>"
        for i, label in enumerate(labels)
    )
    return (
        '<svg width="0" height="0" style="position: absolute" aria-hidden="true">'
        f'<defs><g id="axes" class="axis">{rows}{columns}</g></defs></svg>\n'
    )


def attention_map(labels: list[str], weights: NDArray[np.float64], name: str) -> str:
    """The attention weights of one head, (tokens, tokens), with the labels of `attention_axes`."""
    size, extent = len(labels), _extent(labels)
    box = f"{size - extent:g} {size - extent:g} {extent:g} {extent:g}"
    return (
        f'<svg role="img" aria-label="{escaped(name)}" viewBox="{box}"><use href="#axes"/>'
        f'<image width="{size}" height="{size}" preserveAspectRatio="none" href="{_png(weights)}"/>'
        f'<rect class="frame" width="{size}" height="{size}"/></svg>'
    )


def attention_map_width(labels: list[str]) -> float:
    """The width of a map in rem; a row of the page has 59: four maps of a short text, two of a long one."""
    extent = _extent(labels)
    return min(28.0, max(0.75 * extent, min(1.4 * extent, 13.5)))


def token_plane(labels: list[str], points: NDArray[np.float64]) -> str:
    """Tokens at `points`, (tokens, 2), x to the right and y up: the first ones as `labels`, the others as dots."""
    width, height = np.ptp(points, axis=0)
    scale = 100 / max(width, 1e-12)
    height *= scale
    x, y = ((points - points.min(axis=0)) * (scale, -scale) + (0, height)).T
    texts = "".join(f'<text x="{x[i]:.2f}" y="{y[i]:.2f}">{escaped(label)}</text>\n' for i, label in enumerate(labels))
    dots = "".join(f"M{x[i]:.1f} {y[i]:.1f}h0" for i in range(len(labels), len(points)))
    box = f'x="-4" y="-4" width="108" height="{height + 8:.2f}"'
    return (
        '<svg role="img" aria-label="Tokens in the plane of their two principal components" '
        f'viewBox="-4 -4 108 {height + 8:.2f}"><rect class="frame" {box}/>'
        f'<path class="points" stroke-width="0.6" d="{dots}"/>'
        f'<g class="tokens" font-size="{min(3.0, 22 / math.sqrt(len(labels))):.2f}">\n{texts}</g></svg>'
    )


def _extent(labels: list[str]) -> float:
    """The width and height of a map with its labels, in positions."""
    return len(labels) + 0.5 + 0.55 * max(map(len, labels))


def _opacity(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The opacity of weights: their square roots, so that small ones remain visible."""
    return np.sqrt(weights)


def _png(weights: NDArray[np.float64]) -> str:
    """A data URL of a picture with a pixel for each weight: the accent colour, more or less opaque.

    Source: PNG (ISO/IEC 15948): rows of 8-bit RGBA, each after its filter, which is 0 for none.
    """
    height, width = weights.shape
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :3] = list(bytes.fromhex(ACCENT[1:]))
    pixels[..., 3] = np.rint(255 * _opacity(weights))
    rows = np.insert(pixels.reshape(height, 4 * width), 0, 0, axis=1)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 6, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")):
        content += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    return "data:image/png;base64," + base64.b64encode(content).decode()
