"""Tokenizers, each by itself and all of them alike."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz.load import rewritten

from microgpt import GPT, ByteTokenizer, CharTokenizer, GPTConfig, HuggingFaceTokenizer, Tokenizer, train
from microgpt.commands.cli import main
from microgpt.data.characters import code_points

from conftest import needs_processes


@pytest.mark.parametrize("text", ["anna", "ö", "\U0010ffff", "\ud800"])
def test_code_points_are_indices_on_32_bit_systems_too(text: str) -> None:
    codes = code_points(text)
    assert codes.tolist() == [ord(character) for character in text]
    assert np.can_cast(codes.dtype, np.int32, "safe")


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


@pytest.mark.parametrize("bos", [None, "b"])
def test_an_extended_tokenizer_keeps_its_ids(bos: str | None) -> None:
    tokenizer = CharTokenizer("nab", bos)
    first = tokenizer.extended("zän")
    extended = first.extended(["z!", "é"])
    size = tokenizer.vocab_size
    assert (extended.characters, extended.added, extended.vocab_size) == ("abn", "zä!é", size + 4)
    assert (extended.bos, extended.bos_is_text) == (tokenizer.bos, tokenizer.bos_is_text)
    assert extended.encode("ban") == tokenizer.encode("ban")
    assert extended.encode("zä!é") == [size, size + 1, size + 2, size + 3]
    assert extended.decode(extended.encode("zän!é")) == "zän!é"
    assert extended.decode([tokenizer.bos]) == (bos or "")
    assert extended.encode_lines("é\na\n")[0].tolist() == [size + 3, tokenizer.bos, 0, tokenizer.bos]
    assert Tokenizer.from_json(json.loads(json.dumps(extended.to_json()))) == extended != tokenizer
    assert eval(repr(extended)) == extended
    assert tokenizer.extended("ab") == tokenizer == Tokenizer.from_json({**tokenizer.to_json(), "added": ""})
    assert "added" not in tokenizer.to_json()
    with pytest.raises(ValueError, match="character 'x' at position 1 is not one the tokenizer knows"):
        extended.encode("éx")
    for added in ("a", "xx"):
        with pytest.raises(ValueError, match="added must be characters without a token, each once, got '"):
            CharTokenizer("ab", added=added)


def test_unknown_characters_and_tokens_are_named() -> None:
    tokenizer = CharTokenizer("abc")
    with pytest.raises(ValueError, match="character 'x' at position 2 is not one the tokenizer knows"):
        tokenizer.encode("abxc")
    with pytest.raises(ValueError, match="character '𝄞' at position 0"):
        tokenizer.encode("𝄞")
    with pytest.raises(ValueError, match=r"tokens\[1\] is 4, out of range for vocab_size=4"):
        tokenizer.decode([0, 4])
    with pytest.raises(ValueError, match=r"tokens\[0\] is -1, out of range"):
        tokenizer.decode([-1])
    with pytest.raises(ValueError, match="characters must hold at least one character, got none"):
        CharTokenizer("")


def hugging_face(**changes: object) -> str:
    """A byte-level tokenizers file with one merge."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {chr(code): i for i, code in enumerate([*range(33, 127), 0x120, 0x10A, 0xC3, 0xB6])}
    model = tokenizers.models.BPE(vocab={**vocabulary, "an": len(vocabulary)}, merges=[("a", "n")])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return json.dumps({**json.loads(tokenizer.to_str()), **changes})


