"""The corpus: documents as token ids, in memory or on disk, and the batches made of it."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest

from microgpt import CharTokenizer, train
from microgpt.data.batches import DocumentBatches, TextBatches
from microgpt.data.corpus import Corpus, read_corpus
from microgpt.engine.backend import new_generator
from microgpt.training.train import prepare
from microgpt.utils.arguments import LARGEST

from conftest import sequences

NAMES = ["anna", "bob", "carlotta", "di", "emma"]
SMALL = {"n_embd": 4, "n_head": 2, "block_size": 4}


def documents_of(corpus: Corpus) -> list[str]:
    bounds = zip(corpus.offsets, corpus.offsets[1:])
    documents = [corpus.tokens[start : end + 1].tolist() for start, end in bounds]
    assert all(document[0] == document[-1] == corpus.tokenizer.bos for document in documents)
    return [corpus.tokenizer.decode(document) for document in documents]


@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
@pytest.mark.parametrize("documents", [NAMES, ["a"], ["żółw", "日本", "𝄞"], ["a\nb", "", " c ", "\r"], ["\ud800"]])
def test_a_corpus_holds_the_documents(documents, tokenizer) -> None:
    if documents == ["\ud800"] and tokenizer == "bytes":
        pytest.skip("lone surrogates have no bytes")
    corpus = read_corpus(documents, tokenizer=tokenizer)
    assert documents_of(corpus) == [document for document in documents if document]
    assert len(corpus) == len(documents) - documents.count("")
    assert corpus.characters == sum(map(len, documents))
    assert corpus.tokens.dtype == corpus.tokenizer.dtype
    assert not corpus.tokens.flags.writeable


def test_a_text_is_one_document() -> None:
    corpus = read_corpus(NAMES, "text")
    assert corpus.tokenizer.decode(corpus.tokens) == "\n".join(NAMES)
    assert (len(corpus), corpus.offsets.tolist()) == (1, [0, len(corpus.tokens) - 1])
    assert corpus.characters == len(corpus.tokens)


@pytest.mark.parametrize("format", ["lines", "text"])
@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
@pytest.mark.parametrize("block", [3, 1000])
def test_files_give_what_strings_give(tmp_path, monkeypatch, format, tokenizer, block) -> None:
    monkeypatch.setattr("microgpt.data.reading.BLOCK_SIZE", block)
    monkeypatch.setattr("microgpt.data.documents.BLOCK_SIZE", block)
    (tmp_path / "one.txt").write_text("\n".join(NAMES[:2]))
    (tmp_path / "two.txt").write_text("\n".join(NAMES[2:]))
    files = read_corpus([tmp_path / "one.txt", tmp_path / "two.txt"], format, tokenizer)
    strings = read_corpus(NAMES, format, tokenizer)
    assert files.fingerprint() == strings.fingerprint()
    assert (files.tokenizer, files.characters) == (strings.tokenizer, strings.characters)
    assert files.name == f"{tmp_path}/one.txt, {tmp_path}/two.txt"


def test_a_small_corpus_takes_little_memory() -> None:
    corpus = read_corpus(NAMES, in_memory=1 << 60)
    assert corpus.tokens.nbytes + corpus.offsets.nbytes < 100_000


@pytest.mark.parametrize("format", ["lines", "text"])
@pytest.mark.parametrize("in_memory", [0, 1, 20, 100])
def test_a_corpus_beyond_memory_is_the_same(format, in_memory) -> None:
    corpus, mapped = read_corpus(NAMES * 9, format), read_corpus(NAMES * 9, format, in_memory=in_memory)
    assert isinstance(mapped.tokens.base, np.memmap)
    assert not isinstance(corpus.tokens.base, np.memmap)
    assert (mapped.tokens.dtype, mapped.tokens.tolist()) == (corpus.tokens.dtype, corpus.tokens.tolist())
    assert mapped.offsets.tolist() == corpus.offsets.tolist()
    assert mapped.fingerprint() == corpus.fingerprint()
    assert not mapped.tokens.flags.writeable


@pytest.mark.parametrize("format", ["lines", "text"])
def test_a_model_trains_alike_beyond_memory(backend, monkeypatch, format) -> None:
    options = {**SMALL, "format": format, "steps": 3, "batch_size": 2, "val_fraction": 0.3, "backend": backend}
    expected = train(NAMES * 3, **options)
    monkeypatch.setattr("microgpt.training.train.read_corpus", functools.partial(read_corpus, in_memory=10))
    run = prepare(NAMES * 3, **options)
    assert isinstance(run.corpus.tokens.base, np.memmap)
    assert run.train().losses.tolist() == expected.losses.tolist()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_line(monkeypatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "wb"))
    with pytest.raises(ValueError, match=r"cannot keep tokens in .*: No space left on device \(TMPDIR names another"):
        read_corpus(NAMES, in_memory=10)


def test_fingerprints_tell_corpora_apart() -> None:
    corpora = [read_corpus(documents) for documents in (NAMES, NAMES[::-1], NAMES[:4], ["a", "b"], ["b", "a"])]
    corpora += [read_corpus(NAMES, "text"), read_corpus(NAMES, tokenizer="bytes")]
    fingerprints = [corpus.fingerprint() for corpus in corpora]
    assert len(set(fingerprints)) == len(corpora)
    assert fingerprints[0] == read_corpus(NAMES).fingerprint()
    assert all(len(fingerprint) == 32 and int(fingerprint, 16) >= 0 for fingerprint in fingerprints)


@pytest.mark.parametrize("format", ["lines", "text"])
@pytest.mark.parametrize("newline", [None, ""])
@pytest.mark.parametrize("content", ["anna\n", "\ufeff anna\r\nbo\x0bb \n\n  \ncarl", "anna\rbob\r\r\ncarl\r", "\n\na"])
def test_lines_with_their_ends_are_those_of_the_file(tmp_path, monkeypatch, format, newline, content) -> None:
    """Lists and other iterables, whether their line ends were translated or not."""
    monkeypatch.setattr("microgpt.data.reading.LINES_JOINED", 2)
    file = tmp_path / "names.txt"
    file.write_bytes(content.encode())
    expected = read_corpus(file, format)
    with file.open(newline=newline, encoding="utf-8") as opened:
        lines = opened.readlines()
    for data in (lines, iter(lines), tuple(lines), (line for line in lines)):
        corpus = read_corpus(data, format)
        assert corpus.fingerprint() == expected.fingerprint()
        assert (corpus.tokenizer, corpus.characters, corpus.name) == (expected.tokenizer, expected.characters, "data")


@pytest.mark.parametrize(
    "documents", [["a\n", "b\nc\n"], ["a", "b\n"], ["a\n", "b", "c\n"], ["a\n\n", "b\n"], ["a\nb"], ["a\n", "", "b\n"]]
)
def test_line_feeds_elsewhere_are_characters_of_documents(documents) -> None:
    assert documents_of(read_corpus(documents)) == [document for document in documents if document]


@pytest.mark.parametrize("kind", [set, frozenset])
@pytest.mark.parametrize("item", [str, Path])
def test_what_has_another_order_in_each_process_is_refused(kind, item) -> None:
    message = f"^data must have an order that stays the same, as a list has, got a {kind.__name__}$"
    with pytest.raises(TypeError, match=message):
        train(kind(map(item, NAMES)))


def test_the_keys_and_values_of_a_dict_are_in_its_order() -> None:
    by_name = dict.fromkeys(NAMES, "x")
    assert documents_of(read_corpus(by_name.keys())) == NAMES
    assert documents_of(read_corpus(by_name.values())) == ["x"] * len(NAMES)


@pytest.mark.parametrize("format", ["lines", "text"])
def test_characters_that_a_tokenizer_does_not_know_are_placed(tmp_path, format) -> None:
    (tmp_path / "one.txt").write_text("anna\n\n")
    (tmp_path / "two.txt").write_text("anna\n\n nab\nann\n")
    with pytest.raises(ValueError, match=r"two\.txt, line 3: character 'b' at position \d is not one the tokenizer"):
        read_corpus([tmp_path / "one.txt", tmp_path / "two.txt"], format, CharTokenizer("an \n"))
    with pytest.raises(ValueError, match=r"data\[3\]: character 'b' at position 2 is not one the tokenizer knows"):
        read_corpus(["an", "", "n\na", "nab"], tokenizer=CharTokenizer("an\n"))
    with pytest.raises(ValueError, match="data, line 2: character 'b' at position 2"):
        read_corpus(["a\x0b\u2028n", "nab"], "text", CharTokenizer("an\n\x0b\u2028"))
    with pytest.raises(ValueError, match=r"data, line 3: character 'b' at position 1"):
        read_corpus(["na\n", "\n", "ab\n"], format, CharTokenizer("an\n"))
    with pytest.raises(ValueError, match=r"data, line 1: character '\\n' at position 2"):
        read_corpus(["an", "na"], "text", CharTokenizer("an"))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([1], TypeError, r"data\[0\] must be a string, got 1"),
        (["a", Path("b")], TypeError, r"data\[1\] must be a string, got (Posix|Windows)Path"),
        ([], ValueError, "data must hold at least one document that is not empty, got none"),
        (1.5, TypeError, "data must be the name of a file, or a list of documents or of pathlib.Paths, got 1.5"),
        ({"text": ["anna"]}, TypeError, "data must be the name of a file, or a list .*, got {'text': "),
        (["\n", " \n"], ValueError, "data has no documents: it must have at least one line that is not blank"),
        (io.StringIO("anna\n"), TypeError, "data must be the name of a file, or a list .*, got <_io.StringIO"),
    ],
)
def test_bad_data_is_named(data, error, message) -> None:
    with pytest.raises(error, match=message):
        read_corpus(data)


def test_open_files_and_names_of_files_are_no_documents(tmp_path) -> None:
    files = [tmp_path / name for name in ("one.txt", "two.txt")]
    for file in files:
        file.write_text("anna\n")
    with files[0].open() as opened, pytest.raises(TypeError, match=r"data must be .*, got <_io\.TextIOWrapper name="):
        read_corpus(opened)
    names = list(map(str, files))
    with pytest.raises(
        ValueError, match=r"data must be a list of documents or of pathlib\.Paths, got names of files: "
    ):
        read_corpus(names)
    assert documents_of(read_corpus([*names, "anna"])) == [*names, "anna"]


# --- Batches ----------------------------------------------------------------------------------------------------------


def texts(batches: DocumentBatches, corpus: Corpus, count: int) -> list[str]:
    return [corpus.tokenizer.decode(tokens) for tokens in sequences(batches.batch(0, count, 1))]


def test_documents_come_in_order_and_again() -> None:
    corpus, order = read_corpus(NAMES), np.array([2, 0, 4, 1, 3])
    batches = DocumentBatches(corpus, order, length=100)
    assert texts(batches, corpus, 7) == ["carlotta", "anna", "emma", "bob", "di", "carlotta", "anna"]
    assert sequences(batches.batch(2, 2, 3)) == sequences(batches.batch(0, 12, 1))[6:]
    assert batches.batch(0, 1, 1).tokens.dtype == np.int32
    assert batches.held_out_tokens() == 0


def test_long_documents_are_cut() -> None:
    corpus, order = read_corpus(NAMES), np.array([2, 0, 4, 1, 3])
    batches = DocumentBatches(corpus, order, length=4, validation_fraction=0.4)
    assert texts(batches, corpus, 4) == ["car", "ann", "emm", "car"]
    held_out = [corpus.tokenizer.decode(tokens) for tokens in sequences(batches.held_out(LARGEST))]
    assert held_out == ["bob", "b", "di"]  # the second piece is the last letter, after which the end is predicted
    assert batches.held_out_tokens() == len("bob") + len("di") + 2


@pytest.mark.parametrize("context", [1, 2, 3, 4, 9, 50])
def test_long_documents_are_split_so_that_every_token_is_predicted_once(context) -> None:
    corpus, order = read_corpus(NAMES), np.array([2, 0, 4, 1, 3])
    batches = DocumentBatches(corpus, order, context + 1, validation_fraction=0.4, long_documents="split")
    training, validation = (
        [
            document[start : start + context + 1]
            for document in (corpus.tokenizer.encode_document(NAMES[i]) for i in part)
            for start in range(0, len(document) - 1, context)
        ]
        for part in (order[:3], order[3:])
    )
    assert sequences(batches.batch(0, 2 * len(training), 1)) == training + training
    assert sequences(batches.held_out(LARGEST)) == validation


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (4, 1), (5, 1), (8, 2), (9, 2), (11, 2), (12, 3), (LARGEST, 7)])
def test_a_part_of_the_held_out_documents_has_at_most_so_many_tokens(most: int, expected: int) -> None:
    corpus = read_corpus(["abc"] * 4 + ["defghij"] * 2)
    batches = DocumentBatches(corpus, np.arange(6), length=5, validation_fraction=0.9)
    pieces = sequences(batches.held_out(most))
    assert len(pieces) == expected
    assert batches.held_out_tokens() == 3 * 4 + 2 * 8
    assert pieces == sequences(batches.held_out(LARGEST))[: len(pieces)]


def test_a_part_of_a_held_out_text_is_spread_over_it() -> None:
    text = "".join(map(chr, range(ord("A"), ord("A") + 100))) + "\n"
    corpus = read_corpus([text], "text")
    batches = TextBatches(corpus, 5, new_generator("reference", 1), 0.6)
    whole = [corpus.tokenizer.decode(piece) for piece in sequences(batches.held_out(LARGEST))]
    held_out = text[-batches.held_out_tokens() :]
    assert len(held_out) == round(0.6 * len(text))
    assert "".join(piece[1:] for piece in whole) == held_out
    assert [piece[0] for piece in whole] == ["\n", *(piece[-1] for piece in whole[:-1])]
    part = [corpus.tokenizer.decode(piece) for piece in sequences(batches.held_out(20))]
    assert [whole.index(piece) for piece in part] == [0, 3, 6, 9, 12]


def test_split_documents_train_to_the_same_bits_on_both_backends(backend) -> None:
    options = {**SMALL, "steps": 4, "batch_size": 3, "backend": backend, "val_fraction": 0.2}
    short = [train(["ab", "ba", "cd"], **options, long_documents=kind).losses.tolist() for kind in ("cut", "split")]
    assert short[0] == short[1]
    by_hand = prepare(["abcdefg"], long_documents="split", **{**options, "val_fraction": 0})
    pieces = sequences(by_hand.batches.batch(0, 2, 1))
    assert [by_hand.corpus.tokenizer.decode(piece) for piece in pieces] == ["abcd", "defg"]


def test_many_steps_are_laid_out_in_chunks(monkeypatch) -> None:
    options = {**SMALL, "steps": 9, "format": "text", "batch_size": 2, "val_fraction": 0.3, "eval_every": 3}
    expected = train(NAMES, **options)
    monkeypatch.setattr("microgpt.training.run.BLOCK_TOKENS", 20)
    result = train(NAMES, **options)
    assert result.losses.tolist() == expected.losses.tolist()
    assert result.validation_losses == expected.validation_losses
    assert [steps for steps, _ in result.validation_losses] == [0, 3, 6, 9]
