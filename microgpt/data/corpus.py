"""The data as a model reads it: the token ids of all documents in one array, which may be larger than memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeGuard

import numpy as np

from microgpt.data.documents import FORMATS, Data, Part, Source, open_source
from microgpt.data.huggingface import HuggingFaceTokenizer
from microgpt.data.reading import temporary_folder_named
from microgpt.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, UnknownCharacterError
from microgpt.engine.packing import PackedSequences
from microgpt.utils.arguments import choice, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.data.tokenizer import Encoded

# The most bytes of an array in memory; a longer one is in a temporary file. 32-bit addresses have few gaps for one.
IN_MEMORY = 1 << 28 if sys.maxsize > 1 << 32 else 1 << 24
HASHED = 1 << 24  # elements hashed at once


@dataclass(frozen=True)
class Corpus:
    """Documents as token ids, in the order of the data; or a continuous text, as the only document.

    Attributes:
        name: the source of the data, for reports and errors.
        files: the (argument of `read_corpus`, path) of each file that was read.
        tokenizer: the tokenizer of the ids.
        tokens: the ids of all documents, with BOS before the first, between them and after the last; or of a text,
            without BOS.
        offsets: int64; document i is `tokens[offsets[i] : offsets[i + 1] + 1]`, BOS on both sides included.
        characters: number of characters in all documents.
        is_text: whether it is a continuous text.

    Arrays too long to stay in memory are mapped from an unnamed temporary file.
    """

    name: str
    files: tuple[tuple[str, str], ...]
    tokenizer: Tokenizer
    tokens: NDArray[Any]
    offsets: NDArray[np.int64]
    characters: int
    is_text: bool

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def count_longer(self, context: int) -> int:
        """Number of documents with more than `context` tokens to predict, their end included."""
        return int(np.count_nonzero(np.diff(self.offsets) > context))

    def sequences(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> PackedSequences:
        """Copies of the `lengths[i]` tokens from `starts[i]`, for each i, packed end to end."""
        return PackedSequences(self.tokens, starts, lengths).compact()

    def documents(self) -> PackedSequences:
        """All documents, BOS on both sides; or the text, after BOS if BOS is a character.

        A text of fewer than two tokens is left out: it has nothing to predict.
        """
        tokens, starts, lengths = self.tokens.astype(np.int32), self.offsets[:-1], np.diff(self.offsets) + 1
        if self.is_text and self.tokenizer.bos_is_text:
            tokens, lengths = np.concatenate([np.array([self.tokenizer.bos], np.int32), tokens]), lengths + 1
        return PackedSequences(tokens, starts[lengths > 1], lengths[lengths > 1])

    def fingerprint(self) -> str:
        """A hash of tokens and documents, 32 hexadecimal digits. It reads all of them."""
        import hashlib  # slow to import, used only when training ends or saves

        digest = hashlib.blake2b(digest_size=16)
        for array in (self.offsets, self.tokens):
            digest.update(f"{array.dtype} {len(array)} ".encode())
            for start in range(0, len(array), HASHED):
                digest.update(array[start : start + HASHED].data)
        return digest.hexdigest()


def read_corpus(
    data: Data | Corpus = None,
    format: str = "lines",
    tokenizer: str | os.PathLike[str] | Tokenizer = "characters",
    in_memory: int = IN_MEMORY,
    extend_vocabulary: bool = False,
) -> Corpus:
    """Read and tokenize documents, or a text, part by part.

    Args:
        data: see `train`; a corpus is returned as it is.
        format: "lines" for documents, "text" for a continuous text.
        tokenizer: "characters" (those of the data), "bytes", a JSON file of Hugging Face's tokenizers or a `Tokenizer`.
            In a text, the line feed is BOS if it occurs and has a token of its own. No token spans two parts.
        in_memory: the most bytes of an array in memory; a longer one is kept in a temporary file.
        extend_vocabulary: give characters of the data that a `CharTokenizer` lacks tokens, see its `extended`.

    `ValueError` or `TypeError` names the argument, file or line that is wrong.
    """
    if isinstance(data, Corpus):
        return data
    return corpus_of(open_source(data), format, tokenizer, in_memory, extend_vocabulary)


def corpus_of(
    source: Source,
    format: str,
    tokenizer: str | os.PathLike[str] | Tokenizer,
    in_memory: int = IN_MEMORY,
    extend_vocabulary: bool = False,
) -> Corpus:
    """`read_corpus` for a source that the caller has opened, and can read again."""
    is_text = choice("format", format, FORMATS) == "text"
    parts = source.text if is_text else source.documents
    files = [("data", file) for file in source.files]
    if _is_tokenizers_file(tokenizer):
        files.append(("tokenizer", os.fsdecode(tokenizer)))
    has_line_feed = is_text and any("\n" in part.alphabet(set()) for part in parts())
    tokenizer = _tokenizer(tokenizer, "\n" if has_line_feed else None, parts)
    if extend_vocabulary and isinstance(tokenizer, CharTokenizer):
        tokenizer = tokenizer.extended(_alphabet(parts))
    tokens, offsets, characters = _GrowingArray(tokenizer.dtype, in_memory), _GrowingArray(np.int64, in_memory), 0
    if not is_text:
        tokens.append(np.array([tokenizer.bos], tokenizer.dtype))
        offsets.append(np.zeros(1, np.int64))
    for part in parts():
        ids, ends = _encode_part(part, tokenizer)
        offsets.append(ends + len(tokens))
        tokens.append(ids)
        characters += len(part)
    if is_text:
        offsets.append(np.array([0, len(tokens) - 1]))
    return Corpus(source.name, tuple(files), tokenizer, tokens.finish(), offsets.finish(), characters, is_text)


def _tokenizer(asked_for: Any, bos: str | None, parts: Callable[[], Iterator[Part]]) -> Tokenizer:
    if isinstance(asked_for, Tokenizer):
        return asked_for
    if asked_for == "characters":
        return CharTokenizer(_alphabet(parts), bos)
    if asked_for == "bytes":
        return ByteTokenizer(bos)
    if _is_tokenizers_file(asked_for):
        return HuggingFaceTokenizer.from_file(asked_for, bos)
    kinds = "'characters', 'bytes', a tokenizers file that ends in .json or a Tokenizer"
    raise ValueError(f"tokenizer must be {kinds}, got {shown(asked_for)}")


def _alphabet(parts: Callable[[], Iterator[Part]]) -> set[str]:
    characters: set[str] = set()
    for part in parts():
        characters |= part.alphabet(characters)
    return characters


def _is_tokenizers_file(asked_for: Any) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(asked_for, (str, os.PathLike)) and os.fsdecode(asked_for).endswith(".json")


def _encode_part(part: Part, tokenizer: Tokenizer) -> Encoded:
    """The tokens of a part. `ValueError` names the file and line, or the document, of a character without a token."""
    try:
        return part.encode(tokenizer)
    except ValueError:
        for place, text in part.places():
            try:
                tokenizer.encode(text)
            except UnknownCharacterError as error:
                raise UnknownCharacterError(f"{place}: {error}") from None
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
        raise


class _GrowingArray:
    """An array that grows at its end, in memory at first, then in an unnamed temporary file.

    That file is gone with the process, however it ends.
    """

    def __init__(self, dtype: Any, in_memory: int) -> None:
        self._memory = np.empty(0, dtype)
        self._most = in_memory // np.dtype(dtype).itemsize
        self._file: IO[bytes] | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, array: NDArray[Any]) -> None:
        """Append to the end. `ValueError` if the temporary file has no room."""
        end = self._length + len(array)
        if self._file is None and end <= self._most:
            if end > len(self._memory):
                self._memory.resize(min(max(2 * len(self._memory), end), self._most), refcheck=False)
            self._memory[self._length : end] = array
        else:
            self._write(array.astype(self._memory.dtype, copy=False))
        self._length = end

    def _write(self, array: NDArray[Any]) -> None:
        import tempfile  # slow to import, needed only for large data

        arrays = [array]
        if self._file is None:
            with temporary_folder_named("tokens"):
                self._file = tempfile.TemporaryFile()
            arrays.insert(0, self._memory[: self._length])
        with temporary_folder_named("tokens", self._file):
            for each in arrays:
                self._file.write(each.data)
            self._file.flush()
        self._memory = self._memory[:0].copy()

    def finish(self) -> NDArray[Any]:
        """The whole array, read-only."""
        if self._file:
            with temporary_folder_named("tokens", self._file):
                return np.asarray(np.memmap(self._file, self._memory.dtype, "r", shape=(self._length,)))
        self._memory.resize(self._length, refcheck=False)
        self._memory.flags.writeable = False
        return self._memory
