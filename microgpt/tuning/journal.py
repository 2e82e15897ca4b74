"""The files of a search: its log, and the checkpoints of its trials while it lasts, from which it can be resumed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from microgpt.utils.arguments import file_name, shown, shown_path
from microgpt.utils.files import check_writable, errors_named, to_json, write_atomically

Entry = dict[str, Any]  # a line of the log
FIELDS: dict[str, Any] = {  # of a line, with their types
    "trial": int,
    "rung": int,
    "state": str,
    "steps": int,
    "validation_loss": (int, float, type(None)),
    "seconds": (int, float),
}


class Journal:
    """The log of a search, JSON lines: what is searched, then a line for each trial and rung as it ends.

    Checkpoints are in a folder next to the log, or without a log in a temporary one, until `close`. A checkpoint is
    written before its line, so that the line of a trial that can go on is never there without it.

    Args:
        log: the path of the log, or None for none.

    Attributes:
        entries: the lines so far, by (trial, rung).
    """

    def __init__(self, log: str | os.PathLike[str] | None) -> None:
        self.log = None if log is None else file_name("log", log)
        self.entries: dict[tuple[int, int], Entry] = {}
        self._folder: str | None = None
        if self.log is not None:
            check_writable(self.log)

    def earlier(self) -> dict[str, Any] | None:
        """The first line of an existing log, which says what is searched, or None. The other lines become `entries`.

        A partial last line, left by a search that was killed, is dropped. `ValueError` if it is no log of a search.
        """
        assert self.log is not None
        if not os.path.exists(self.log):
            return None
        with errors_named("read", self.log):
            lines = Path(self.log).read_bytes().split(b"\n")[:-1]
        if not lines:
            return None
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number == 1:
                    header: dict[str, Any] = dict(entry["search"].items())
                    continue
                for field, kind in FIELDS.items():
                    if not isinstance(entry[field], kind):
                        raise TypeError
                if entry["state"] == "trained" and not math.isfinite(entry["validation_loss"]):
                    raise ValueError
                self.entries[entry["trial"], entry["rung"]] = entry
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise ValueError(f"{shown_path(self.log)}, line {number}, is not of a log of microgpt tune") from None
        return header

    def check_ended(self) -> None:
        """Raise `ValueError` if the log is of a search that can be resumed: a new one would delete its checkpoints."""
        if self.log is not None and os.path.isdir(folder := self._folder_of(self.log)):
            raise ValueError(
                f"{shown_path(self.log)} is of a search that has not ended: use resume, or delete {shown_path(folder)}"
            )

    def begin(self, search: dict[str, Any]) -> None:
        """Begin the log, or go on with `entries`."""
        if self.log is None:
            self._folder = tempfile.mkdtemp(prefix="microgpt-")
            return
        lines = [{"search": search}, *self.entries.values()]
        write_atomically(self.log, "".join(to_json(line) + "\n" for line in lines).encode())
        self._folder = self._folder_of(self.log)
        if not self.entries:
            shutil.rmtree(self._folder, ignore_errors=True)
        with errors_named("write", self._folder):
            os.makedirs(self._folder, exist_ok=True)

    def add(self, entry: Entry, checkpoint: bytes | None) -> None:
        """Keep a trial's checkpoint, then log its line."""
        trial, rung = entry["trial"], entry["rung"]
        if checkpoint is not None:
            write_atomically(self._path(trial, rung), checkpoint)
        self.entries[trial, rung] = entry
        if self.log is not None:
            with errors_named("write", self.log), open(self.log, "a", encoding="utf-8") as file:
                file.write(to_json(entry) + "\n")

    def checkpoint(self, trial: int, rung: int) -> bytes | None:
        """The checkpoint of a trial after a rung, or None if it is not there: the trial then begins again."""
        try:
            return Path(self._path(trial, rung)).read_bytes()
        except OSError:
            return None

    def drop(self, trial: int, rung: int) -> None:
        """Delete a checkpoint that nothing needs any more."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(trial, rung))

    def close(self) -> None:
        """Delete all checkpoints: the search is over, or cannot be resumed."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _folder_of(log: str) -> str:
        return f"{log}.checkpoints"

    def _path(self, trial: int, rung: int) -> str:
        assert self._folder is not None
        return os.path.join(self._folder, f"trial-{trial}.rung-{rung}.safetensors")


def check_same_search(earlier: dict[str, Any], search: dict[str, Any], log: str) -> None:
    """Raise `ValueError` that names what differs between a search and the one that its log was begun with."""
    ours, theirs = _flat(json.loads(to_json(search))), _flat(earlier)
    for name in {**theirs, **ours}:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{name} is {shown(ours.get(name))}, but {shown_path(log)} was begun with {shown(theirs.get(name))}"
            )


def _flat(search: dict[str, Any]) -> dict[str, Any]:
    """The description of a search, with the items of its dicts under names of their own."""
    flat: dict[str, Any] = {}
    for name, value in search.items():
        if isinstance(value, dict):
            flat |= {f"search of {key}" if name == "search" else key: item for key, item in value.items()}
        else:
            flat[name] = value
    return flat
