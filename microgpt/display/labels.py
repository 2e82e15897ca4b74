"""Labels of tokens in figures and tables."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from microgpt.utils.text import spelled

if TYPE_CHECKING:
    from microgpt.model import GPT

LONGEST = 12  # characters of a token's label


def token_labels(model: GPT, tokens: Iterable[int]) -> list[str]:
    """A short, visible label for each of these tokens of `model`, never empty.

    A space is ␣, other invisible characters are escaped as in a Python string, and a BOS without text is BOS. A token
    without text of its own, such as part of a character or any token of a model without a tokenizer, is its number, #7.
    """
    return [_token_label(model, token) for token in tokens]


def _token_label(model: GPT, token: int) -> str:
    text = model.tokenizer.decode([token]) if model.tokenizer else ""
    if not text and token == model.bos:
        return "BOS"
    if not text or "\ufffd" in text:
        return f"#{token}"
    return text_label(text)


def text_label(text: str) -> str:
    """The same for the text of a token."""
    label = "".join(c if c.isprintable() else spelled(c) for c in text).replace(" ", "␣")
    if unicodedata.category(label[0]).startswith("M"):  # a combining mark needs a base
        label = "◌" + label
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
