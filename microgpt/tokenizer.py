"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from microgpt.packing import PackedSequences


class CharTokenizer:
    """One token per character, in code point order, and after them one that begins and ends a document (BOS).

    Source: the tokenizer of microgpt.

    Attributes:
        characters: the characters, sorted; token i is `characters[i]`.
        bos: the id of the token that begins and ends a document: the last one.
        vocab_size: number of tokens, `bos` included.
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(characters)))
        if not self.characters:
            raise ValueError("characters must hold at least one character, got none")
        self.bos = len(self.characters)
        self.vocab_size = self.bos + 1
        codes = _code_points(self.characters)
        self._ids = np.full(int(codes[-1]) + 2, -1, np.int32)  # by code point; the last stands for all beyond
        self._ids[codes] = np.arange(self.bos)

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
        """The characters of these ids; BOS stands for none. `ValueError` names an id out of range."""
        text = []
        for token in tokens:
            if not 0 <= token <= self.bos:
                raise ValueError(f"token id {token} is out of range for vocab_size={self.vocab_size}")
            text.append(self.characters[token] if token < self.bos else "")
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

    def _encode(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        ids = self._ids.take(codes, mode="clip")
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            character = text[unknown[0]]
            raise ValueError(f"character {character!r} at position {unknown[0]} is not one the tokenizer knows")
        return ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def __repr__(self) -> str:
        return f"CharTokenizer({self.characters!r})"


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
