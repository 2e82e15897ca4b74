"""Documents and texts, from files."""

from __future__ import annotations

import gzip
import io
import os
import random
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from microgpt import read_documents, read_text, train
from microgpt.data.characters import distinct_characters, stripped_lines

from conftest import needs_processes


def write(folder: Path, content: bytes) -> Path:
    file = folder / "documents.txt"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b"anna\nbob\n", ["anna", "bob"]),
        (b"anna\r\n\r\n  bob \rcarl", ["anna", "bob", "carl"]),
        (b"\xef\xbb\xbfanna\n", ["anna"]),
        ("żółw\u2028x\n\x0bשלום\n日本".encode(), ["żółw\u2028x", "שלום", "日本"]),
        (b"a\x00b\n", ["a\x00b"]),
    ],
)
def test_documents_are_the_lines_that_are_not_blank(tmp_path, content, documents) -> None:
    assert read_documents(write(tmp_path, content)) == documents


def test_the_package_brings_documents() -> None:
    names = read_documents()
    assert len(names) > 2000
    assert set("".join(names)) == set("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no documents: it must have at least one line that is not blank"),
        (b" \n\t\n\r\n", "has no documents"),
        (b"anna\nb\xffb\n", r"documents\.txt, line 2: not UTF-8 \(invalid start byte\)"),
        (b"a\r\nb\rc\n\xe2\x82", r"documents\.txt, line 4: not UTF-8 \(unexpected end of data\)"),
        (b"\xff", r"documents\.txt, line 1: not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_documents(write(tmp_path, content))


def test_files_that_cannot_be_read_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nowhere\.txt: No such file or directory"):
        read_documents(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        read_documents(tmp_path)
    with pytest.raises(ValueError, match=r"^files\[0\] must be a name without null characters, got 'a\\x00b'$"):
        read_documents("a\0b")


def test_files_that_are_no_paths_are_named() -> None:
    for read in (read_documents, read_text):
        with pytest.raises(TypeError, match=r"^files must be the name of a file or several, got 5$"):
            read(5)
        with pytest.raises(TypeError, match=r"^files\[1\] must be the name of a file, got 5$"):
            read(["a.txt", 5])
        with pytest.raises(TypeError, match=r"^files must be the name of a file or several, got <_io.StringIO"):
            read(io.StringIO("anna\n"))


@pytest.mark.parametrize("text", ["anna\nbob", "anna\n" * 100_000, "anna " * 100_000])
def test_a_text_given_as_a_file_name_is_shown_in_one_short_line(text) -> None:
    for read in (read_documents, read_text, train):
        with pytest.raises(ValueError, match=r"^cannot read '?anna.*documents are a list of strings\)$") as error:
            read(text)
        assert len(str(error.value)) < 500


@pytest.mark.skipif(sys.platform == "win32", reason="its names have no line feeds")
def test_names_are_shown_as_they_are_unless_they_take_several_lines(tmp_path) -> None:
    (tmp_path / "an\nna.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"an\\nna\.txt', line 1: not UTF-8"):
        read_documents(tmp_path / "an\nna.txt")
    with pytest.raises(ValueError, match=r"nö b\.txt: No such file or directory$"):
        read_documents(tmp_path / "nö b.txt")


def test_a_text_keeps_its_lines(tmp_path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffone\r\n\r\n  two \rthree".encode())
    assert read_text(file) == "one\n\n  two \nthree"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty: it must have at least one character"):
        read_text(file)


# --- Where text comes from --------------------------------------------------------------------------------------------


def test_several_files_are_read_one_after_the_other(tmp_path) -> None:
    contents = {
        "one.txt": b"\xef\xbb\xbfanna\nbob",
        "empty.txt": b"",
        "two.txt.gz": gzip.compress(b"\xef\xbb\xbfcarl\r\ndi"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / name for name in contents]
    assert read_documents(files) == ["anna", "bob", "carl", "di"]
    assert read_text(files) == "anna\nbob\ncarl\ndi"
    assert read_documents(map(str, files)) == read_documents(files)
    with pytest.raises(ValueError, match="files must name at least one file, got none"):
        read_documents([])
    with pytest.raises(TypeError, match="files must have an order that stays the same, as a list has, got a set"):
        read_text({*files})
    with pytest.raises(TypeError, match=r"files must be the name of a file or several, got \{"):
        read_documents(dict.fromkeys(files))


def damaged(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"anna\n", "damaged gzip file .Not a gzipped file"),
        (gzip.compress(b"anna\n" * 1000, mtime=0)[:-9], "damaged gzip file .Compressed file ended before"),
        (damaged(gzip.compress(b"anna\n", mtime=0), -4), "damaged gzip file .Incorrect length"),
        (damaged(gzip.compress(b"anna\n", mtime=0), -8), "damaged gzip file .CRC check failed"),
        (damaged(gzip.compress(b"anna\n", mtime=0), 10), "damaged gzip file .Error -3 while decompressing"),
        (gzip.compress(b"anna\n\xff", mtime=0), r"names\.gz, line 2: not UTF-8"),
        (b"", "has no documents"),
    ],
)
def test_damaged_compressed_files_are_named(tmp_path, content, message) -> None:
    (tmp_path / "names.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_documents(tmp_path / "names.gz")
    assert "\n" not in str(error.value)


def test_standard_input_is_read_once_and_used_twice(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"anna\nbob\n")))
    model = train("-", steps=1, n_embd=1, n_head=1, block_size=2).model
    assert model.tokenizer.characters == "abno"
    with pytest.raises(ValueError, match="standard input has no documents"):
        read_documents("-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"anna\n\xff")))
    with pytest.raises(ValueError, match="standard input, line 2: not UTF-8"):
        read_text("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="cannot read standard input: there is none"):
        read_text("-")


class Terminal(io.RawIOBase):
    """A file that gives one line at a time, and its end only once."""

    def __init__(self, *lines: bytes) -> None:
        self.ends, self.lines = 0, [*lines, b""]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        line = self.lines.pop(0)
        buffer[: len(line)] = line
        return len(line)


@pytest.mark.parametrize("format", ["lines", "text"])
def test_the_end_of_what_is_typed_is_asked_for_once(monkeypatch, format) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Terminal(b"anna\n", b"bob\n"))))
    options = {"steps": 1, "n_embd": 1, "n_head": 1, "block_size": 2, "format": format}
    assert train("-", **options).losses.tolist() == train(["anna\n", "bob\n"], **options).losses.tolist()


@needs_processes
@pytest.mark.skipif(sys.platform == "win32", reason="its pipes have no such mode")
def test_what_has_not_come_yet_is_waited_for(monkeypatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def write_slowly() -> None:
        for content in (b"anna\n", b"bob\n"):
            time.sleep(0.1)
            os.write(writing, content)
        os.close(writing)

    threading.Thread(target=write_slowly, daemon=True).start()
    with open(reading) as opened:
        monkeypatch.setattr(sys, "stdin", opened)
        assert read_documents("-") == ["anna", "bob"]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_the_folder_that_has_no_room_for_standard_input_is_named(monkeypatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"anna\n" * 10)))
    monkeypatch.setattr("microgpt.data.reading.SPOOLED_SIZE", 10)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_, **__: open("/dev/full", "wb"))
    message = f"cannot keep standard input in {tempfile.gettempdir()}: No space left on device (TMPDIR names another"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_text("-")


