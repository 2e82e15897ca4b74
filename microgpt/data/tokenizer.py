"""Text to token ids and back: the interface of tokenizers, and those of characters and of bytes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt.data.characters import code_points, distinct_characters, line_feeds
from microgpt.engine.packing import token_array
from microgpt.utils.arguments import shown, string

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Encoded = tuple[NDArray[Any], NDArray[np.int64]]


class Tokenizer(ABC):
    """The interface of `CharTokenizer`, `ByteTokenizer` and `HuggingFaceTokenizer`.

    Attributes:
        vocab_size: number of tokens, `bos` included.
        bos: the id of the token that begins and ends a document (BOS).
        bos_is_text: whether `bos` is also text, such as a line feed; then generated text continues after it.
    """

    vocab_size: int
    bos: int
    bos_is_text: bool

    @abstractmethod
    def encode_array(self, text: str) -> NDArray[Any]:
        """The ids of a text, as an array. `ValueError` names a character that has none, and its position."""

    @abstractmethod
    def encode_lines(self, text: str) -> Encoded:
        """The ids of lines that each end in \\n, which becomes BOS; and the positions of these BOS, int64."""

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ids, without any BOS that is not text. `ValueError` names an id out of range."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """A description for `from_json`, in the types of JSON."""

    @classmethod
    @abstractmethod
    def _from_json(cls, content: dict[str, Any]) -> Tokenizer:
        """The tokenizer with this result of `to_json`, without the type."""

    @staticmethod
    def from_json(content: Any) -> Tokenizer:
        """The tokenizer with this result of `to_json`, which may come from an untrusted file.

        `ValueError` says what is missing or wrong, `ImportError` which package the tokenizer needs.
        """
        from microgpt.data.huggingface import HuggingFaceTokenizer  # it imports this module

        kinds: dict[str, type[Tokenizer]] = {
            "characters": CharTokenizer,
            "bytes": ByteTokenizer,
            "huggingface": HuggingFaceTokenizer,
        }
        kind = content.get("type") if isinstance(content, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"tokenizer must have a type, one of {', '.join(kinds)}, got {shown(content)}")
        return kinds[kind]._from_json({key: value for key, value in content.items() if key != "type"})

    def encode(self, text: str) -> list[int]:
        """The ids of a text. `ValueError` names a character that has none, and its position."""
        ids: list[int] = self.encode_array(string("text", text)).tolist()
        return ids

    def encode_document(self, text: str) -> list[int]:
        """The ids of a document, with BOS on both sides."""
        return [self.bos, *self.encode(text), self.bos]

    def encode_documents(self, documents: Sequence[str]) -> Encoded:
        """The ids of documents, whatever is in them, with BOS after each; and the positions of these BOS, int64."""
        lines = "\n".join([*documents, ""])
        if lines.count("\n") == len(documents):
            return self.encode_lines(lines)
        return joined(map(self.encode_array, documents), self.bos, self.dtype)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest array type for all ids."""
        return smallest_dtype(self.vocab_size)

    def _checked(self, tokens: Iterable[int]) -> list[int]:
        given: Any = list(tokens) if isinstance(tokens, Iterable) else tokens
        checked: list[int] = token_array("tokens", given, self.vocab_size).tolist()
        return checked

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_json()))


class UnknownCharacterError(ValueError):
    """A text has a character without a token."""


