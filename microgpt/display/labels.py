"""Tokens made visible: what a reader of a figure or a table gets to see of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from microgpt.utils.text import spelled

if TYPE_CHECKING:
    from microgpt.model import GPT

LONGEST = 12  # characters of a token's label


def token_labels(model: GPT, tokens: Iterable[int]) -> list[str]:
    """A short, visible name for each of these tokens of `model`, never empty.

    A space is ␣, other characters that do not show are spelled as in a Python string, and a BOS which is no text is
    BOS. What has no text of its own, such as a part of a character, or any token of a model without a tokenizer, is
    named by its number, as #7.
    """
    return [_token_label(model, token) for token in tokens]


def _token_label(model: GPT, token: int) -> str:
    text = model.tokenizer.decode([token]) if model.tokenizer else ""
    if not text and token == model.bos:
        return "BOS"
    if not text or "\ufffd" in text:
        return f"#{token}"
    label = "".join(c if c.isprintable() else spelled(c) for c in text).replace(" ", "␣")
    if unicodedata.category(label[0]).startswith("M"):  # a mark that needs something to sit on
        label = "◌" + label
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
