"""docs/interop.md: the code that it shows for PyTorch, Hugging Face and ONNX, run where these are installed."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt import load, train

from conftest import needs_compiled

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "interop.md").read_text("utf-8")
SMALL: dict[str, Any] = {"n_layer": 2, "n_embd": 16, "n_head": 4, "block_size": 12, "steps": 20}
LOGITS = 1e-5  # the largest difference in float32

pytestmark = needs_compiled


def blocks(section: str) -> list[str]:
    """The Python of a section that needs other packages."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The page's module, imported from a file in an otherwise empty folder, in which the test runs."""
    pytest.importorskip("torch", reason="torch is not installed")
    (tmp_path / "microgpt_torch.py").write_text(blocks("PyTorch")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("microgpt_torch")
    for name in ("microgpt_torch", "modeling_microgpt"):
        sys.modules.pop(name, None)


def run(source: str, namespace: dict[str, Any]) -> None:
    exec(compile(source, "docs/interop.md", "exec"), namespace)


def in_torch(module: Any, path: str = "names.safetensors") -> dict[str, Any]:
    """The namespace of the page after it has loaded a file into the module."""
    namespace: dict[str, Any] = {"microgpt": microgpt}
    for source in blocks("PyTorch")[:2]:
        run(source.replace("names.safetensors", path), namespace)
    return namespace


def differences(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"difference of \w+: ([\d.e+-]+)", printed)]


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_the_module_gives_our_logits(module: Any, activation: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(None, dtype="float32", activation=activation, out="names.safetensors", **SMALL)
    namespace = in_torch(module)
    (difference,) = differences(capsys.readouterr().out)
    assert difference < LOGITS
    model = load("names.safetensors")
    assert list(namespace["model"].state_dict()) == list(model.state_dict())
    shapes = {name: tuple(each.shape) for name, each in namespace["model"].state_dict().items()}
    assert shapes == model.config.parameter_shapes()


def test_float64_agrees_more_closely(module: Any) -> None:
    train(None, out="names.safetensors", **SMALL)
    torch, model = sys.modules["torch"], load("names.safetensors")
    twin = module.MicroGPT(vars(model.config)).double()
    twin.load_state_dict({name: torch.from_numpy(matrix.copy()) for name, matrix in model.state_dict().items()})
    tokens = model.tokenizer.encode_document("joanna")
    assert abs(twin(torch.tensor([tokens]))[0].detach().numpy() - model.logits(tokens)).max() < 1e-12


def test_a_step_of_training_and_the_way_back(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train(None, dtype="float32", out="names.safetensors", **SMALL)
    namespace = in_torch(module)
    capsys.readouterr()
    for source in blocks("PyTorch")[2:]:
        run(source, namespace)
    losses = re.findall(r"loss ([\d.]+), here ([\d.]+)", capsys.readouterr().out)
    assert len(losses) == 3
    assert len({loss for loss, _ in losses}) == 3
    for theirs, ours in losses:
        assert float(theirs) == pytest.approx(float(ours), abs=LOGITS)
    back = load("from-torch.safetensors")
    assert back.dtype == "float32"
    for name, parameter in namespace["model"].state_dict().items():
        assert np.array_equal(back.state_dict()[name], parameter.numpy())
    assert not np.array_equal(back.state_dict()["wte"], load("names.safetensors").state_dict()["wte"])
    assert train(None, init_from="from-torch.safetensors", steps=1).history.init_from.file == "from-torch.safetensors"


def test_hugging_face(module: Any) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    train(None, dtype="float32", out="names.safetensors", **SMALL)
    wrapper, use, reload = blocks("Hugging Face")
    Path("modeling_microgpt.py").write_text(blocks("PyTorch")[0] + wrapper)
    namespace = in_torch(module)
    for source in (use, reload):
        run(source, namespace)
    torch, tokens = sys.modules["torch"], namespace["gpt"].tokenizer.encode_document("joanna")
    logits = namespace["loaded"](torch.tensor([tokens])).logits[0].detach().numpy()
    difference = logits - load("names.safetensors").logits(tokens)
    assert abs(difference).max() < LOGITS
    assert len(namespace["names"]) == 5


def test_onnx(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    train(None, dtype="float32", out="names.safetensors", **SMALL)
    namespace = in_torch(module)
    capsys.readouterr()
    for source in blocks("ONNX"):
        run(source, namespace)
    (difference,) = differences(capsys.readouterr().out)
    assert difference < LOGITS