@needs_processes
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_read_once_and_used_twice(tmp_path) -> None:
    pipe = tmp_path / "pipe.gz"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=[gzip.compress(b"anna\nbob\n")], daemon=True).start()
    assert train(pipe, steps=1, n_embd=1, n_head=1, block_size=2).model.tokenizer.characters == "abno"


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_blocks_leave_no_trace(tmp_path, monkeypatch, block) -> None:
    monkeypatch.setattr("microgpt.data.reading.BLOCK_SIZE", block)
    monkeypatch.setattr("microgpt.data.documents.BLOCK_SIZE", block)
    content = "\ufeff  żółw\r\n\r\n\r𝄞 \u2028 x\n\n\nlonger than that\tby far"
    text = content[1:].replace("\r\n", "\n").replace("\r", "\n")
    file = write(tmp_path, content.encode())
    assert read_text(file) == text
    assert read_documents(file) == [line.strip() for line in text.split("\n") if line.strip()]
    with pytest.raises(ValueError, match=r"documents\.txt, line 8: not UTF-8"):
        read_text(write(tmp_path, content.encode() + b"\r\xff\r"))


@pytest.mark.parametrize("alphabet", ["ab \n\t\x1c\0", "aß \n\u3000\u2028\x85\xa0\U0001f600\ud800"])
def test_white_space_is_what_python_takes_for_it(alphabet) -> None:
    draw = random.Random(1)
    for length in list(range(14)) * 50:
        text = "".join(draw.choices(alphabet, k=length))
        stripped = [line.strip() for line in text.split("\n")]
        assert stripped_lines(text) == "".join(f"{line}\n" for line in stripped if line)
        assert distinct_characters(text) == set(text)