TOKENIZERS = {
    "characters": lambda: CharTokenizer("anb ö\n"),
    "characters of a text": lambda: CharTokenizer("anb ö\n", bos="\n"),
    "bytes": ByteTokenizer,
    "bytes of a text": lambda: ByteTokenizer(bos="\n"),
    "huggingface": lambda: HuggingFaceTokenizer(hugging_face()),
    "huggingface of a text": lambda: HuggingFaceTokenizer(hugging_face(), bos="\n"),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def test_text_goes_there_and_back(tokenizer) -> None:
    for text in ("", "anna", "nö b\nan", "\n"):
        ids = tokenizer.encode(text)
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_array(text).tolist() == ids
        assert tokenizer.encode_array(text).dtype == tokenizer.dtype
        assert tokenizer.encode_document(text) == [tokenizer.bos, *ids, tokenizer.bos]


def test_bos_is_text_or_nothing(tokenizer) -> None:
    assert 0 <= tokenizer.bos < tokenizer.vocab_size
    assert tokenizer.decode([tokenizer.bos]) == ("\n" if tokenizer.bos_is_text else "")
    size = tokenizer.vocab_size
    for token in (-1, size):
        with pytest.raises(ValueError, match=rf"tokens\[0\] is {token}, out of range for vocab_size={size}"):
            tokenizer.decode([token])


def test_what_is_no_text_and_no_token_is_named(tokenizer) -> None:
    with pytest.raises(TypeError, match=r"^text must be a string, got 5$"):
        tokenizer.encode(5)
    for tokens in (["a"], "ab", [0.5], [None], 5, [True]):
        with pytest.raises(TypeError, match=r"^tokens must be a sequence of whole numbers, got "):
            tokenizer.decode(tokens)
    assert tokenizer.decode(iter([1])) == tokenizer.decode(np.array([1])) == tokenizer.decode([1])


def test_what_makes_no_tokenizer_is_named() -> None:
    for characters in (5, None, ["a", 5], [b"a"]):
        with pytest.raises(TypeError, match=r"^characters must be a string or several, got "):
            CharTokenizer(characters)
    for new_tokenizer in (lambda bos: CharTokenizer("ab", bos), ByteTokenizer):
        with pytest.raises(TypeError, match=r"^bos must be a string, got 5$"):
            new_tokenizer(5)
    pytest.importorskip("tokenizers")
    with pytest.raises(TypeError, match=r"^bos must be a string, got 5$"):
        HuggingFaceTokenizer(hugging_face(), 5)
    with pytest.raises(TypeError, match=r"^content must be a string, got 5$"):
        HuggingFaceTokenizer(5)


def test_many_documents_are_encoded_as_one_by_one(tokenizer) -> None:
    for documents in (["anna", "ö", "b an"], ["an\nna", "b"], ["", "b", ""], []):
        ids, ends = tokenizer.encode_documents(documents)
        expected = [token for document in documents for token in tokenizer.encode_document(document)[1:]]
        assert ids.tolist() == expected
        assert (ids.dtype, ends.dtype) == (tokenizer.dtype, np.int64)
        assert np.diff(ends, prepend=-1).tolist() == [len(tokenizer.encode(document)) + 1 for document in documents]


def test_tokenizers_survive_json(tokenizer) -> None:
    copy = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert copy == tokenizer
    assert hash(copy) == hash(tokenizer)
    assert (type(copy), copy.bos, copy.vocab_size) == (type(tokenizer), tokenizer.bos, tokenizer.vocab_size)
    assert copy.encode("nö b\nan") == tokenizer.encode("nö b\nan")
    assert copy != CharTokenizer("xyz") != tokenizer


def test_a_model_speaks_with_any_tokenizer(tokenizer, backend) -> None:
    options = {"steps": 2, "n_embd": 4, "n_head": 2, "block_size": 4, "backend": backend, "tokenizer": tokenizer}
    format = "text" if tokenizer.bos_is_text else "lines"
    model = train(["anna", "b önanna"], format=format, **options).model
    assert model.tokenizer is tokenizer
    assert all(isinstance(text, str) for text in model.generate(3))


def test_bytes_that_are_not_text_are_replaced() -> None:
    assert ByteTokenizer().encode_document("aß") == [256, 97, 195, 159, 256]
    assert ByteTokenizer().decode([97, 195, 256, 159]) == "aß"
    assert ByteTokenizer().decode([195, 97]) == "\ufffda"
    assert repr(ByteTokenizer()) == "ByteTokenizer()"
    assert eval(repr(ByteTokenizer("\n"))) == ByteTokenizer("\n") != ByteTokenizer()
    for bos in ("", "ab", "ß"):
        with pytest.raises(ValueError, match="bos must be one ASCII character, got "):
            ByteTokenizer(bos)


@pytest.mark.parametrize(("size", "dtype"), [(255, "uint8"), (256, "uint16"), (65535, "uint16"), (65536, "int32")])
def test_ids_take_no_more_room_than_they_need(size, dtype) -> None:
    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0xE000 + 2**16)][:size]))
    tokenizer = CharTokenizer(characters)
    assert tokenizer.dtype == tokenizer.encode_array(characters).dtype == dtype
    assert tokenizer.encode(characters) == list(range(size))
    assert tokenizer.encode_lines("\n")[0].tolist() == [size]
    with pytest.raises(ValueError, match=r"character '\\U0010ffff' at position 1"):
        tokenizer.encode("a\U0010ffff")


