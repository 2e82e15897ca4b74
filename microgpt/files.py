"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Make `content` the content of the file at `path`: whatever happens, the old one is there, or all of the new.

    `ValueError` names a file that cannot be written.
    """
    check_writable(path)
    temporary = f"{os.fspath(path)}.{secrets.token_hex(4)}.tmp"  # in the same folder: renames do not cross disks
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a rename that outran its data would leave an empty file after a crash
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ValueError(f"cannot write {os.fspath(path)}: {error.strerror}") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse, before the work, most of what `replace_file` refuses after it: `ValueError` names the file."""
    path = os.fspath(path)
    if "\0" in path:
        raise ValueError(f"cannot write {path!r:.60}: the name has a null character")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ValueError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write {path}: Permission denied")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"cannot write {path}: it is not a regular file")
