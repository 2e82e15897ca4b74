"""The data of models, from any source: documents, or one continuous text."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from microgpt.data.characters import count_line_feeds, distinct_characters, stripped_lines
from microgpt.data.datasets import Dataset
from microgpt.data.reading import BLOCK_SIZE, Block, EmbeddedNames, Files, ReadLines, are_lines, cut_at_lines, is_open
from microgpt.utils.arguments import check_order, shown

if TYPE_CHECKING:
    from microgpt.data.tokenizer import Encoded, Tokenizer

FORMATS = ("lines", "text")  # documents, or one continuous text

File = str | os.PathLike[str]
Data = File | Iterable[File] | None  # strings in an iterable are documents


def read_documents(file: File | Iterable[File] | None = None) -> list[str]:
    """The lines of UTF-8 text files that are not blank, without white space at both ends.

    Without `file`, the first names that come with the package; `load_dataset` has its other data. "-" is standard
    input; files that end in .gz are decompressed. `ValueError` names a file that cannot be read or has no documents,
    and a line that is not UTF-8.
    """
    return [document for part in _file_source(file).documents() for document in part]


def read_text(file: File | Iterable[File] | None = None) -> str:
    """The text of UTF-8 files, every line ending as \\n.

    For `file` see `read_documents`. `ValueError` names a file that cannot be read or is empty, and a line that is not
    UTF-8.
    """
    return "".join([part.text for part in _file_source(file).text()])


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        text: the line, and its end if it has one.
        file: the name of the file.
        number: the number of the line, from 1.
    """

    text: str
    file: str
    number: int

    @property
    def place(self) -> str:
        """File and number, for errors."""
        return f"{self.file}, line {self.number}"


class Part(Protocol):
    """Some of the documents, or of the text, that are handled at once."""

    def __len__(self) -> int:
        """Number of characters, without the ends of documents."""

    def alphabet(self, known: set[str]) -> set[str]:
        """The set of its characters that are not in `known`."""

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """The tokens of this part. `ValueError` names a character that has none."""

    def places(self) -> Iterable[tuple[str, str]]:
        """(place, text) of each document or line. Slow: for errors."""


class Lines:
    """Lines of a file; each is a document unless it is blank."""

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
        if distinct_characters(self._block.text) <= known:  # the usual case, in which nothing has to be stripped
            return set()
        return distinct_characters(self._stripped) - known

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """See `Part`."""
        return tokenizer.encode_lines(self._stripped)

    def places(self) -> Iterable[tuple[str, str]]:
        """See `Part`."""
        return ((line.place, line.text.strip()) for line in _numbered_lines(self._block))


class Strings:
    """Strings; each is a document unless it is empty. `first` is the index of the first in the argument."""

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
        return ((line.place, line.text) for line in _numbered_lines(self._block))


class Source(Protocol):
    """A source of documents, or of a text, in parts. It can be read any number of times."""

    name: str  # for reports and errors
    files: Sequence[str]  # the paths that it reads

    def documents(self) -> Iterator[Part]:
        """The documents. `ValueError` if there are none, or one that names what cannot be read."""

    def text(self) -> Iterator[Part]:
        """All of it as one text. `ValueError` if it is empty, or one that names what cannot be read."""


class FileSource:
    """Text files, see `reading.Files`; None for the names that come with the package."""

    def __init__(self, files: Iterable[File] | None) -> None:
        read = EmbeddedNames() if files is None else Files(files)
        self._files: Files | ReadLines = read
        self.name = read.name
        self.files: Sequence[str] = read.paths

    def lines(self) -> Iterator[Line]:
        """The lines that are not blank."""
        for block in self._files.blocks():
            yield from (line for line in _numbered_lines(block) if not line.text.isspace())

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
    """The lines of a file that the caller has read, see `reading.are_lines`."""

    def __init__(self, lines: Sequence[str], name: str) -> None:
        self._files = ReadLines(lines, name)
        self.name, self.files = name, ()


class StringSource:
    """Documents in memory; as a text, one on each line."""

    files: Sequence[str] = ()

    def __init__(self, strings: Sequence[str], name: str = "data") -> None:
        self._strings = strings
        self.name = name
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
    """The source for a file, a list of files, a list of documents, or None: the names that come with the package.

    A `Dataset` has a name. In a list, `pathlib.Path`s are files and strings are documents. If each string is one line
    with its end, they are the lines of a file. `TypeError` or `ValueError` for anything else.
    """
    if data is None or isinstance(data, (str, os.PathLike)):
        return _file_source(data)
    if is_open(data) or not isinstance(data, Iterable) or isinstance(data, Mapping):
        raise TypeError(
            f"data must be the name of a file, or a list of documents or of pathlib.Paths, got {shown(data)}"
        )
    check_order("data", data)
    items = list(data)
    if items and all(isinstance(item, os.PathLike) for item in items):
        return FileSource(items)
    # Strings that all name existing files are surely the output of `glob`, not documents.
    if items and all(isinstance(item, str) and os.path.isfile(item) for item in items):
        raise ValueError(f"data must be a list of documents or of pathlib.Paths, got names of files: {shown(items)}")
    strings: list[str] = []
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"data[{i}] must be a string, got {shown(item)}")
        strings.append(item)
    if isinstance(data, Dataset):
        return StringSource(strings, data.name)
    return LineSource(strings, "data") if are_lines(strings) else StringSource(strings)


def named_documents(name: str, documents: Iterable[str], as_text: bool) -> list[tuple[str, str]]:
    """(place, document) of each document in an argument, such as ("documents[0]", "emma").

    Lines with their ends, see `reading.are_lines`, are read as a file's: with `as_text`, as one document. `TypeError`
    if the argument is not a list of strings.
    """
    if isinstance(documents, (str, bytes, Mapping)) or not isinstance(documents, Iterable):
        raise TypeError(f"{name} must be a list of strings, got {shown(documents)}")
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


def _numbered_lines(block: Block) -> Iterator[Line]:
    for number, text in enumerate(io.StringIO(block.text, newline="\n"), block.line):
        yield Line(text, block.name, number)
