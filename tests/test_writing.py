"""Atomic file writes."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from functools import partial

import pytest

from microgpt.utils.files import check_writable, write_atomically

no_limit = pytest.mark.skipif(sys.platform == "emscripten", reason="its file system takes names of any length")


def test_a_file_is_written_and_replaced(tmp_path) -> None:
    file = tmp_path / "page"
    for content in (b"", b"one", b"two" * 1000):
        write_atomically(file, content)
        assert file.read_bytes() == content
    assert os.listdir(tmp_path) == ["page"]
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, step) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "page"
    file.write_bytes(b"old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(ValueError, match=r"cannot write .*page: No space left on device in "):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["page"]


def test_a_full_folder_behind_a_link_is_named(tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "full").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "full" / "page")
    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.chdir(tmp_path)
    for path, folder in (("link", tmp_path / "full"), ("page", tmp_path)):
        message = f"cannot write {path}: No space left on device in {folder}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            write_atomically(path, b"new")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch, step) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "page", b"new")
    assert os.listdir(tmp_path) == []


def test_files_of_the_user_are_left_alone(tmp_path) -> None:
    others = {"page.tmp": b"mine", "page.0.tmp": b"mine too", "victim": b"also mine"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "other.tmp").symlink_to("victim")
    for name in ("page", "other"):
        check_writable(tmp_path / name)
        write_atomically(tmp_path / name, b"new")
        assert not (tmp_path / name).is_symlink()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        **others,
        "other.tmp": b"also mine",
        "page": b"new",
        "other": b"new",
    }


def test_what_a_link_points_to_is_replaced(tmp_path) -> None:
    (tmp_path / "link").symlink_to("page")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "page").read_bytes() == b"new"


@pytest.mark.skipif(os.name != "posix", reason="this system has other permissions")
def test_permissions_stay_and_are_kept_to(tmp_path, monkeypatch) -> None:
    page = tmp_path / "page"
    page.write_bytes(b"first")
    page.chmod(0o600)
    write_atomically(page, b"second")
    assert (page.read_bytes(), stat.S_IMODE(page.stat().st_mode)) == (b"second", 0o600)

    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do everything
    for write in (check_writable, partial(write_atomically, content=b"third")):
        with pytest.raises(ValueError, match=r"cannot write .*page: Permission denied"):
            write(page)
    assert page.read_bytes() == b"second"


def test_two_writers_share_no_file(tmp_path, monkeypatch) -> None:
    """The second writer writes while the first is writing."""
    fsync, others = os.fsync, [b"second"]

    def write_meanwhile(descriptor: int) -> None:
        if others:
            write_atomically(tmp_path / "page", others.pop())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", write_meanwhile)
    write_atomically(tmp_path / "page", b"first")
    assert (tmp_path / "page").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["page"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", r"cannot write \.: Is a directory"),
        (os.devnull, f"cannot write {os.devnull}: it is not a regular file"),
        ("nowhere/page", "cannot write nowhere/page: No such file or directory"),
        ("a\0b", r"path must be a name without null characters, got 'a\\x00b'"),
        ("\ud800", r"path must be a name that this system can encode, got '\\ud800'"),
        pytest.param("a" * 10_000, "cannot write a{300}: File name too long", marks=no_limit),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, monkeypatch, path, message) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        write_atomically(path, b"")
    with pytest.raises(ValueError, match=message):
        check_writable(path)
    assert os.listdir(tmp_path) == []
