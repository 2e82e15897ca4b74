"""Warm start: a run that begins with the parameters and the tokenizer of another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.load import rewritten
from test_tokenizer import hugging_face

import microgpt
from microgpt import GPT, ByteTokenizer, CharTokenizer, GPTConfig, load, train
from microgpt.checkpoint import parameters_hash
from microgpt.commands.cli import main
from microgpt.training.train import prepare

from conftest import MpiExec, needs_compiled

SMALL: dict[str, Any] = {"n_embd": 4, "n_head": 2, "block_size": 4}
NAMES = ["anna", "bob", "carlotta", "di", "emma"]
OTHERS = ["zoë", "ana", "bodo", "chloé", "na-na"]


@pytest.fixture
def names(backend: str, tmp_path: Path) -> Path:
    """The file of a trained model, of which the characters are abcdeilmnort."""
    path = tmp_path / "names.safetensors"
    train(NAMES, steps=5, init_std=0.3, backend=backend, out=path, **SMALL)
    return path


def state(model: GPT) -> list[Any]:
    return [matrix.tolist() for matrix in model.state_dict().values()]


def test_a_new_run_begins_with_the_parameters_and_tokenizer_of_a_file(names: Path, backend: str) -> None:
    model = load(names, backend=backend)
    result = train(["nora", "tom"], init_from=names, steps=0, backend=backend)
    assert result.model.config == model.config
    assert result.model.tokenizer == model.tokenizer
    assert state(result.model) == state(model)
    assert len(result.losses) == 0

    # The optimizer, the order of documents and the generator are those of a new run.
    twin = train(["nora", "tom"], tokenizer=model.tokenizer, steps=0, seed=3, init_std=0.3, backend=backend, **SMALL)
    twin.model.load_state_dict(model.state_dict())
    fresh, expected = prepare(["nora", "tom"], tokenizer=model.tokenizer, seed=3, backend=backend, **SMALL), []
    optimizer = microgpt.Adam(twin.model)
    for step in range(4):
        document = fresh.batches.batch(step, 1, 1)
        loss, _ = twin.model.loss_and_gradients([document.tokens.tolist()])
        expected.append(loss)
        optimizer.step(0.01 * (1 - step / 4))
    result = train(["nora", "tom"], init_from=names, steps=4, seed=3, backend=backend)
    assert result.losses.tolist() == expected
    assert state(result.model) == state(twin.model)
    assert result.model.generate(3) == twin.model.generate(3)


def test_a_model_in_memory_is_like_its_file_and_stays_as_it_is(names: Path, backend: str) -> None:
    model = load(names, backend=backend)
    before = state(model)
    options: dict[str, Any] = {"steps": 3, "backend": backend}
    result, from_file = train(NAMES, init_from=model, **options), train(NAMES, init_from=names, **options)
    assert state(model) == before != state(result.model) == state(from_file.model)
    assert result.history.init_from == from_file.history.init_from
    assert str(result.history.init_from).startswith("a model (parameters ")


@needs_compiled
def test_both_backends_give_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "names.safetensors"
    train(NAMES, steps=5, out=path, **SMALL)
    results = [
        train(OTHERS, init_from=path, extend_vocabulary=True, steps=5, backend=backend)
        for backend in ("reference", "compiled")
    ]
    assert results[0].losses.tolist() == results[1].losses.tolist()
    assert state(results[0].model) == state(results[1].model)


@pytest.mark.parametrize(
    ("option", "value"),
    [("n_layer", 2), ("n_embd", 6), ("n_head", 1), ("block_size", 5), ("activation", "gelu"), ("init_std", 0.08)],
)
def test_an_option_that_contradicts_the_model_is_refused_by_name(names: Path, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be left out or .*, as in .*names.safetensors, got {value!r}"):
        train(NAMES, init_from=names, steps=1, backend="reference", **{option: value})


def test_an_option_that_says_the_same_is_taken(names: Path, backend: str) -> None:
    tokenizer = load(names, backend=backend).tokenizer
    for same in (*({name: value} for name, value in SMALL.items()), {"format": "lines"}, {"init_std": np.float64(0.3)}):
        train(NAMES, init_from=names, steps=0, backend=backend, **same)
    for given in ("characters", tokenizer):
        train(NAMES, init_from=names, steps=0, backend=backend, tokenizer=given)
    for other in ("bytes", CharTokenizer("ab"), "tokenizer.json", 5):
        with pytest.raises(ValueError, match=r"tokenizer must be left out or that of .*names.safetensors, CharTok"):
            train(NAMES, init_from=names, steps=0, backend=backend, tokenizer=other)
    with pytest.raises(ValueError, match=r"format must be left out or 'lines', as in .*names.safetensors, got 'text'"):
        train(NAMES, init_from=names, steps=0, backend=backend, format="text")
    with pytest.raises(ValueError, match="n_embd must be a multiple of n_head, got n_embd=7 and n_head=2"):
        train(NAMES, init_from=names, steps=0, backend=backend, n_embd=7)


def test_the_tokenizers_file_of_the_model_is_taken(tmp_path: Path) -> None:
    path, other = tmp_path / "tokenizer.json", tmp_path / "other.json"
    path.write_text(hugging_face())
    other.write_text(hugging_face(normalizer={"type": "Lowercase"}))
    model = train(NAMES, tokenizer=path, steps=0, backend="reference", **SMALL).model
    result = train(NAMES, init_from=model, tokenizer=path, steps=0, backend="reference")
    assert result.model.tokenizer == model.tokenizer
    with pytest.raises(ValueError, match="tokenizer must be left out or that of init_from, HuggingFaceTokenizer"):
        train(NAMES, init_from=model, tokenizer=other, steps=0, backend="reference")
    with pytest.raises(ValueError, match="extend_vocabulary is for tokens that are characters, but init_from has a H"):
        train(NAMES, init_from=model, extend_vocabulary=True, steps=0, backend="reference")


def test_unknown_characters_are_named_and_get_rows_of_their_own(names: Path, backend: str, tmp_path: Path) -> None:
    data = tmp_path / "others.txt"
    data.write_text("\n".join(OTHERS), encoding="utf-8")
    where = r"others.txt, line 1: character 'z' at position 0 is not one the tokenizer knows"
    with pytest.raises(ValueError, match=f"{where}: extend_vocabulary gives it a token"):
        train(data, init_from=names, backend=backend)

    old = load(names, backend=backend)
    count = old.config.vocab_size
    options: dict[str, Any] = {"steps": 0, "seed": 9, "backend": backend}
    model = train(data, init_from=names, extend_vocabulary=True, **options).model
    assert model.tokenizer == CharTokenizer(old.tokenizer.characters, added="-hzéë")
    assert model.tokenizer.bos == old.tokenizer.bos == count - 1
    assert model.tokenizer.encode("anna") == old.tokenizer.encode("anna")
    drawn = train(data, tokenizer=model.tokenizer, init_std=0.3, **SMALL, **options).model  # as in any new model
    for name, matrix in model.state_dict().items():
        rows = len(old.state_dict()[name])
        assert matrix[:rows].tolist() == old.state_dict()[name].tolist()
        assert matrix[rows:].tolist() == drawn.state_dict()[name][rows:].tolist()
        assert len(matrix) - rows == (5 if name in {"wte", "lm_head"} else 0)
    tokens = old.tokenizer.encode("anna")
    assert model.logits(tokens)[:, :count].tolist() == old.logits(tokens).tolist()
    assert model.generator.getstate() == drawn.generator.getstate()


def test_a_vocabulary_can_be_extended_again_and_saved(names: Path, backend: str, tmp_path: Path) -> None:
    path = tmp_path / "others.safetensors"
    options: dict[str, Any] = {"extend_vocabulary": True, "steps": 2, "backend": backend}
    train(OTHERS, init_from=names, out=path, **options)
    again = train(["über"], init_from=path, **options).model
    assert again.tokenizer.added == "-hzéëü"
    assert again.tokenizer.decode(again.tokenizer.encode_document("zoë-über")) == "zoë-über"
    assert load(path, backend=backend).tokenizer.added == "-hzéë"
    unchanged = train(["anna"], init_from=names, **options).model
    assert unchanged.tokenizer == load(names, backend=backend).tokenizer


def test_a_text_model_keeps_its_line_feed(backend: str) -> None:
    options: dict[str, Any] = {"steps": 1, "backend": backend}
    model = train(["abc", "abd"] * 9, format="text", **options, **SMALL).model
    result = train(["xab", "cab"] * 9, init_from=model, extend_vocabulary=True, **options)
    assert result.model.format == "text"
    assert result.model.tokenizer == CharTokenizer("\nabcd", bos="\n", added="x")


def test_what_cannot_be_extended_or_started_from(names: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 1, "backend": "reference"}
    with pytest.raises(ValueError, match="extend_vocabulary needs init_from, the model with the vocabulary"):
        train(NAMES, extend_vocabulary=True, **options)
    config = GPTConfig(vocab_size=257, n_embd=2, n_head=1, block_size=2)
    model = GPT(config, tokenizer=ByteTokenizer(), backend="reference")
    with pytest.raises(ValueError, match="extend_vocabulary is for tokens that are characters, but init_from has a B"):
        train(NAMES, init_from=model, extend_vocabulary=True, **options)
    model.state_dict()["wte"][0, 0] = np.nan
    with pytest.raises(ValueError, match="init_from needs finite parameters, but not all of wte are"):
        train(NAMES, init_from=model, **options)
    with pytest.raises(ValueError, match="init_from must be a model with a tokenizer, but init_from has none"):
        train(NAMES, init_from=GPT(config, backend="reference"), **options)
    with pytest.raises(TypeError, match="init_from must be the name of a model's file, or a GPT, got 5"):
        train(NAMES, init_from=5, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cannot read .*missing: No such file or directory"):
        train(NAMES, init_from=tmp_path / "missing", **options)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(names.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"damaged\.safetensors is damaged"):
        train(NAMES, init_from=damaged, **options)
    with pytest.raises(ValueError, match="init_from and out must be different files"):
        train(NAMES, init_from=names, out=names, **options)
    with pytest.raises(TypeError, match="got an unexpected option 'init_from'"):
        microgpt.tune(NAMES, init_from=names)  # type: ignore[call-arg]


@needs_compiled
def test_the_dtype_is_the_models_unless_another_is_given(tmp_path: Path) -> None:
    double = train(NAMES, steps=3, **SMALL).model
    single = train(NAMES, init_from=double, dtype="float32", steps=0).model  # rounds
    assert single.dtype == "float32"
    for name, matrix in double.state_dict().items():
        assert np.array_equal(single.state_dict()[name], matrix.astype(np.float32))
    assert train(NAMES, init_from=single, steps=0).model.dtype == "float32"
    back = train(NAMES, init_from=single, dtype="float64", steps=0).model  # exact
    assert state(back) == state(single)
    path = tmp_path / "single.safetensors"
    single.save(path)
    reference = train(NAMES, init_from=path, steps=0, backend="reference")
    assert reference.model.dtype == "float64"
    assert state(reference.model) == state(single)
    assert reference.history.init_from.parameters == parameters_hash(single.state_dict())
    double.state_dict()["wte"][0, 0] = 1e39
    with pytest.raises(ValueError, match="dtype must be 'float64' for a model with parameters beyond the largest"):
        train(NAMES, init_from=double, dtype="float32", steps=0)


def test_a_run_resumes_without_the_file_that_it_began_with(names: Path, backend: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"init_from": names, "extend_vocabulary": True, "val_fraction": 0.2, "backend": backend}
    whole = train(OTHERS, steps=6, **options)
    out = tmp_path / "out.safetensors"
    parts = options | {"out": out, "resume": True, "schedule": "constant"}
    train(OTHERS, steps=3, **parts)

    kept = names.rename(tmp_path / "kept.safetensors")
    resumed = train(OTHERS, steps=6, **parts)
    expected = train(OTHERS, steps=6, **options | {"init_from": kept, "schedule": "constant"})
    assert resumed.losses.tolist() == expected.losses.tolist()
    assert state(resumed.model) == state(expected.model) != state(whole.model)
    origin = load(out, backend=backend).history.init_from
    assert origin.file == str(names)
    assert origin.parameters == expected.history.init_from.parameters

    resumed = train(OTHERS, steps=7, **parts | {"init_from": kept})  # the same, under another name
    assert resumed.history.init_from.file == str(names)
    with pytest.raises(ValueError, match=r"init_from is a model \(parameters \w{8}\), but .* was begun with .*names"):
        train(OTHERS, steps=8, **parts | {"init_from": load(out, backend=backend)})
    with pytest.raises(
        ValueError, match=r"init_from is None, but .*out.safetensors was begun with .*names.safetensors"
    ):
        train(OTHERS, steps=8, out=out, resume=True, val_fraction=0.2, backend=backend)
    train(NAMES, steps=1, out=out, backend=backend, **SMALL)
    with pytest.raises(ValueError, match=r"init_from is .*kept.safetensors \(.*\), but .* was begun with None"):
        train(NAMES, steps=2, out=out, resume=True, init_from=kept, backend=backend)


@pytest.mark.parametrize("origin", [5, {}, {"file": 5, "parameters": 32 * "0"}, {"file": None, "parameters": "0\n"}])
def test_a_damaged_origin_is_refused(tmp_path: Path, origin: Any) -> None:
    path = tmp_path / "model.safetensors"
    train(NAMES, init_from=train(NAMES, steps=0, backend="reference", **SMALL).model, steps=0, out=path)

    def damage(arrays: dict[str, Any], texts: dict[str, str]) -> None:
        texts["history"] = json.dumps(json.loads(texts["history"]) | {"init_from": origin})

    path.write_bytes(rewritten(path.read_bytes(), damage))
    with pytest.raises(ValueError, match=r"model.safetensors: ((parameters of )?init_from must|there is no 'file')"):
        load(path)


def test_the_command_line(names: Path, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "others.txt", tmp_path / "out.safetensors"
    data.write_text("\n".join(OTHERS), encoding="utf-8")
    command = ["train", str(data), "--init-from", str(names), "--out", str(out), "--steps", "2", "--backend", backend]
    assert main(command) == 2
    assert capsys.readouterr().err.endswith("not one the tokenizer knows: extend_vocabulary gives it a token\n")
    assert main([*command, "--extend-vocabulary", "--n-layer", "3"]) == 2
    assert "n_layer must be left out or 1, as in" in capsys.readouterr().err
    assert main([*command, "--extend-vocabulary", "--n-layer", "1"]) == 0
    origin = load(out, backend=backend).history.init_from
    assert f"start   {origin}, vocabulary extended by -hzéë\n" in capsys.readouterr().out
    assert main([*command, "--extend-vocabulary", "--resume", "--steps", "3"]) == 0
    assert main(["info", str(out)]) == 0
    assert f"init_from       {origin}\n" in capsys.readouterr().out


def test_processes_begin_with_the_same_model(mpiexec: MpiExec, tmp_path: Path) -> None:
    path = tmp_path / "names.safetensors"
    model = train(NAMES, steps=5, out=path, **SMALL).model
    result = mpiexec(2, Path(__file__).with_name("mpi_programs.py"), "warm_start", path)
    assert result.returncode == 0, result.stderr
    *digests, error = result.stdout.splitlines()
    alone = train(OTHERS, init_from=model, extend_vocabulary=True, steps=3, batch_size=4, shards=2)
    assert digests == [parameters_hash(alone.model.state_dict())] * 4  # two ranks, from the file and from memory
    assert error.startswith("init_from must be the same on all ranks, got ")
