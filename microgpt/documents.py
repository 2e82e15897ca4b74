"""Documents from a text file, one on each line, or all of it as one text."""

from __future__ import annotations

import os

EMBEDDED = os.path.join(os.path.dirname(__file__), "names.txt")  # US first names, Census of 1990


def read_documents(file: str | os.PathLike[str] | None = None) -> list[str]:
    """The lines of a UTF-8 text file, white space at both ends removed, without the empty ones.

    Without `file`, the first names that come with the package. `ValueError` names a file that cannot be read or has
    no documents, and the line that is not UTF-8.
    """
    path = EMBEDDED if file is None else os.fspath(file)
    documents = [stripped for line in _lines(_read(path)) if (stripped := line.strip())]
    if not documents:
        raise ValueError(f"{path} has no documents: it must have at least one line that is not blank")
    return documents


def read_text(file: str | os.PathLike[str] | None = None) -> str:
    """A UTF-8 text file, every line ending as \\n.

    Without `file`, the first names that come with the package. `ValueError` names a file that cannot be read or is
    empty, and the line that is not UTF-8.
    """
    path = EMBEDDED if file is None else os.fspath(file)
    text = "\n".join(_lines(_read(path)))
    if not text:
        raise ValueError(f"{path} is empty: there is nothing to train on")
    return text


def _read(path: str) -> str:
    try:
        with open(path, "rb") as opened:
            content = opened.read()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:
        raise ValueError(f"cannot read {path!r:.60}: the name has a null character") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(_lines(content[: error.start].decode("utf-8-sig")))
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason})") from None


def _lines(text: str) -> list[str]:
    """Split as `open` does: at \\n, \\r\\n and \\r, and nowhere else."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
