"""Samples of a model, as pages show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microgpt.display.html import escaped
from microgpt.display.labels import token_labels
from microgpt.report.document import counted
from microgpt.sampling import TEMPERATURE, TEXT_TOKENS

if TYPE_CHECKING:
    from microgpt.model import GPT


def describe_samples(model: GPT, count: int, seed: Any) -> str:
    """The number of samples, and how they are drawn."""
    what = counted(TEXT_TOKENS if count else 0, "token") if _is_text(model) else counted(count, "document")
    return f"{what} drawn at temperature {TEMPERATURE:g} with seed {escaped(str(seed))}"


def list_samples(model: GPT, count: int, seed: Any) -> str:
    """`count` documents drawn with this seed, as a list; of continuous text, one text, or none if `count` is 0."""
    if not count:
        return ""
    if _is_text(model):
        text = "".join(model.stream(temperature=TEMPERATURE, seed=seed, max_tokens=TEXT_TOKENS))
        return f'<p class="text"><bdi>{escaped(text)}</bdi></p>\n'
    texts = [_document(model, document) for document in model.generate_tokens(count, TEMPERATURE, seed)]
    width = min(40.0, max(12.0, 0.6 * max(map(len, texts))))
    items = "".join(f"<li><bdi>{escaped(text)}</bdi></li>\n" for text in texts)
    return f'<ol class="samples" style="columns: {width:g}rem">\n{items}</ol>\n'


def _is_text(model: GPT) -> bool:
    return model.tokenizer is not None and model.format == "text"


def _document(model: GPT, tokens: list[int]) -> str:
    return model.tokenizer.decode(tokens) if model.tokenizer else " ".join(token_labels(model, tokens))
