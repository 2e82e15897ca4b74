"""Documents and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from microgpt import CharTokenizer, read_documents, read_text


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


def test_writing_that_cannot_be_read_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nowhere\.txt: No such file or directory"):
        read_documents(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        read_documents(tmp_path)
    with pytest.raises(ValueError, match="cannot read .*: the name has a null character"):
        read_documents("a\0b")


def test_characters_are_sorted_and_bos_comes_last() -> None:
    tokenizer = CharTokenizer.from_documents(["bob", "añ"])
    assert tokenizer.characters == "aboñ"
    assert (tokenizer.bos, tokenizer.vocab_size) == (4, 5)
    assert tokenizer.encode("bañ") == [1, 0, 3]
    assert tokenizer.encode("") == []
    assert tokenizer.encode_document("ob") == [4, 2, 1, 4]
    assert tokenizer.decode([4, 2, 1, 4]) == "ob"
    assert tokenizer == CharTokenizer("ñobba") != CharTokenizer("ab")


def test_a_character_can_be_bos() -> None:
    tokenizer = CharTokenizer("abc\n", bos="\n")
    assert (tokenizer.bos, tokenizer.vocab_size) == (0, 4)
    assert tokenizer.encode("a\nb") == [1, 0, 2]
    assert tokenizer.decode([1, 0, 2]) == "a\nb"
    assert tokenizer.encode_document("ab") == [0, 1, 2, 0]
    assert tokenizer == CharTokenizer("cba\n", bos="\n") != CharTokenizer("abc\n")
    assert eval(repr(tokenizer)) == tokenizer
    assert eval(repr(CharTokenizer("ab"))) == CharTokenizer("ab")
    for bos in ("x", "ab", ""):
        with pytest.raises(ValueError, match="bos must be one of the characters, got "):
            CharTokenizer("abc", bos=bos)


def test_a_text_keeps_its_lines(tmp_path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffone\r\n\r\n  two \rthree".encode())
    assert read_text(file) == "one\n\n  two \nthree"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty: there is nothing to train on"):
        read_text(file)


def test_documents_are_packed_as_they_are_encoded() -> None:
    documents = ["bob", "a", "𝄞ab", ""]
    tokenizer = CharTokenizer.from_documents(documents)
    packed = tokenizer.pack_documents(documents)
    sequences = [
        packed.tokens[start : start + length].tolist() for start, length in zip(packed.starts, packed.lengths)
    ]
    assert sequences == [tokenizer.encode_document(document) for document in documents]


def test_unknown_characters_and_tokens_are_named() -> None:
    tokenizer = CharTokenizer("abc")
    with pytest.raises(ValueError, match="character 'x' at position 2 is not one the tokenizer knows"):
        tokenizer.encode("abxc")
    with pytest.raises(ValueError, match="character '𝄞' at position 0"):
        tokenizer.encode("𝄞")
    with pytest.raises(ValueError, match="token id 4 is out of range for vocab_size=4"):
        tokenizer.decode([0, 4])
    with pytest.raises(ValueError, match="token id -1 is out of range"):
        tokenizer.decode([-1])
    with pytest.raises(ValueError, match="characters must hold at least one character, got none"):
        CharTokenizer("")
