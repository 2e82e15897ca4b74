"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from microgpt.packing import PackedSequences


class Tokenizer:
    """Base."""

    @staticmethod
    def from_json(told):
        return CharTokenizer(told["characters"], told["bos"])


class CharTokenizer(Tokenizer):
    """One token per character, in code point order, and after them one that begins and ends a document (BOS).

    Args:
        characters: those it is to know, in any order, any number of times.
        bos: in a text that is not made of documents, the character that begins and ends what is drawn from a model,
            such as a line feed. There is then no token beside the characters.

    Source: the tokenizer of microgpt.

    Attributes:
        characters: the characters, sorted; token i is `characters[i]`.
        bos: the id of the token that begins and ends a document.
        vocab_size: number of tokens, `bos` included.
    """

    def __init__(self, characters: Iterable[str], bos: str | None = None) -> None:
        self.characters = "".join(sorted(set(characters)))
        if not self.characters:
            raise ValueError("characters must hold at least one character, got none")
        if bos is not None and (len(bos) != 1 or bos not in self.characters):
            raise ValueError(f"bos must be one of the characters, got {bos!r}")
        size = len(self.characters)
        self.bos = size if bos is None else self.characters.index(bos)
        self.vocab_size = size + (bos is None)
        codes = _code_points(self.characters)
        self._ids = np.full(int(codes[-1]) + 2, -1, np.int32)  # by code point; the last stands for all beyond
        self._ids[codes] = np.arange(size)

    @classmethod
    def from_documents(cls, documents: Sequence[str]) -> CharTokenizer:
        """The tokenizer that knows the characters of these documents."""
        return cls(set("".join(documents)))

    def encode(self, text: str) -> list[int]:
        """The id of each character; `ValueError` names one that the tokenizer does not know."""
        return self._encode(text).tolist()

    def encode_document(self, text: str) -> list[int]:
        """The ids of a whole document, BOS on both sides."""
        return [self.bos, *self.encode(text), self.bos]

    def decode(self, tokens: Iterable[int]) -> str:
        """The characters of these ids, without a BOS that is none. `ValueError` names an id out of range."""
        text = []
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is out of range for vocab_size={self.vocab_size}")
            text.append(self.characters[token : token + 1])
        return "".join(text)

    def pack_documents(self, documents: Sequence[str]) -> PackedSequences:
        """All documents as token sequences, each as `encode_document` gives it; neighbours share a BOS."""
        sizes = np.array([len(document) for document in documents], np.int64)
        starts = np.cumsum(sizes + 1) - (sizes + 1)
        tokens = np.full(int(sizes.sum()) + len(documents) + 1, self.bos, np.int32)
        is_character = np.ones(len(tokens), bool)
        is_character[starts] = is_character[-1] = False
        tokens[is_character] = self._encode("".join(documents))
        return PackedSequences(tokens, starts, sizes + 2)

    def to_json(self):
        return {"characters": self.characters, "bos": None if self.bos == len(self.characters) else self.characters[self.bos]}

    def _encode(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        ids = self._ids.take(codes, mode="clip")
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            character = text[unknown[0]]
            raise ValueError(f"character {character!r} at position {unknown[0]} is not one the tokenizer knows")
        return ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and (self.characters, self.bos) == (other.characters, other.bos)

    def __hash__(self) -> int:
        return hash((self.characters, self.bos))

    def __repr__(self) -> str:
        bos = "" if self.bos == len(self.characters) else f", bos={self.characters[self.bos]!r}"
        return f"CharTokenizer({self.characters!r}{bos})"


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
