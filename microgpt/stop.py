"""Texts that end what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from microgpt.data.detokenize import settled_part
from microgpt.utils.arguments import check_order, shown


@dataclass(frozen=True)
class Stop:
    """Texts that end a drawn text before the first of them that is complete; of two that end together, the longer.

    Attributes:
        texts: the texts, at least one character each; none: nothing ends a text.
    """

    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, stop: str | Iterable[str] | None) -> Stop:
        """The texts of an argument `stop`: one, several, or None. `TypeError` or `ValueError` names a wrong one."""
        if stop is None or isinstance(stop, str):
            stop = [] if stop is None else [stop]
        if not isinstance(stop, Iterable):
            raise TypeError(f"stop must be a text or several, got {shown(stop)}")
        check_order("stop", stop)
        texts = tuple(stop)
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"stop must be a text or several, got {shown(text)} among them")
            if not text:
                raise ValueError("stop must be texts of at least one character, got an empty one")
        return cls(texts)

    def completes(
        self, decode: Callable[[list[int]], str], prompt: Sequence[int]
    ) -> Callable[[list[int]], bool] | None:
        """Whether the text of the tokens drawn after `prompt` holds a stop, as a function of them; None without stops.

        It is to be called after each token: it looks at the end of the text.
        """
        if not self.texts:
            return None
        tokens = list(prompt)
        begin = len(decode(tokens))
        reach = 4 * max(map(len, self.texts)) + 4  # tokens that show a stop, if each has at least one byte of text

        def is_complete(drawn: list[int]) -> bool:
            if self.begin(decode(drawn[-reach:])) is None:  # usually, and then all need not be decoded
                return False
            return self.begin(settled_part(decode(tokens + drawn))[begin:]) is not None

        return is_complete

    def begin(self, text: str) -> int | None:
        """Index in `text` at which the stop begins that is complete first; None if there is none."""
        found = [(begin + len(each), begin) for each in self.texts if (begin := text.find(each)) >= 0]
        return min(found)[1] if found else None

    def cut(self, text: str) -> str:
        """`text` up to where the first of the texts begins."""
        return text[: self.begin(text)]

    def cut_pieces(self, pieces: Iterable[str]) -> Iterator[str]:
        """`pieces` of a text, cut like the whole; what could be the beginning of a stop is held back until it is not.

        No piece is asked for after a stop is complete.
        """
        held = ""
        for piece in pieces:
            held += piece
            if (begin := self.begin(held)) is not None:
                if begin:
                    yield held[:begin]
                return
            settled = len(held) - self._unsettled(held)
            if settled:
                yield held[:settled]
                held = held[settled:]
        if held:
            yield held

    def _unsettled(self, text: str) -> int:
        """Length of the longest end of `text` that one of the texts begins with."""
        lengths = (length for each in self.texts for length in range(1, len(each)) if text.endswith(each[:length]))
        return max(lengths, default=0)