class CharTokenizer(Tokenizer):
    """One token per character, in code point order, and after them one that begins and ends a document (BOS).

    Args:
        characters: the characters with a token, in any order, any number of times.
        bos: for a text that does not consist of documents, a character that serves as BOS, such as the line feed:
            samples begin and end there. Then there is no token besides the characters.
        added: further characters, each once, whose tokens come after all others, in this order: see `extended`.

    Source: the tokenizer of microgpt.

    Attributes:
        characters: the characters, sorted; token i is `characters[i]`.
        added: the characters of the last tokens.
    """

    def __init__(self, characters: Iterable[str], bos: str | None = None, added: str = "") -> None:
        try:
            joined = "".join(characters)
        except TypeError:
            raise TypeError(f"characters must be a string or several, got {shown(characters)}") from None
        self.characters = "".join(sorted(distinct_characters(joined)))
        if not self.characters:
            raise ValueError("characters must hold at least one character, got none")
        if bos is not None and (len(string("bos", bos)) != 1 or bos not in self.characters):
            raise ValueError(f"bos must be one of the characters, got {shown(bos)}")
        self.added = string("added", added)
        if len({*self.characters, *added}) < len(self.characters) + len(added):
            raise ValueError(f"added must be characters without a token, each once, got {shown(added)}")
        size = len(self.characters)
        self.bos_is_text = bos is not None
        self.bos = size if bos is None else self.characters.index(bos)
        self._texts = [*self.characters, *([""] if bos is None else []), *added]  # by id
        self.vocab_size = len(self._texts)
        codes = code_points(self.characters + added)
        # Ids by code point. Characters without a token have an id beyond all others; the last stands for all above.
        self._ids = np.full(int(codes.max()) + 2, self.vocab_size, smallest_dtype(self.vocab_size + 1))
        self._ids[codes[:size]] = np.arange(size)
        self._ids[codes[size:]] = np.arange(self.vocab_size - len(added), self.vocab_size)
        self._bytes = self._ids.take(np.arange(256), mode="clip").tobytes() if self._ids.itemsize == 1 else None

    @classmethod
    def from_documents(cls, documents: Iterable[str]) -> CharTokenizer:
        """The tokenizer of the characters of these documents."""
        return cls(documents)

    def extended(self, characters: Iterable[str]) -> CharTokenizer:
        """A tokenizer with tokens for these characters too, sorted; all tokens of this one keep their ids."""
        new = sorted(set("".join(characters)).difference(self.characters, self.added))
        return CharTokenizer(self.characters, self._bos_character(), self.added + "".join(new))

    def encode_array(self, text: str) -> NDArray[Any]:
        """See `Tokenizer`."""
        return self._known(self._ids_of(text), text)

    def encode_lines(self, text: str) -> Encoded:
        """See `Tokenizer`."""
        ends = line_feeds(code_points(text))
        ids = self._ids_of(text)
        ids[ends] = self.bos
        return self._known(ids, text), ends

    def _ids_of(self, text: str) -> NDArray[Any]:
        if self._bytes is not None and text.isascii():  # the same, but faster
            return np.frombuffer(bytearray(text.encode()).translate(self._bytes), np.uint8)
        return self._ids.take(code_points(text), mode="clip")

    def _known(self, ids: NDArray[Any], text: str) -> NDArray[Any]:
        if ids.size and ids.max() == self.vocab_size:
            position = int(ids.argmax())
            character = f"character {text[position]!r} at position {position}"
            raise UnknownCharacterError(f"{character} is not one the tokenizer knows")
        return ids.astype(self.dtype, copy=False)

    def decode(self, tokens: Iterable[int]) -> str:
        """See `Tokenizer`."""
        return "".join([self._texts[token] for token in self._checked(tokens)])

    def _bos_character(self) -> str | None:
        return self.characters[self.bos] if self.bos_is_text else None

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        content = {"type": "characters", "characters": self.characters, "bos": self._bos_character()}
        return content | ({"added": self.added} if self.added else {})

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> CharTokenizer:
        characters, bos, added = strings_of({"added": "", **content}, "characters", "bos", "added")
        tokenizer = cls(characters, bos, added)
        if tokenizer.characters != characters:
            raise ValueError("tokenizer: characters must be in the order of their code points, each once")
        return tokenizer

    def __repr__(self) -> str:
        bos = f", bos={self._bos_character()!r}" if self.bos_is_text else ""
        added = f", added={self.added!r}" if self.added else ""
        return f"CharTokenizer({self.characters!r}{bos}{added})"


class ByteTokenizer(Tokenizer):
    """One token per byte of the text in UTF-8, and after them one that begins and ends a document (BOS).

    Args:
        bos: for a text that does not consist of documents, an ASCII character that serves as BOS, such as the line
            feed: samples begin and end there. Then there is no token besides the bytes.
    """

    def __init__(self, bos: str | None = None) -> None:
        if bos is not None and (len(string("bos", bos)) != 1 or not bos.isascii()):
            raise ValueError(f"bos must be one ASCII character, got {shown(bos)}")
        self.bos_is_text = bos is not None
        self.bos = 256 if bos is None else ord(bos)
        self.vocab_size = 256 + (bos is None)

    def encode_array(self, text: str) -> NDArray[Any]:
        """See `Tokenizer`."""
        return np.frombuffer(utf8(text), np.uint8).astype(self.dtype, copy=False)

    def encode_lines(self, text: str) -> Encoded:
        """See `Tokenizer`."""
        content = np.frombuffer(utf8(text), np.uint8)
        ends = line_feeds(content)
        ids = content.astype(self.dtype)
        ids[ends] = self.bos
        return ids, ends

    def decode(self, tokens: Iterable[int]) -> str:
        """See `Tokenizer`. U+FFFD replaces bytes that are not UTF-8."""
        return bytes([token for token in self._checked(tokens) if token < 256]).decode(errors="replace")

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"type": "bytes", "bos": chr(self.bos) if self.bos_is_text else None}

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> ByteTokenizer:
        return cls(*strings_of(content, "bos"))

    def __repr__(self) -> str:
        return f"ByteTokenizer({f'bos={chr(self.bos)!r}' if self.bos_is_text else ''})"


def smallest_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest array type for the ids of a vocabulary."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.int32)


def joined(documents: Iterable[Any], bos: int, dtype: np.dtype[Any]) -> Encoded:
    """The ids of documents end to end, with BOS after each; and the positions of these BOS."""
    parts, ends, end = [np.empty(0, dtype)], [], 0
    for ids in documents:
        parts += [np.asarray(ids, dtype), np.array([bos], dtype)]
        end += len(ids) + 1
        ends.append(end - 1)
    return np.concatenate(parts), np.array(ends, np.int64)


def utf8(text: str) -> bytes:
    """A text in UTF-8. `ValueError` names a lone surrogate, which UTF-8 cannot encode, and its position."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {text[error.start]!r} at position {error.start} is half a surrogate pair, which is not in UTF-8"
        ) from None


def strings_of(content: dict[str, Any], *names: str) -> list[Any]:
    """The values of exactly these names: strings, or None for `bos`. `ValueError` for anything else."""
    if content.keys() != set(names):
        raise ValueError(f"tokenizer must have type, {', '.join(names)}, got type, {', '.join(map(str, content)):.60}")
    for name in names:
        if not isinstance(content[name], str) and (name != "bos" or content[name] is not None):
            raise ValueError(f"tokenizer: {name} must be a string, got {shown(content[name])}")
    return [content[name] for name in names]
