"""Files: atomic writes, errors that name the file, strict JSON."""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import math
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from microgpt.utils.arguments import file_name, shown_path

NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextlib.contextmanager
def errors_named(action: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` into a `ValueError` of one line: cannot `action`, such as "read", this file, and why."""
    try:
        yield
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        folder = f" in {shown_path(os.path.dirname(os.path.realpath(path)))}" if error.errno in NO_ROOM else ""
        raise ValueError(f"cannot {action} {shown_path(path)}: {reason}{folder}") from error


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path`. Whatever interrupts it, the file is complete, or as it was before.

    `ValueError` if it cannot be written.
    """
    with _awaited_at_exit(), errors_named("write", path):
        target = _target(path)
        with _temporary_file(target) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):  # keep the permissions of the file that is replaced
                os.chmod(file.name, stat.S_IMODE(os.stat(target).st_mode))
            file.close()  # Windows cannot rename an open file
            os.replace(file.name, target)
        with contextlib.suppress(OSError), _opened_folder(os.path.dirname(target)) as folder:
            os.fsync(folder)  # makes the new name safe too; not every system can


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the `ValueError` of `write_atomically` before the work whose result is to be written."""
    with errors_named("write", path), _temporary_file(_target(path)):
        pass


def check_different(
    written: Mapping[str, str | os.PathLike[str]], others: Iterable[tuple[str, str | os.PathLike[str]]]
) -> None:
    """Raise `ValueError` if two arguments name the same file, of which at least one is to be written.

    `written` maps arguments to paths; `others` has an (argument, path) for each file that is only read.
    """
    arguments = {os.path.realpath(path): argument for argument, path in others}
    for argument, path in written.items():
        other = arguments.setdefault(os.path.realpath(path), argument)
        if other != argument:
            raise ValueError(f"{other} and {argument} must be different files, got {shown_path(path)} for both")


def to_json(value: Any) -> str:
    """`value` as one line of strict JSON: numbers that are not finite become null, not NaN or Infinity."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _target(path: str | os.PathLike[str]) -> str:
    """The file to be replaced: for a symbolic link, the one that it points to."""
    path = file_name("path", path)
    if os.path.isdir(path):
        raise ValueError(f"cannot write {shown_path(path)}: Is a directory")
    if os.path.exists(path) and not os.path.isfile(path):  # do not replace a device by a file
        raise ValueError(f"cannot write {shown_path(path)}: it is not a regular file")
    if os.path.exists(path) and not os.access(path, os.W_OK):  # though the folder may permit replacing it
        raise ValueError(f"cannot write {shown_path(path)}: Permission denied")
    return os.path.realpath(path)


@contextlib.contextmanager
def _temporary_file(target: str) -> Iterator[IO[bytes]]:
    """A new file next to `target`, removed at the end unless it has been renamed.

    Its name is unique: no file of the user's is lost, and several processes can write to one target. Only a process
    that is killed leaves it behind.
    """
    name = f"{target}.{os.urandom(4).hex()}.tmp"
    file = open(name, "xb")
    try:
        with file:
            yield file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


_in_progress: set[threading.Lock] = set()  # a lock for each file that is being written, held until it is complete


@contextlib.contextmanager
def _awaited_at_exit() -> Iterator[None]:
    """Keep Python from exiting until this has ended, even in a daemon thread."""
    lock = threading.Lock()
    with lock:
        _in_progress.add(lock)
        try:
            yield
        finally:
            _in_progress.discard(lock)


@atexit.register
def _wait_for_files() -> None:
    for lock in list(_in_progress):
        lock.acquire()


if hasattr(os, "register_at_fork"):  # the child does not have the threads that were writing
    os.register_at_fork(after_in_child=_in_progress.clear)


@contextlib.contextmanager
def _opened_folder(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