def test_truncation_and_padding_of_a_file_are_left_out() -> None:
    limits = {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 7},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    }
    tokenizer = HuggingFaceTokenizer(hugging_face(**limits))
    assert tokenizer.decode(tokenizer.encode("anna bab")) == "anna bab"
    assert tokenizer.encode("an") == [98]
    assert len(tokenizer.encode_lines("an\n")[0]) == 2


def test_a_tokenizers_file_that_drops_line_feeds_gets_a_bos_of_its_own() -> None:
    tokenizer = HuggingFaceTokenizer(hugging_face(pre_tokenizer={"type": "Whitespace"}, decoder=None), bos="\n")
    assert (tokenizer.bos, tokenizer.vocab_size, tokenizer.bos_is_text) == (99, 100, False)
    assert Tokenizer.from_json(tokenizer.to_json()) == tokenizer


def test_a_tokenizers_file_is_an_option_of_train(tmp_path) -> None:
    (tmp_path / "bpe.json").write_text(hugging_face())
    options = {"steps": 1, "n_embd": 4, "n_head": 2, "block_size": 4}
    assert train(["anna"], tokenizer=str(tmp_path / "bpe.json"), **options).model.config.vocab_size == 100
    assert train(["anna"] * 9, tokenizer=tmp_path / "bpe.json", format="text", **options).model.config.vocab_size == 99


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*bpe.json: No such file"),
        (b"", "bpe.json: not a tokenizers JSON file"),
        (b"{}", "bpe.json: not a tokenizers JSON file"),
        (b"[" * 100_000, "bpe.json: not a tokenizers JSON file"),
        (b"\xff", "cannot read .*bpe.json.*can't decode byte 0xff"),
    ],
)
def test_bad_tokenizers_files_are_named(tmp_path, content, message) -> None:
    pytest.importorskip("tokenizers")
    if content is not None:
        (tmp_path / "bpe.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        train(["anna"], tokenizer=tmp_path / "bpe.json")
    assert "\n" not in str(error.value)


def test_a_text_that_a_tokenizers_file_has_no_tokens_for_is_named(tmp_path) -> None:
    model = {"type": "WordLevel", "vocab": {"anna": 0, "bob": 1}, "unk_token": "?"}
    file, data = tmp_path / "words.json", tmp_path / "names.txt"
    file.write_text(hugging_face(model=model, pre_tokenizer=None, decoder=None))
    data.write_text("anna\n\ncarl\nbob\n")
    reason = r"the tokenizers file has no tokens for this text \(WordLevel error: Missing \[UNK\] token"
    tokenizer = HuggingFaceTokenizer.from_file(file)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_documents(["anna", text])):
        with pytest.raises(ValueError, match=f"^{reason}"):
            encode("carl")
    with pytest.raises(ValueError, match=rf"names\.txt, line 3: {reason}"):
        train(data, tokenizer=file)
    with pytest.raises(ValueError, match=rf"words\.json: {reason}"):
        train(data, tokenizer=file, format="text")


# --- Files of Hugging Face's tokenizers that are random or hostile ----------------------------------------------------

CHARACTERS = {"a": 0, "n": 1, "an": 2, "na": 3, "anna": 4}
BPE = {"type": "BPE", "vocab": CHARACTERS, "merges": ["a n", "n a", "an na"]}
ANNA = {"type": "WordLevel", "vocab": {"anna": 0, "<u>": 1}, "unk_token": "<u>"}


def tokenizers_file(model: dict[str, object], **parts: object) -> str:
    """A tokenizers file with this model and these other parts."""
    pytest.importorskip("tokenizers")
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model, **parts})


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_dropout_is_left_out(tmp_path: Path, dropout: float) -> None:
    content = tokenizers_file({**BPE, "dropout": dropout})
    tokenizer = HuggingFaceTokenizer(content)
    assert [tokenizer.encode("anna") for _ in range(50)] == [[4]] * 50
    assert tokenizer.encode_documents(["anna"] * 50)[0].tolist() == [4, 5] * 50
    assert tokenizer == HuggingFaceTokenizer(tokenizers_file(BPE))
    assert Tokenizer.from_json({"type": "huggingface", "json": content, "bos": None}) == tokenizer

    (tmp_path / "bpe.json").write_text(content)
    options = {"tokenizer": tmp_path / "bpe.json", "n_embd": 4, "n_head": 2, "block_size": 4}
    results = [train(["annan", "nanna"] * 20, steps=6, **options).losses.tolist() for _ in range(2)]
    assert results[0] == results[1]
    out = tmp_path / "model.safetensors"
    train(["annan", "nanna"] * 20, steps=3, schedule="constant", out=out, **options)
    assert (
        len(train(["annan", "nanna"] * 20, steps=6, schedule="constant", out=out, resume=True, **options).losses) == 6
    )


