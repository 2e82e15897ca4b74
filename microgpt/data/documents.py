"""What models are trained on, from wherever it comes: documents, or one continuous text."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from microgpt.data.characters import count_line_feeds, distinct_characters, stripped_lines
from microgpt.data.reading import BLOCK_SIZE, Block, EmbeddedNames, Files, ReadLines, are_lines, cut_at_lines, is_open
from microgpt.utils.arguments import check_order

if TYPE_CHECKING:
    from microgpt.data.tokenizer import Encoded, Tokenizer

FORMATS = ("lines", "text")  # of data: documents, or one continuous text

File = str | os.PathLike[str]
Data = File | Iterable[File] | None  # of strings in an iterable, each is a document


def read_documents(file: File | Iterable[File] | None = None) -> list[str]:
    """The lines of UTF-8 text files, white space at both ends removed, without the empty ones.

    Without `file`, the first names that come with the package; "-" is standard input, and what ends in .gz is
    decompressed. `ValueError` names a file that cannot be read or has no documents, and the line that is not UTF-8.
    """
    return [document for part in _file_source(file).documents() for document in part]


def read_text(file: File | Iterable[File] | None = None) -> str:
    """The text of UTF-8 files, every line ending as \\n.

    For `file` see `read_documents`. `ValueError` names a file that cannot be read or is empty, and the line that is not
    UTF-8.
    """
    return "".join([part.text for part in _file_source(file).text()])


class Part(Protocol):
    """Some of the documents, or of the text: as much as is handled at once."""

    def __len__(self) -> int:
        """How many characters it has, without what only ends a document."""

    def alphabet(self, known: set[str]) -> set[str]:
        """The characters it has beside `known`."""

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """The tokens of this part. `ValueError` names a character that has none."""

    def places(self) -> Iterable[tuple[str, str]]:
        """Each document or line after the name of its place: slow, for errors."""


class Lines:
    """Lines of a file, each of which is a document, unless it is blank."""

    def __init__(self, block: Block) -> None:
        self._block = block

    @cached_property
    def _stripped(self) -> str:
        return stripped_lines(self._block.text)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stripped.split("\n")[:-1])

    def __len__(self) -> int:
        return len(self._stripped) - count_line_feeds(self._stripped)

    def alphabet(self, known: set[str]) -> set[str]:
        """See `Part`."""
        known = known | {"\n"}
        if distinct_characters(self._block.text) <= known:  # most often, and then nothing has to be stripped
            return set()
        return distinct_characters(self._stripped) - known

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """See `Part`."""
        return tokenizer.encode_lines(self._stripped)

    def places(self) -> Iterable[tuple[str, str]]:
        """See `Part`."""
        return ((place, line.strip()) for place, line in _numbered_lines(self._block))


class Strings:
    """Strings, each of which is a document, unless it is empty. The first is number `first` of those passed in."""

    def __init__(self, strings: Sequence[str], first: int) -> None:
        self._strings = strings
        self._first = first

    def __len__(self) -> int:
        return sum(map(len, self._strings))

    def alphabet(self, known: set[str]) -> set[str]:
        """See `Part`."""
        return distinct_characters("".join(self._strings)) - known

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """See `Part`."""
        return tokenizer.encode_documents([string for string in self._strings if string])

    def places(self) -> Iterable[tuple[str, str]]:
        """See `Part`."""
        return ((f"data[{i}]", string) for i, string in enumerate(self._strings, self._first))


class Passage:
    """Lines of a continuous text."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self.text = block.text

    def __len__(self) -> int:
        return len(self.text)

    def alphabet(self, known: set[str]) -> set[str]:
        """See `Part`."""
        return distinct_characters(self.text) - known

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """See `Part`."""
        return tokenizer.encode_array(self.text), np.empty(0, np.int64)

    def places(self) -> Iterable[tuple[str, str]]:
        """See `Part`."""
        return _numbered_lines(self._block)


class Source(Protocol):
    """Where documents, or a text, come from, in parts that can be asked for any number of times."""

    name: str  # in reports and errors
    files: Sequence[str]  # that it reads

    def documents(self) -> Iterator[Part]:
        """The documents. `ValueError` where there is none, or names what cannot be read."""

    def text(self) -> Iterator[Part]:
        """All of it as one text. `ValueError` where it is empty, or names what cannot be read."""


