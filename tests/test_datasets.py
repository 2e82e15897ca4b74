"""The data sets that come with the package."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import MutableSequence, Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

import microgpt
from microgpt.commands.cli import main
from microgpt.data.corpus import read_corpus
from microgpt.data.datasets import packaged_name
from microgpt.training.recipe import Recipe
from microgpt.tuning.tune import shared_data

from conftest import needs_compiled, needs_processes

NAMES = microgpt.dataset_names()
PRESETS = Path(microgpt.__file__).parent / "data" / "presets"
MOST_BYTES = 350_000  # of all files, of which a wheel compresses to a third


def test_there_is_a_file_for_each_and_no_other() -> None:
    assert NAMES[0] == "names"
    assert len(NAMES) > 10
    assert {file.stem for file in PRESETS.glob("*.txt")} == set(NAMES[1:])
    assert sum(file.stat().st_size for file in PRESETS.iterdir()) < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_documents_are_clean_and_say_where_they_come_from(name: str) -> None:
    dataset = microgpt.load_dataset(name)
    assert dataset.name == name
    assert all((dataset.title, dataset.source, dataset.license))
    assert len(set(dataset)) == len(dataset) > 100
    for document in dataset:
        assert document == document.strip()
        assert document.isprintable()
        assert "  " not in document
        assert document
    file = PRESETS.parent / "names.txt" if name == "names" else PRESETS / f"{name}.txt"
    assert microgpt.read_documents(file) == list(dataset)


def test_computed_facts_are_right() -> None:
    for line in microgpt.load_dataset("sums"):
        terms, total = line.split("=")
        assert sum(map(int, terms.split("+"))) == int(total)
    values = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}
    for number, numeral in enumerate(microgpt.load_dataset("roman"), 1):
        digits = [values[letter] for letter in numeral]
        assert number == sum(-a if a < b else a for a, b in zip(digits, [*digits[1:], 0]))
    for molecule in microgpt.load_dataset("molecules"):
        assert molecule.count("(") == molecule.count(")")
        assert all(molecule.count(ring) % 2 == 0 for ring in "123456789")


def test_notices_are_in_the_package() -> None:
    notices = (PRESETS / "LICENSES.md").read_text("utf-8")
    for name in NAMES:
        license = microgpt.load_dataset(name).license
        if "public domain" not in license and license != "CC0":
            assert name in notices


@needs_compiled
@pytest.mark.parametrize("name", NAMES)
def test_the_original_recipe_learns_each(name: str) -> None:
    result = microgpt.train(microgpt.load_dataset(name), steps=300)
    assert result.losses[-50:].mean() < 0.95 * math.log(result.model.config.vocab_size)
    assert all(result.model.generate(5, temperature=0.5))


def test_a_data_set_keeps_its_name_where_it_is_trained_on() -> None:
    dataset = microgpt.load_dataset("elements")
    for same in (dataset, copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert same == dataset
        corpus = read_corpus(same)
        assert (corpus.name, corpus.files, len(corpus)) == ("elements", (), 118)
        assert corpus.fingerprint() == read_corpus(PRESETS / "elements.txt").fingerprint()
    assert read_corpus(dataset[:5]).name == "data"
    shared = shared_data(dataset, corpus, Recipe())
    assert shared.load().name == "elements"
    assert shared._read().fingerprint() == corpus.fingerprint()


def test_a_data_set_is_a_sequence_that_cannot_be_changed() -> None:
    dataset = microgpt.load_dataset("elements")
    assert isinstance(dataset, Sequence)
    assert not isinstance(dataset, MutableSequence)
    assert (dataset[0], dataset[-1], dataset[:2]) == ("hydrogen", "oganesson", ["hydrogen", "helium"])
    assert ("iron" in dataset, dataset.index("helium"), len(dataset)) == (True, 1, 118)
    assert repr(dataset) == "Dataset('elements', 118 documents)"
    assert dataset == microgpt.load_dataset("elements") != microgpt.load_dataset("roman")
    with pytest.raises(FrozenInstanceError):
        dataset.name = "mine"  # type: ignore[misc]


def test_only_the_data_of_the_package_are_named_in_commands() -> None:
    dataset = microgpt.load_dataset("elements")
    assert packaged_name(dataset) == packaged_name(copy.deepcopy(dataset)) == "elements"
    for other in (replace(dataset, name="mine"), replace(dataset, documents=("a", "b")), list(dataset), None):
        assert packaged_name(other) is None


def test_documents_of_a_data_set_are_checked_like_any() -> None:
    with pytest.raises(TypeError, match=r"^data\[1\] must be a string, got 3$"):
        microgpt.train(replace(microgpt.load_dataset("elements"), documents=("a", 3)))


@pytest.mark.parametrize("name", ["element", "", 3, "../names", ["names"]])
def test_unknown_names_list_what_there_is(name: object) -> None:
    with pytest.raises(ValueError, match=r"^name must be one of names, surnames, .*, sums, got "):
        microgpt.load_dataset(name)  # type: ignore[arg-type]


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_command_lists_and_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    listed = output(capsys, "data")
    facts = [json.loads(line) for line in output(capsys, "data", "--json").splitlines()]
    assert [each["name"] for each in facts] == NAMES
    for each in facts:
        dataset = microgpt.load_dataset(each["name"])
        assert (each["documents"], each["longest"]) == (len(dataset), max(map(len, dataset)))
        assert (
            f"{each['name']:10} {each['title']}: {each['documents']:,} documents, {each['bytes']:,} bytes\n" in listed
        )
        assert ", ".join(each["sample"]) in listed
        assert set(each["sample"]) <= set(dataset)
    assert "microgpt train --data molecules --block-size 25\n" in listed
    assert output(capsys, "data", "spanish") == (PRESETS / "spanish.txt").read_text("utf-8")


@needs_processes
def test_train_and_tune_take_them_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--n-embd=4", "--n-head=1", "--steps=3"]
    assert output(capsys, "train", "--data=elements", "--samples=0", *small).startswith(
        "data    elements: 118 documents,"
    )
    repeat = output(capsys, "tune", "--data=elements", "--trials=1", "--workers=1", *small).splitlines()[-1]
    assert repeat.startswith("repeat  microgpt train --data elements --val-fraction 0.1")


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=moon"], f"data must be one of {', '.join(NAMES)}, got 'moon'"),
        (["x.txt", "--data=sums"], "data or FILE must be left out, got both"),
        (["sums"], "cannot read sums: no such file; for the data in the package, --data sums"),
    ],
)
def test_wrong_data_are_one_line(
    capsys: pytest.CaptureFixture[str], command: str, arguments: list[str], message: str
) -> None:
    assert main([command, *arguments]) == 2
    assert capsys.readouterr() == ("", f"microgpt: error: {message}\n")


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_name_that_is_too_long_for_a_file_is_named(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "n" * 5000]) == 2
    assert capsys.readouterr().err.startswith("microgpt: error: cannot read nnnnn")
