"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Let `path` hold `content`; whatever happens meanwhile, it holds all of it, or what it held before.

    `ValueError` where it cannot be written.
    """
    _check_name(path)
    target = os.path.realpath(path)  # what a symbolic link points to, not the link, is replaced
    temporary = f"{target}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        with contextlib.suppress(OSError), _opened_folder(os.path.dirname(target)) as folder:
            os.fsync(folder)  # the new name is safe as well; not every system can do it
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise ValueError(f"cannot write {os.fspath(path)}: {error.strerror}") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """`ValueError` where `write_atomically` could not write, found out before the work that is to be saved."""
    _check_name(path)
    temporary = f"{os.path.realpath(path)}.tmp"
    try:
        with open(temporary, "wb"):
            pass
        os.unlink(temporary)
    except OSError as error:
        raise ValueError(f"cannot write {os.fspath(path)}: {error.strerror}") from error


def _check_name(path: str | os.PathLike[str]) -> None:
    if "\0" in os.fspath(path):
        raise ValueError(f"cannot write {os.fspath(path)!r:.60}: the name has a null character")
    if os.path.isdir(path):
        raise ValueError(f"cannot write {os.fspath(path)}: Is a directory")
    if os.path.exists(path) and not os.path.isfile(path):  # a device, which would be gone afterwards
        raise ValueError(f"cannot write {os.fspath(path)}: it is not a regular file")


@contextlib.contextmanager
def _opened_folder(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
