"""UTF-8 text, read a block at a time from files, plain or gzip-compressed, and standard input, with any line ends."""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import math
import os
import re
import select
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from microgpt.data.characters import count_line_feeds
from microgpt.utils.arguments import check_order, file_name, shown, shown_path

BLOCK_SIZE = 1 << 18  # bytes read, or characters handled, at once: they fit the caches
SPOOLED_SIZE = 1 << 26  # bytes of a file that can be read only once that stay in memory
LINES_JOINED = 1 << 12  # lines of `ReadLines` in a piece
LINE = re.compile(r"[^\r\n]*(\r\n|\r|\n)?")
BYTE_ORDER_MARK = "\ufeff"
STANDARD_INPUT = "-"


class Block(NamedTuple):
    """Some lines of a text.

    Attributes:
        text: the lines; ends with a line feed, unless the file ends without one or the line is too long for a block.
        name: the name of the file, for errors.
        line: the number of the first line, from 1.
    """

    text: str
    name: str
    line: int


class Files:
    """Files of text, one after the other. They can be read any number of times.

    Args:
        files: their paths. "-" is standard input; files that end in .gz are decompressed. Whatever can be read only
            once, such as standard input or a pipe, is kept in a temporary file.

    Attributes:
        paths: the same, as strings.
    """

    def __init__(self, files: Iterable[str | os.PathLike[str]]) -> None:
        if is_open(files) or not isinstance(files, Iterable) or isinstance(files, Mapping):
            raise TypeError(f"files must be the name of a file or several, got {shown(files)}")
        check_order("files", files)
        self.paths = [file_name(f"files[{i}]", file) for i, file in enumerate(files)]
        self._spools: dict[str, IO[bytes]] = {}
        if not self.paths:
            raise ValueError("files must name at least one file, got none")

    @property
    def name(self) -> str:
        """The name of the files in reports and errors."""
        first, *others = map(_name, self.paths)
        return f"{first} and {len(others)} more files" if len(others) > 2 else ", ".join([first, *others])

    def blocks(self, longest: float = math.inf) -> Iterator[Block]:
        """The text of all files, every line ending as \\n; no line continues from one file to the next.

        See `cut_at_lines`. `ValueError` names a file that cannot be read, and a line that is not UTF-8.
        """
        end = "\n"
        for path in self.paths:
            for i, block in enumerate(cut_at_lines(self._decoded(path), _name(path), longest)):
                if i == 0 and end != "\n":
                    yield Block("\n", block.name, block.line)
                yield block
                end = block.text[-1]

    def _decoded(self, path: str) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        for content in itertools.chain(self._contents(path), [b""]):
            try:
                yield newlines.decode(decoder.decode(content, not content), not content)
            except UnicodeDecodeError as error:
                yield newlines.decode(error.object[: error.start].decode(), True)
                raise

    def _contents(self, path: str) -> Iterator[bytes]:
        import gzip  # slow to import, needed only for files
        import zlib

        try:
            with self._opened(path) as opened:
                file = gzip.GzipFile(fileobj=opened, mode="rb") if path.endswith(".gz") else opened
                while content := file.read(BLOCK_SIZE):
                    yield content
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"cannot read {_name(path)}: damaged gzip file ({error})") from error
        except OSError as error:
            is_name = shown_path(path) == path
            hint = "" if is_name else " (a string is the name of a file, documents are a list of strings)"
            raise ValueError(f"cannot read {_name(path)}: {error.strerror}{hint}") from error

    def _opened(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        if path not in self._spools:
            opened = standard_input() if path == STANDARD_INPUT else open(path, "rb")
            if path != STANDARD_INPUT and stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                return opened
            self._spools[path] = _spooled(opened, _name(path))
        self._spools[path].seek(0)
        return contextlib.nullcontext(self._spools[path])


class ReadLines:
    """Lines from `readlines`, or from a loop over an open file, in the blocks that `Files` would read.

    Args:
        lines: see `are_lines`.
        name: the name of the lines in errors.
    """

    def __init__(self, lines: Sequence[str], name: str) -> None:
        self._lines, self._name = lines, name

    def blocks(self, longest: float = math.inf) -> Iterator[Block]:
        """See `Files.blocks`."""
        return cut_at_lines(self._pieces(), self._name, longest)

    def _pieces(self) -> Iterator[str]:
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        for start in range(0, len(self._lines), LINES_JOINED):
            piece = "".join(self._lines[start : start + LINES_JOINED])
            yield newlines.decode(piece if start else piece.removeprefix(BYTE_ORDER_MARK))
        yield newlines.decode("", True)


def are_lines(strings: Sequence[object]) -> bool:
    """Whether each string is one line with its end, as `readlines` gives; only the last of several may lack it."""
    for i, string in enumerate(strings):
        line = LINE.fullmatch(string) if isinstance(string, str) else None
        if line is None or (line[1] is None and (i == 0 or i < len(strings) - 1)):
            return False
    return len(strings) > 0


class EmbeddedNames(Files):
    """The US first names that come with the package, even where that is in a zip file."""

    name = "names.txt"

    def __init__(self) -> None:
        from importlib import resources  # slow to import

        self._resource = resources.files("microgpt.data").joinpath(self.name)
        super().__init__([str(self._resource)])

    def _opened(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        return self._resource.open("rb")


def cut_at_lines(pieces: Iterable[str], name: str, longest: float) -> Iterator[Block]:
    """Blocks of a text that comes in pieces, cut at line ends; a line longer than `longest` characters is cut within.

    `ValueError` names the line that is not UTF-8.
    """
    held: list[str] = []  # the beginning of a line
    line = 1
    try:
        for piece in pieces:
            end = piece.rfind("\n") + 1
            if not end and sum(map(len, held)) + len(piece) >= longest:
                end = len(piece)
            if end:
                yield Block("".join([*held, piece[:end]]), name, line)
                held.clear()
            held.append(piece[end:])
            line += count_line_feeds(piece)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, line {line}: not UTF-8 ({error.reason})") from None
    if rest := "".join(held):
        yield Block(rest, name, line)


def is_open(data: object) -> bool:
    """Whether this is an open file. Iterating over it gives lines, which would be mistaken for documents."""
    return hasattr(data, "read")


def _name(path: str) -> str:
    return "standard input" if path == STANDARD_INPUT else shown_path(path)


def standard_input() -> IO[bytes]:
    """Standard input as bytes. `ValueError` if there is none."""
    try:
        return sys.stdin.buffer
    except AttributeError:  # sys.stdin is None, or, in notebooks, not a file
        raise ValueError("cannot read standard input: there is none") from None


def _spooled(opened: IO[bytes], name: str) -> IO[bytes]:
    """A copy, which can be read again, of a file that can be read only once.

    `ValueError` if it is too long for memory and for the temporary folder.
    """
    import tempfile  # slow to import, rarely needed

    spool = tempfile.SpooledTemporaryFile(SPOOLED_SIZE)
    for content in _until_its_end(opened):
        with temporary_folder_named(name, spool):
            spool.write(content)
            spool.flush()
    return spool


def _until_its_end(opened: IO[bytes]) -> Iterator[bytes]:
    """The content of a file as it arrives. The end is read only once: a terminal would ask for another Ctrl-D."""
    read = getattr(opened, "read1", opened.read)
    while True:
        _wait_for_input(opened)
        content = read(BLOCK_SIZE)
        if not content:
            return
        yield content


def _wait_for_input(opened: IO[bytes]) -> None:
    """Wait for input of a file in non-blocking mode, where reading would mistake a pause for the end."""
    with contextlib.suppress(io.UnsupportedOperation):  # not a file of the operating system
        if sys.platform != "win32" and not os.get_blocking(opened.fileno()):
            select.select([opened], [], [])


@contextlib.contextmanager
def temporary_folder_named(content: str, file: IO[bytes] | None = None) -> Iterator[None]:
    """Turn an error of a temporary file into one that names its folder and `content`, and close the file."""
    try:
        yield
    except OSError as error:
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()  # otherwise its finalizer tries to write the rest again, and prints the error
        import tempfile

        folder = "a temporary folder" if tempfile.tempdir is None else shown_path(os.fsdecode(tempfile.tempdir))
        hint = "(TMPDIR names another folder)"
        raise ValueError(f"cannot keep {content} in {folder}: {error.strerror} {hint}") from error