# --- Malformed text ---------------------------------------------------------------------------------------------------

ODD_CHARACTERS = [
    "\0", "\x01", "\x07", "\x08", "\t", "\x0b", "\x0c", "\x1a", "\x1b[31m", "\x1c", "\x1f", "\x7f", "\x80", "\x85",
    "\xa0", "\xad", "e\u0301", "\u061c", "שלום", "مرحبا", "\u200b", "\u200d", "\u202e", "\u2028", "\u2029", "\u2066",
    "\u3000", "\ufdd0", "\ufeff", "\ufffd", "\uffff", "𝄞", "\U0001f468\u200d\U0001f469", "\U000e0001", "\U0010ffff",
    "%s{}\\n\"'<&>",
]  # fmt: skip
LINE_ENDS = [b"\n", b"\r\n", b"\r", b"\n\r"]
NOT_UTF8 = [
    b"\x80", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80", b"\xe2\x82", b"\xff\xfea\0", b"\x1f\x8b\x08\0",
    b"\x89PNG\r\n\x1a\n", b"caf\xe9", b"\x93quoted\x94", b"\xf0\x9f\x98",
]  # fmt: skip
HUGE = {
    "one long line": b"ab" * 5_000_000,
    "many empty lines": b"\n" * 1_000_000 + b"a",
    "many short lines": b"a\n" * 500_000,
    "many spaces": b" " * 1_000_000 + b"a",
    "many carriage returns": b"\r" * 1_000_000 + b"a",
    "many different characters": "".join(map(chr, range(1, 0x800))).encode(),
    "nothing but byte order marks": b"\xef\xbb\xbf" * 100_000,
    "nothing but nulls": bytes(1_000_000),
}


def hostile_contents() -> dict[str, bytes]:
    contents = {f"odd {text!a}": f"ab{text}\n{text}\n\n{text}a".encode() for text in ODD_CHARACTERS}
    contents |= {f"line ends {end}": end.join([b"", b"a", b"", b" b\xc2\xa0", b""]) for end in LINE_ENDS}
    contents |= {f"not UTF-8 {broken}": b"a\nb" + broken for broken in NOT_UTF8}
    draw = random.Random(0)
    contents |= {f"noise {i}": draw.choice([b"", b"\xef\xbb\xbf"]) + draw.randbytes(i) for i in range(20)}
    contents |= {f"ASCII noise {i}": bytes(byte & 127 for byte in draw.randbytes(8 * i)) for i in range(20)}
    return contents | HUGE


HOSTILE = hostile_contents()


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
@pytest.mark.parametrize("format", ["lines", "text"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_train_or_are_refused_in_one_line(tmp_path, name, format, tokenizer) -> None:
    file = write(tmp_path, HOSTILE[name])
    try:
        result = train(file, format=format, tokenizer=tokenizer, steps=1, n_embd=1, n_head=1, block_size=2)
    except ValueError as error:
        reasons = (
            "has no documents: | is empty: |must have at least .* tokens" if is_utf8(HOSTILE[name]) else "not UTF-8"
        )
        assert re.search(reasons, str(error))
        assert "\n" not in str(error)
    else:
        assert is_utf8(HOSTILE[name])
        assert np.isfinite(result.losses).all()
        result.model.generate(2)


@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
@pytest.mark.parametrize("text", [*ODD_CHARACTERS, "\ud800", "a\udfff\ud800b", "\n", "\r\n", " ", "a\n\nb\n"])
def test_hostile_strings_train_or_are_refused_in_one_line(text, tokenizer) -> None:
    documents = ["ab", text, text + "a" + text]
    if tokenizer == "bytes" and any("\ud800" <= character <= "\udfff" for character in text):
        with pytest.raises(
            ValueError, match=r"data\[1\]: character .* is half a surrogate pair, which is not in UTF-8"
        ):
            train(documents, tokenizer=tokenizer)
    else:
        result = train(documents, tokenizer=tokenizer, steps=3, n_embd=1, n_head=1, block_size=2)
        assert np.isfinite(result.losses).all()
        assert result.model.tokenizer.decode(result.model.tokenizer.encode_document(text)) == text
