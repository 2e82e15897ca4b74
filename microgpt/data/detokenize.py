"""Detokenizing while tokens are drawn: the text of tokens in pieces, each as soon as it is certain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # decoders put it for bytes that are not a character, or not yet
MOST_INCOMPLETE = 3  # bytes of a UTF-8 character that lacks its last byte


def text_pieces(decode: Callable[[list[int]], str], prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """The text that `tokens` add to `prompt`, in pieces, each as soon as no further token can change it.

    A token may be part of a character. The pieces joined are the decoded text of all tokens, without the prompt's.
    """
    window = list(prompt)  # includes a few earlier tokens, because some decoders depend on them
    text = decode(window)
    settled, shown = len(window), len(text)
    for token in tokens:
        window.append(token)
        text = decode(window)
        stable = len(settled_part(text))
        if stable > shown:
            yield text[shown:stable]
            shown = stable
        if stable == len(text):
            del window[:settled]
            text = decode(window)
            settled, shown = len(window), len(text)
    if len(text) > shown:
        yield text[shown:]


def settled_part(text: str) -> str:
    """The beginning of a decoded text that no further token can change: its end may be a part of a character."""
    return text[: max(len(text.rstrip(REPLACEMENT)), len(text) - MOST_INCOMPLETE)]