def test_sampling_of_unigram_is_left_out() -> None:
    model = {"type": "Unigram", "vocab": [["<u>", 0.0], ["a", -2.0], ["aa", -3.0], ["aaa", -4.0]], "unk_id": 0}
    tokenizer = HuggingFaceTokenizer(tokenizers_file({**model, "alpha": 0.1, "nbest_size": 64}))
    assert tokenizer == HuggingFaceTokenizer(tokenizers_file(model))
    assert len({tuple(tokenizer.encode("aaaaaaa")) for _ in range(50)}) == 1


@pytest.mark.parametrize("normalizer", [{"type": "Lowercase"}, None])
def test_added_tokens_that_become_one_are_refused(normalizer: dict[str, object] | None) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    added = [{"id": 2 + i, "content": content, "normalized": True, **flags} for i, content in enumerate(["Bob", "bob"])]
    content = tokenizers_file(ANNA, added_tokens=added, normalizer=normalizer)
    if normalizer is None:
        assert HuggingFaceTokenizer(content).encode("bob") == [3]
        return
    message = "^added tokens must differ when normalized, got 'bob' for both 'Bob' and 'bob'$"
    with pytest.raises(ValueError, match=message):
        HuggingFaceTokenizer(content)


@pytest.mark.parametrize(
    ("contents", "vocabulary", "message"),
    [
        (["\n", "an"], {"anna": 0, "<u>": 1}, r"added tokens must not be empty when normalized, got '\\n'"),
        (
            ["\n", "anna"],
            {"anna": 2, "<u>": 1},
            r"added tokens must have ids of their own, got 2 for both '\\n' and 'a.*",
        ),
    ],
)
def test_added_tokens_that_the_library_mixes_up_are_refused(
    contents: list[str], vocabulary: dict[str, int], message: str
) -> None:
    """It finds an empty one beside others without end, and normalizes those of one id like the first."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    added = [{"id": i, "content": content, "normalized": True, **flags} for i, content in enumerate(contents)]
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    content = tokenizers_file({**ANNA, "vocab": vocabulary}, added_tokens=added, normalizer=strip)
    with pytest.raises(ValueError, match=f"^{message}$"):
        HuggingFaceTokenizer(content)


def test_added_tokens_may_have_the_id_of_a_token() -> None:
    added = {"id": 5, "content": "bob", "single_word": False, "lstrip": False, "rstrip": False, "special": True}
    content = tokenizers_file({**ANNA, "vocab": {"anna": 2, "<u>": 1}}, added_tokens=[{**added, "normalized": False}])
    tokenizer = HuggingFaceTokenizer(content)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in ("bob", "anna")] == ["bob", "bob"]


def test_tokens_of_one_id_are_refused() -> None:
    model = {**ANNA, "vocab": {"anna": 0, "bob": 0, "<u>": 1}}
    with pytest.raises(ValueError, match=r"^tokens must have ids of their own, got 0 for both 'anna' and 'bob'$"):
        HuggingFaceTokenizer(tokenizers_file(model))


PANICS = {
    "encode": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}},
    "decode": {"decoder": {"type": "Strip", "content": "a", "start": 2, "stop": 2}},
    "load": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
}


def test_a_panic_of_the_library_is_an_error_of_one_line(tmp_path: Path, capfd) -> None:
    def used(content: str) -> list[str]:
        tokenizer = HuggingFaceTokenizer(content)
        return [tokenizer.decode([token]) for token in (*tokenizer.encode("ann"), *tokenizer.encode_lines("ann\n")[0])]

    for parts in PANICS.values():
        content = tokenizers_file({**ANNA, "vocab": {"anna": 0, "a": 1, "<u>": 2}, "unk_token": "a"}, **parts)
        with pytest.raises(
            ValueError, match=r"^(not a tokenizers JSON file|the tokenizers file has no t.*) \("
        ) as error:
            used(content)
        assert "\n" not in str(error.value)
    (tmp_path / "hostile.json").write_text(tokenizers_file(ANNA, **PANICS["encode"]))
    (tmp_path / "names.txt").write_text("anna\n")
    capfd.readouterr()
    command = ["train", str(tmp_path / "names.txt"), "--steps=1", f"--tokenizer={tmp_path / 'hostile.json'}"]
    assert main(command) == 2
    (message,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("microgpt: error: "))
    assert "names.txt, line 1: the tokenizers file has no tokens for this text (index out of bounds" in message


def test_a_lying_model_with_a_hostile_tokenizer_is_refused(tmp_path: Path, capfd) -> None:
    path = tmp_path / "model.safetensors"
    train(["anna"], steps=1, tokenizer=HuggingFaceTokenizer(tokenizers_file(BPE)), n_embd=4, n_head=2).model.save(path)

    def lie(arrays: object, texts: dict[str, str]) -> None:
        description = json.loads(texts["tokenizer"])
        description["json"] = tokenizers_file({**BPE, "continuing_subword_prefix": "#######"})
        texts["tokenizer"] = json.dumps(description)

    path.write_bytes(rewritten(path.read_bytes(), lie))
    assert main(["sample", str(path)]) == 2
    expected = (
        f"microgpt: error: {path}: not a tokenizers JSON file (continuing_subword_prefix '#######' must begin 'n',"
        " which a merge adds)\n"
    )
    assert capfd.readouterr() == ("", expected)


def replace(pattern: str, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def sequence(name: str, *steps: dict[str, object]) -> dict[str, object]:
    return {"type": "Sequence", name: list(steps)}


def precompiled(longest: int) -> dict[str, object]:
    """A map without entries whose longest string has this many characters."""
    charsmap = struct.pack("<I1024x", 1024) + "é".encode() * longest + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
METASPACE = [
    {"type": "Metaspace", "replacement": replacement, "prepend_scheme": "always", "split": True} for replacement in "▁_"
]
CHINESE = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": False}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"normalizer": sequence("normalizers", *[replace("a", "a" * 10)] * 30)},
            "normalizer must let a text grow to at",
        ),
        (
            {"decoder": sequence("decoders", *[replace("a", "bb"), replace("b", "aa")] * 9)},
            "decoder must let a text grow",
        ),
        ({"normalizer": replace("", "a" * 2000)}, "normalizer must let a text grow to at most 1,000 times its length"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 2000}}, "normalizer must let a text grow to at most"),
        (
            {"normalizer": {"type": "Prepend", "prepend": "a" * 2000, "content": ""}},
            "normalizer must let a text grow to",
        ),
        ({"normalizer": {**replace("b", ""), "type": "Prepend", "prepend": "a" * 2000}}, "normalizer must let a text"),
        ({"normalizer": sequence("normalizers", *[replace("a", "a" * 10)] * 400)}, "normalizer must let a text grow"),
        (
            {"normalizer": sequence("normalizers", *[{"type": "NFC"}] * 10_000)},
            "normalizer must have at most 10,000 steps",
        ),
        (
            {"normalizer": sequence("normalizers", *[{**replace("b", ""), "type": "ByteLevel"}] * 30)},
            "normalizer must let a text",
        ),
        ({"normalizer": sequence("normalizers", *[{"type": "ByteLevel"}] * 30)}, "normalizer must let a text grow"),
        ({"normalizer": sequence("normalizers", *[CHINESE] * 9)}, "normalizer must let a text grow"),
        ({"normalizer": precompiled(1001)}, "normalizer must let a text grow"),
        ({"normalizer": sequence("normalizers", *[precompiled(2)] * 9)}, "normalizer must let a text grow"),
        ({"pre_tokenizer": sequence("pretokenizers", *[BYTES] * 30)}, "pre_tokenizer must let a text grow"),
        ({"pre_tokenizer": sequence("pretokenizers", *METASPACE * 15)}, "pre_tokenizer must let a text grow"),
        ({"decoder": sequence("decoders", *[{"type": "BPEDecoder", "suffix": ""}] * 30)}, "decoder must let a text"),
        (
            {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
            "pre_tokenizer must have a length of at least 1, got 0",
        ),
        (
            {"model": {**ANNA, "vocab": {"x" * 2000: 0, "<u>": 1}}},
            "a token must have at most 1,000 characters, got 'xxx",
        ),
        (
            {"model": {**ANNA, "type": "WordPiece", "max_input_chars_per_word": 10**9}},
            "max_input_chars_per_word must be",
        ),
        ({"model": {**BPE, "continuing_subword_prefix": "##"}}, "continuing_subword_prefix '##' must begin 'n', which"),
        ({"version": float("nan")}, "not a tokenizers JSON file"),
    ],
)
def test_files_that_would_take_all_memory_or_time_are_refused(parts: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        HuggingFaceTokenizer(tokenizers_file(**{"model": ANNA, **parts}))
    assert "\n" not in str(error.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "words.json").write_text(tokenizers_file(ANNA))
    monkeypatch.setattr("microgpt.data.huggingface.LARGEST_FILE", 20)
    with pytest.raises(ValueError, match=r"words\.json: a tokenizers JSON file must have at most 20 bytes, got more$"):
        HuggingFaceTokenizer.from_file(tmp_path / "words.json")


SPLIT = {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": False}
REGEX = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": sequence("normalizers", {"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"})},
        {"normalizer": sequence("normalizers", {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "NFD"}, REGEX)},
        {"normalizer": sequence("normalizers", replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, REGEX)},
        {"normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"))},
        {"normalizer": sequence("normalizers", *[replace(chr(0x1F600 + i), f":face{i}:") for i in range(60)])},
        {
            "normalizer": sequence(
                "normalizers",
                replace("``", '"'),
                replace("''", '"'),
                *({"type": name} for name in ("NFKD", "StripAccents", "Lowercase")),
                precompiled(18),
                REGEX,
            )
        },
        {"pre_tokenizer": sequence("pretokenizers", SPLIT, {"type": "Digits", "individual_digits": True}, BYTES)},
        {"decoder": sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"})},
        {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}},
        {"post_processor": {"type": "BertProcessing", "sep": ["anna", 0], "cls": ["anna", 0]}},
    ],
)
def test_files_that_are_in_use_are_taken(parts: dict[str, object]) -> None:
    assert HuggingFaceTokenizer(tokenizers_file(ANNA, **parts)).encode("anna") == [
        0 if "Prepend" not in str(parts) else 1
    ]


@needs_processes
def test_an_absent_package_is_named() -> None:
    script = "import sys; sys.modules['tokenizers'] = None; import microgpt; microgpt.HuggingFaceTokenizer('{}')"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    wanted = 'ImportError: tokenizers is not installed: pip install "microgpt-fast[tokenizers]"\n'
    assert result.stderr.endswith(wanted)


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "characters",
        {},
        {"type": None},
        {"type": []},
        {"type": "words"},
        {"type": "characters" * 1_000_000},
        {"type": "bytes"},
        {"type": "bytes", "bos": 10},
        {"type": "bytes", "bos": ""},
        {"type": "bytes", "bos": "\n" * 1_000_000},
        {"type": "bytes", "bos": None, "size": 10**100},
        {"type": "characters", "bos": None},
        {"type": "characters", "characters": "", "bos": None},
        {"type": "characters", "characters": "ba", "bos": None},
        {"type": "characters", "characters": "aab", "bos": None},
        {"type": "characters", "characters": "ab", "bos": "x"},
        {"type": "characters", "characters": "x" * 1_000_000, "bos": "x" * 1_000_000},
        {"type": "characters", "characters": ["a", "b"], "bos": None},
        {"type": "characters", "characters": 10**18, "bos": None},
        {"type": "characters", "characters": None, "bos": None},
        {"type": "characters", "characters": {"a": 1}, "bos": False},
        {"type": "huggingface", "json": None, "bos": None},
        {"type": "huggingface", "json": "{", "bos": None},
        {"type": "huggingface", "json": "\n\0", "bos": "\n"},
        {"type": "huggingface", "json": "\ud800", "bos": None},
        {"type": "huggingface", "json": {}, "bos": None},
    ],
)
def test_hostile_json_is_refused_in_one_line(content) -> None:
    if isinstance(content, dict) and content.get("type") == "huggingface":
        pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"must|not a tokenizers JSON file") as error:
        Tokenizer.from_json(content)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_absurd_token_ids_are_refused() -> None:
    model = {"type": "WordLevel", "vocab": {"a": 4_000_000_000}, "unk_token": "a"}
    with pytest.raises(ValueError, match="must have 1 to 16,777,216 tokens, got 4,000,000,001"):
        HuggingFaceTokenizer(hugging_face(model=model))
    with pytest.raises(ValueError, match="must have 1 to 16,777,216 tokens, got 0"):
        HuggingFaceTokenizer(hugging_face(model={**model, "vocab": {}}))


def test_the_tokenizer_of_a_model_has_its_size() -> None:
    with pytest.raises(ValueError, match="vocab_size must be the tokenizer's 257, got a config with 256"):
        GPT(GPTConfig(vocab_size=256), tokenizer=ByteTokenizer())
