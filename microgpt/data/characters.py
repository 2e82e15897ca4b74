"""Characters as arrays of code points, which is faster than one by one in Python."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LINE_FEED = ord("\n")
LAST_SPACE = 0x3000  # no white space has a higher code point


def code_points(text: str) -> NDArray[np.integer]:
    """The code point of each character, lone surrogates included: uint8 or int32, which index on 32-bit systems too."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode(f"utf-32-{sys.byteorder[0]}e", "surrogatepass"), np.int32)


def line_feeds(codes: NDArray[np.integer]) -> NDArray[np.int64]:
    """The positions of line feeds among code points, or bytes of UTF-8."""
    return np.flatnonzero(codes == LINE_FEED).astype(np.int64, copy=False)


def count_line_feeds(text: str) -> int:
    """Like `text.count("\\n")`, but faster."""
    return int(np.count_nonzero(code_points(text) == LINE_FEED))


def distinct_characters(text: str) -> set[str]:
    """Like `set(text)`, but faster."""
    if text.isascii():
        content = text.encode()
        common = bytes(set(content[:1000]))
        return set(map(chr, {*common, *content.translate(None, common)}))
    codes = code_points(text)
    seen = np.zeros(int(codes.max()) + 1, bool)
    seen[codes] = True
    return set(map(chr, np.flatnonzero(seen).tolist()))


def stripped_lines(text: str) -> str:
    """The lines of a text that are not blank, without white space at their ends, each followed by a line feed."""
    if not text.endswith("\n"):
        text += "\n"
    if _may_have_space_at_ends(text):
        text = text.replace("\n\n", "\n").removeprefix("\n")  # often the only white space at ends is a blank line
    if _may_have_space_at_ends(text):
        text = "".join([f"{stripped}\n" for line in text.split("\n") if (stripped := line.strip())])
    return text


def _may_have_space_at_ends(text: str) -> bool:
    if not text:
        return False
    codes = code_points(text)
    is_space = codes <= ord(" ") if text.isascii() else _is_space().take(codes, mode="clip")
    is_end = codes == LINE_FEED  # also white space, so an empty line has it at both ends
    return bool(is_space[0] or (is_end[:-1] & is_space[1:]).any() or (is_space[:-1] & is_end[1:]).any())


@cache
def _is_space() -> NDArray[np.bool_]:
    """True for each code point that is white space; the last element stands for all beyond."""
    return np.array([chr(code).isspace() for code in range(LAST_SPACE + 1)] + [False])
