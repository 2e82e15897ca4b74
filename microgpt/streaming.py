"""Text out of tokens that come one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoders make of bytes that are no character, or not yet
MOST_INCOMPLETE = 3  # bytes of a character in UTF-8 that lacks its last


def text_pieces(decode: Callable[[list[int]], str], prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """What `tokens` add to the text of `prompt`, piece by piece, each as soon as no further token can change it.

    A token may be a part of a character. Joined, the pieces are what `decode` makes of all tokens, less the prompt.
    """
    window = list(prompt)  # a few tokens before those that are new: some decoders look at what precedes
    text = decode(window)
    settled, shown = len(window), len(text)
    for token in tokens:
        window.append(token)
        text = decode(window)
        stable = max(len(text.rstrip(REPLACEMENT)), len(text) - MOST_INCOMPLETE)
        if stable > shown:
            yield text[shown:stable]
            shown = stable
        if stable == len(text):
            del window[:settled]
            text = decode(window)
            settled, shown = len(window), len(text)
    if len(text) > shown:
        yield text[shown:]
