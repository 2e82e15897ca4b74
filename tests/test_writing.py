"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import sys

import pytest

from microgpt.writing import check_writable, write_atomically

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
        raise OSError(28, "No space left on device")

    file = tmp_path / "page"
    file.write_bytes(b"old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(ValueError, match=r"cannot write .*page: No space left on device"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["page"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", r"cannot write \.: Is a directory"),
        (os.devnull, f"cannot write {os.devnull}: it is not a regular file"),
        ("nowhere/page", "cannot write nowhere/page: No such file or directory"),
        ("a\0b", r"cannot write 'a\\x00b': the name has a null character"),
        pytest.param("a" * 300, "cannot write a{300}: File name too long", marks=no_limit),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, monkeypatch, path, message) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        write_atomically(path, b"")
    with pytest.raises(ValueError, match=message):
        check_writable(path)
    assert os.listdir(tmp_path) == []