class FileSource:
    """Text files, see `reading.Files`; without any, the names that come with the package."""

    def __init__(self, files: Iterable[File] | None) -> None:
        read = EmbeddedNames() if files is None else Files(files)
        self._files: Files | ReadLines = read
        self.name = read.name
        self.files: Sequence[str] = read.paths

    def documents(self) -> Iterator[Lines]:
        """See `Source`."""
        empty = True
        for block in self._files.blocks():
            part = Lines(block)
            empty = empty and not len(part)
            yield part
        if empty:
            raise ValueError(f"{self.name} has no documents: it must have at least one line that is not blank")

    def text(self) -> Iterator[Passage]:
        """See `Source`."""
        empty = True
        for block in self._files.blocks(BLOCK_SIZE):
            empty = False
            yield Passage(block)
        if empty:
            raise ValueError(f"{self.name} is empty: it must have at least one character")


class LineSource(FileSource):
    """The lines of a file, read from it by someone else, see `reading.are_lines`."""

    def __init__(self, lines: Sequence[str], name: str) -> None:
        self._files = ReadLines(lines, name)
        self.name, self.files = name, ()


class StringSource:
    """Documents that are there already; as a text, one on each line."""

    name = "data"
    files: Sequence[str] = ()

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        if not any(strings):
            raise ValueError("data must hold at least one document that is not empty, got none")

    def documents(self) -> Iterator[Strings]:
        """See `Source`."""
        blocks = np.cumsum([len(string) for string in self._strings]) // BLOCK_SIZE
        bounds = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blocks)]
        return (Strings(self._strings[start:end], start) for start, end in pairwise(bounds))

    def text(self) -> Iterator[Passage]:
        """See `Source`."""
        text = "\n".join(filter(None, self._strings))
        pieces = (text[start : start + BLOCK_SIZE] for start in range(0, len(text), BLOCK_SIZE))
        return map(Passage, cut_at_lines(pieces, self.name, BLOCK_SIZE))


def open_source(data: Data) -> Source:
    """A file, a list of files, a list of documents or None, which are the names in the package, behind one interface.

    In a list, `pathlib.Path`s are files and strings are documents; or lines of a file, where each has a line end, and
    only at its end. `TypeError` or `ValueError` says what is none of these.
    """
    if data is None or isinstance(data, (str, os.PathLike)):
        return _file_source(data)
    if is_open(data) or not isinstance(data, Iterable) or isinstance(data, Mapping):
        raise TypeError(
            f"data must be the name of a file, or a list of documents or of pathlib.Paths, got {data!r:.60}"
        )
    check_order("data", data)
    items = list(data)
    if items and all(isinstance(item, os.PathLike) for item in items):
        return FileSource(items)
    # Who passes what `glob` gave hardly wants a model of the names.
    if items and all(isinstance(item, str) and os.path.isfile(item) for item in items):
        raise ValueError(f"data must be a list of documents or of pathlib.Paths, got names of files: {items!r:.60}")
    strings: list[str] = []
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"data[{i}] must be a string, got {item!r:.60}")
        strings.append(item)
    return LineSource(strings, "data") if are_lines(strings) else StringSource(strings)


def named_documents(name: str, documents: Iterable[str], as_text: bool) -> list[tuple[str, str]]:
    """Each of the documents that an argument holds, after the name of its place there.

    Lines with their ends, see `reading.are_lines`, are read as those of a file; `as_text`, as one text. `TypeError`
    where the argument is no list of strings.
    """
    if isinstance(documents, (str, bytes, Mapping)) or not isinstance(documents, Iterable):
        raise TypeError(f"{name} must be a list of strings, got {documents!r:.60}")
    check_order(name, documents)
    strings = list(documents)
    if not are_lines(strings):
        return [(f"{name}[{i}]", string) for i, string in enumerate(strings)]
    lines = LineSource(strings, name)
    if as_text:
        return [(name, "".join([part.text for part in lines.text()]))]
    return [(place, line) for part in lines.documents() for place, line in part.places() if line]


def _file_source(file: File | Iterable[File] | None) -> FileSource:
    return FileSource([file] if isinstance(file, (str, os.PathLike)) else file)


def _numbered_lines(block: Block) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(io.StringIO(block.text, newline="\n"), block.line):
        yield f"{block.name}, line {number}", line
