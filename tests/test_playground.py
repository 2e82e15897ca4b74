"""The playground in examples/browser/: its Python, its page, and both in Chromium.

In most of its tests, a worker stands in for Pyodide that sends the page's messages to Python here. MICROGPT_PYODIDE
names a folder with a release of Pyodide and the wheels that examples/browser/offline.py asks for; with it, the page
is tested as it is.
"""

from __future__ import annotations

import ast
import base64
import functools
import http.server
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt.training.recipe import Recipe, defaults_of

import conftest
from conftest import COMPILED_IS_THERE, HANGS, needs_compiled, needs_processes

ROOT = Path(__file__).resolve().parents[1]
BROWSER = ROOT / "examples" / "browser"
PYODIDE = os.environ.get("MICROGPT_PYODIDE")
NAMES = "anna\nbob\ncarla\ndan\nella\nfay\n" * 5
SMALL = {"n_embd": 4, "n_head": 2, "block_size": 6}

BRIDGE = """
const started = fetch("/new", { method: "POST" }).then(() => postMessage({ ready: true }));
onmessage = async ({ data: { id, request } }) => {
  await started;
  const response = await fetch("/handle", { method: "POST", body: JSON.stringify(request) });
  postMessage({ id, answer: await response.json() });
};
"""


def load_playground() -> Any:
    specification = importlib.util.spec_from_file_location("playground", BROWSER / "playground.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if not COMPILED_IS_THERE:  # the reference would take minutes
        module.SAMPLES, module.TEXT_TOKENS = 2, 10
    return module


PLAYGROUND = load_playground()


class Page:
    """Asks a `Playground` as the page does; an error is a `ValueError`."""

    def __init__(self) -> None:
        self.playground = PLAYGROUND.Playground()

    def ask(self, do: str, **request: Any) -> Any:
        answer = json.loads(self.playground.handle(json.dumps({"do": do, **request})))
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def train(self, text: str = NAMES, **options: Any) -> list[dict[str, Any]]:
        """The answers of a whole run."""
        self.ask("start", text=text, options={"steps": 4, **SMALL, **options})
        answers = []
        while not answers or not answers[-1]["run"]["is_over"]:
            answers.append(self.ask("advance", milliseconds=1, temperature=0.5))
        return answers

    @property
    def model(self) -> microgpt.GPT:
        return self.playground.model


@pytest.fixture
def page() -> Page:
    return Page()


def test_it_says_what_runs(page: Page) -> None:
    info = microgpt.backend_info()
    about = {"version": microgpt.__version__, "backend": info.backend, "instruction_set": info.instruction_set}
    assert page.ask("describe") == about
    for name in microgpt.dataset_names():
        assert page.ask("data", name=name)["text"].splitlines() == list(microgpt.load_dataset(name))


@pytest.mark.parametrize("options", [{}, {"val_fraction": 0.2}, {"format": "text"}, {"batch_size": 3, "seed": 5}])
def test_a_run_in_parts_is_that_of_train(page: Page, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "data.txt").write_text(NAMES)
    whole = microgpt.train(tmp_path / "data.txt", steps=4, **SMALL, **options)
    *_, last = page.train(**options)
    run = page.playground.run
    assert run.losses[:4].tolist() == whole.losses.tolist()
    assert run.validation_losses == whole.validation_losses
    assert last["run"]["steps"] == last["run"]["step"] == 4
    assert last["run"]["loss"] == pytest.approx(whole.losses.mean())
    assert last["run"]["validation"] == (whole.validation_losses[-1][1] if options.get("val_fraction") else None)
    for name, matrix in whole.model.state_dict().items():
        assert page.model.state_dict()[name].tolist() == matrix.tolist()


def test_the_page_sees_steps_losses_and_samples_of_a_run(page: Page) -> None:
    first = page.ask("start", text=NAMES, options={"steps": 4, **SMALL})
    assert first["model"]["vocab_size"] == len(set(NAMES) - {"\n"}) + 1
    assert first["model"]["params"] == page.model.num_params
    assert first["model"]["guessing"] == math.log(first["model"]["vocab_size"])
    assert (first["run"]["step"], first["run"]["is_over"], first["run"]["loss"]) == (0, False, None)
    answer = page.ask("advance", milliseconds=0, temperature=1.5)
    assert answer["run"]["step"] == 1
    assert answer["samples"] == page.model.generate(PLAYGROUND.SAMPLES, 1.5, seed=1)
    assert answer["run"]["curve"].startswith("<svg ")
    assert "guessing blindly costs" in answer["run"]["curve"]
    while not answer["run"]["is_over"]:
        before, answer = answer, page.ask("advance", milliseconds=0, temperature=1.5)
        assert answer["run"]["step"] == before["run"]["step"] + 1
        assert answer["run"]["seconds"] > before["run"]["seconds"]
    assert len(answer["samples"]) == PLAYGROUND.SAMPLES


def test_the_axis_grows_with_the_curve(page: Page) -> None:
    def end(curve: str) -> int:
        return max(int(number.replace(",", "")) for number in re.findall(r'middle">([\d,]+)</text>', curve))

    page.ask("start", text=NAMES, options={"steps": 8000, **SMALL})
    assert end(page.ask("advance", milliseconds=0, temperature=1.0)["run"]["curve"]) == 1000
    page.ask("start", text=NAMES, options={"steps": 600, **SMALL})
    assert end(page.ask("advance", milliseconds=0, temperature=1.0)["run"]["curve"]) == 600


def test_samples_are_those_of_the_model(page: Page) -> None:
    page.train()
    assert page.ask("sample", n=5, temperature=0.7, prompt="an", seed=3)["samples"] == page.model.generate(
        5, 0.7, 3, prompt="an"
    )
    page.train(format="text")
    (text,) = page.ask("sample", n=5, temperature=0.7, prompt="an", seed=3)["samples"]
    assert text == "an" + "".join(page.model.stream("an", 0.7, 3, max_tokens=PLAYGROUND.TEXT_TOKENS))


@pytest.mark.parametrize("prompt", ["", "an", "anannannanna"])
def test_a_drawing_is_what_the_model_computes(page: Page, prompt: str) -> None:
    page.train(n_layer=2)
    model = page.model
    drawing = page.ask("draw", temperature=1.0, prompt=prompt, seed=3)["drawing"]
    (word,) = model.generate(1, 1.0, 3, prompt=prompt)
    labels = ["BOS", *word, "BOS"][: model.config.block_size + 1]
    assert drawing["labels"] == labels[: len(drawing["steps"])]
    assert [step["label"] for step in drawing["steps"]] == labels[1:]
    assert drawing["first"] == 1 + len(prompt)
    attention = model.attention([model.bos, *model.tokenizer.encode(word)][: model.config.block_size])
    for i, step in enumerate(drawing["steps"]):
        expected = model.next_token_probabilities(word[:i])
        found = {"<BOS>" if label == "BOS" else label: p for label, p in step["candidates"]}
        assert found == pytest.approx({label: expected[label] for label in found})
        assert len(found) == min(10, model.config.vocab_size)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert step["probability"] == pytest.approx(expected["<BOS>" if step["label"] == "BOS" else step["label"]])
        assert np.abs(np.array(step["attention"]) - attention[:, :, i, : i + 1]).max() < 1e-3


def test_a_low_temperature_makes_the_likeliest_letter_certain(page: Page) -> None:
    page.train()
    shares = [
        [step["candidates"][0][1] for step in page.ask("draw", temperature=t, prompt="ann")["drawing"]["steps"][:3]]
        for t in (2.0, 0.5, 0.001)
    ]
    for hot, cool, cold in zip(*shares):
        assert hot < cool <= cold
    assert min(shares[2]) > 0.9


@pytest.mark.parametrize("text", ["abc" * 20, "ab\nc\n" * 20], ids=["one line", "lines"])
def test_a_text_is_drawn_with_and_without_line_feeds(page: Page, text: str) -> None:
    page.train(text, format="text", steps=2)
    drawing = page.ask("draw", temperature=1.0)["drawing"]
    assert len(drawing["steps"]) == len(drawing["labels"]) >= 1
    for i, step in enumerate(drawing["steps"]):
        assert [len(head) for layer in step["attention"] for head in layer] == [i + 1] * 2
        assert drawing["labels"][i + 1 : i + 2] in ([], [step["label"]])


def test_a_model_is_the_same_after_download_and_opening(page: Page) -> None:
    page.train(val_fraction=0.2)
    samples = page.ask("sample", n=5, temperature=1.0)
    other = Page()
    answer = other.ask("load", content=page.ask("save")["content"])
    assert other.ask("sample", n=5, temperature=1.0) == samples
    assert answer["model"] == page.playground._model()
    assert (answer["run"]["step"], answer["run"]["is_over"]) == (4, True)
    assert answer["run"]["validation"] == page.playground.run.validation_losses[-1][1]
    for name, matrix in page.model.state_dict().items():
        assert other.model.state_dict()[name].tolist() == matrix.tolist()


def test_losses_that_are_no_numbers_are_null(page: Page, tmp_path: Path) -> None:
    model = microgpt.train(NAMES.split(), steps=2, **SMALL).model
    model.history.losses[:] = np.nan
    model.history.validation_losses[:] = [(0, 3.0), (2, math.nan)]
    model.save(tmp_path / "model.safetensors")
    content = base64.b64encode((tmp_path / "model.safetensors").read_bytes()).decode()
    answer = page.playground.handle(json.dumps({"do": "load", "content": content}))
    assert "NaN" not in answer
    run = json.loads(answer)["run"]
    assert (run["step"], run["loss"], run["validation"]) == (2, None, None)


def test_a_stopped_run_can_be_downloaded_and_goes_on(page: Page) -> None:
    page.ask("start", text=NAMES, options={"steps": 4, **SMALL})
    page.ask("advance", milliseconds=0, temperature=1.0)
    content = page.ask("save")["content"]
    assert Page().ask("load", content=content)["run"]["step"] == 1
    while not page.ask("advance", milliseconds=0, temperature=1.0)["run"]["is_over"]:
        pass
    assert page.playground.run.losses[:4].tolist() == microgpt.train(NAMES.split(), steps=4, **SMALL).losses.tolist()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"do": "sample", "n": 1, "temperature": 1.0}, "there is no model yet: train one first"),
        ({"do": "draw", "temperature": 1.0}, "there is no model yet: train one first"),
        ({"do": "save"}, "there is no model yet: train one first"),
        ({"do": "advance", "milliseconds": 1, "temperature": 1.0}, "there is no run yet: start one first"),
        ({"do": "start", "text": " \n", "options": {}}, "^your text has no documents"),
        ({"do": "start", "text": "a\n", "options": {"n_embd": 6}}, "n_embd must be a multiple of n_head, got n_embd=6"),
        ({"do": "load", "content": "AAAA"}, "^your model is damaged, or not a safetensors file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(page: Page, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        page.ask(**request_)
    assert "\n" not in str(raised.value)


def test_an_error_leaves_the_model_as_it_was(page: Page) -> None:
    page.train()
    samples = page.ask("sample", n=5, temperature=1.0)
    for request in (
        {"do": "load", "content": base64.b64encode(b"x").decode()},
        {"do": "start", "text": "", "options": {}},
        {"do": "draw", "temperature": 1.0, "prompt": "é"},
    ):
        with pytest.raises(ValueError):  # noqa: PT011 (the messages are tested above)
            page.ask(**request)
    assert page.ask("sample", n=5, temperature=1.0) == samples


def test_a_run_that_diverges_says_so(page: Page) -> None:
    with pytest.raises(ValueError, match="try a smaller learning_rate"):
        page.train(learning_rate=1e300)


# The page


class Parsed(HTMLParser):
    """The elements of a page, as (tag, attributes), and the tags around each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.around: list[list[str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        self.around.append(list(self._open))
        self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


PARSED = Parsed((BROWSER / "index.html").read_text("utf-8"))
BY_ID = {attributes["id"]: (tag, attributes) for tag, attributes in PARSED.elements if "id" in attributes}


def javascript(name: str) -> str:
    return (BROWSER / name).read_text("utf-8")


def test_every_field_has_a_label() -> None:
    labelled = {attributes["for"] for tag, attributes in PARSED.elements if tag == "label" and "for" in attributes}
    fields = 0
    for (tag, attributes), around in zip(PARSED.elements, PARSED.around):
        if tag in ("input", "select", "textarea"):
            fields += 1
            assert attributes["id"] in labelled or "label" in around, attributes
        if tag in ("form", "fieldset", "progress") and attributes.get("id") != "draw":
            assert "aria-label" in attributes or tag == "fieldset"
    assert fields == 16


def test_ids_are_there_once_and_what_names_them_exists() -> None:
    ids = [attributes["id"] for _, attributes in PARSED.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in PARSED.elements:
        for name in ("for", "aria-describedby", "aria-labelledby", "form"):
            for named in attributes.get(name, "").split():
                assert named in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    used = set(re.findall(r'\$\("([\w-]+)"\)', javascript("playground.js")))
    assert len(used) > 20
    assert used <= set(ids)


def test_nothing_comes_from_elsewhere_but_pyodide() -> None:
    for tag, attributes in PARSED.elements:
        for name in {"src", "href"} & attributes.keys():
            address = attributes[name]
            if tag == "a":
                assert address.startswith(("#", "https://"))
            else:
                assert address == "data:," or (BROWSER / address).is_file(), address
    for name in ("playground.js", "settings.js", "worker.js", "style.css"):
        assert "://" not in javascript(name), name
    assert (BROWSER / re.search(r'Letters } from "(.*)"', javascript("playground.js"))[1]).is_file()
    sources = json.loads(javascript("sources.json"))
    assert re.fullmatch(r"https://cdn\.jsdelivr\.net/pyodide/v[\d.]+/full/", sources["pyodide"])
    assert sources["install"] == ["microgpt-fast"]


def test_the_page_offers_what_settings_know_and_defaults_are_those_of_train() -> None:
    source = javascript("settings.js")
    defaults = dict(re.findall(r'(\w+): ("?[\w.]+"?)[,\n ]', source.split("DEFAULTS = {")[1].split("}")[0]))
    recipe = defaults_of(Recipe)
    assert len(defaults) == 12
    for name, text in defaults.items():
        tag, attributes = BY_ID[name]
        value = ast.literal_eval(text)
        if name in recipe and name != "steps":
            assert value == recipe[name], name
        if tag == "input" and attributes["type"] != "checkbox":
            assert float(attributes["value"]) == value
    listed = dict(re.findall(r"(\w+): \[([^\]]*)\]", source.split("SETTINGS = {")[1].split("};")[0]))
    page = javascript("index.html")
    for name in ("data", "format", "n_embd", "n_layer", "n_head", "block_size", "batch_size", "dtype"):
        select = re.search(rf'<select id="{name}".*?</select>', page, re.DOTALL)[0]
        options = [value or text for value, text in re.findall(r'<option(?: value="(\w+)")?[^>]*>([^<]*)<', select)]
        assert options == re.findall(r"[\w.]+", listed[name])


def test_every_data_set_can_be_chosen() -> None:
    offered = re.search(r"data: \[([^\]]*)\]", javascript("settings.js"))[1]
    assert re.findall(r"\w+", offered) == [*microgpt.dataset_names(), "own"]


@needs_processes
def test_the_offline_copy_has_everything(tmp_path: Path) -> None:
    release, folder = tmp_path / "release", tmp_path / "folder"
    release.mkdir()
    files = ["pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json"]
    wheels = [f"{name}-1.0-cp314-cp314-x.whl" for name in ("numpy", "safetensors", "microgpt_fast")]
    for name in files + wheels[:2]:
        (release / name).write_text(name)
    command = [sys.executable, str(BROWSER / "offline.py"), str(folder), "--pyodide", str(release)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"{release} has no wheel of microgpt_fast\n")
    assert not folder.exists()
    (release / wheels[2]).write_text("")
    subprocess.run(command, capture_output=True, check=True)
    assert json.loads((folder / "sources.json").read_text()) == {"pyodide": "./pyodide/", "wheels": wheels}
    assert sorted(file.name for file in (folder / "pyodide").iterdir()) == sorted(files + wheels)
    for tag, attributes in Parsed((folder / "index.html").read_text("utf-8")).elements:
        for name in {"src", "href"} & attributes.keys():
            if tag != "a" and not attributes[name].startswith("data:"):
                assert (folder / attributes[name]).is_file()
    copied = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {"playground.py", "worker.js", "letters.js", "settings.js", "page.css"} <= copied


# In Chromium


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the repository, and a worker that asks the Python of this process."""

    page = Page

    def do_GET(self) -> None:
        if self.path == "/examples/browser/worker.js":
            self._answer("text/javascript", BRIDGE)
        else:
            super().do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/new":
            Handler.current = Page()
        self._answer("application/json", "{}" if self.path == "/new" else Handler.current.playground.handle(body))

    def _answer(self, kind: str, content: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


def serve(handler: Callable[..., Any]) -> Iterator[str]:
    """The address of a server, which ends with the generator."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def address(browser: Any) -> Iterator[str]:
    """The address of the page with Python of this process."""
    for server in serve(functools.partial(Handler, directory=ROOT)):
        yield f"{server}/examples/browser/"


class Tab(conftest.Tab):
    """The page in Chromium."""

    def __init__(self, browser: Any, address: str, fragment: str = "") -> None:
        super().__init__(browser, address, fragment, "ready")

    def trained(self, steps: str) -> None:
        self.wait(f"document.getElementById('status-text').textContent.startsWith('Trained {steps} steps')")
        self.wait("document.querySelectorAll('#letters .tile').length")


QUICK = "#steps=60&n_embd=8&n_head=2"


@needs_compiled
class TestInChromium:
    """The page, with Python of this process in the place of Pyodide."""

    def test_a_model_is_trained_and_shown(self, browser: Any, address: str) -> None:
        tab = Tab(browser, address, QUICK)
        assert tab.text("status-text").startswith("Ready after ")
        assert tab.text("facts") == "5,163 lines, 26 different letters"
        assert "blindly among 27 has a loss of 3.30" in tab.text("loss-words")
        tab.click("train")
        tab.trained("60")
        assert tab.get("document.querySelector('#curve svg').ariaLabel").startswith("Loss in nats: mean of 3 from ")
        losses = Handler.current.playground.run.losses[:60]
        assert tab.text("loss") == f"{losses.mean():.2f}"
        choices = math.exp(losses.mean())
        assert tab.text("loss-words").startswith(
            f"As unsure as if it chose among {choices:.1f} equally likely letters."
        )
        shown = tab.get("[...document.querySelectorAll('#samples li')].map((item) => item.textContent)")
        assert shown == Handler.current.model.generate(24, 0.5, 1)
        known = len([text for text in shown if text in microgpt.read_documents()])
        assert tab.text("known").startswith(f"{known} of these 24 are in the data")
        assert tab.get("document.querySelectorAll('#samples .known').length") == known
        params = Handler.current.model.num_params
        assert tab.text("params") == f"{params:,} parameters"
        assert tab.messages() == []
        assert all(url.startswith((address.removesuffix("examples/browser/"), "data:")) for url in tab.requests())

    def test_held_out_data_show_what_is_learnt_by_heart(self, browser: Any, address: str) -> None:
        tab = Tab(browser, address, QUICK + "&data=elements&val_fraction=0.1")
        tab.click("train")
        tab.trained("60")
        validation = Handler.current.playground.run.validation_losses[-1][1]
        assert tab.text("loss") == f"{validation:.2f}"
        assert tab.text("loss-words").startswith("On data that it has not seen, it is as unsure as if it chose among ")
        tab.set("steps", 1500)
        tab.set("n_embd", "32")
        tab.set("text", "ab\nba\n" * 9 + "zz\nyy\nxx\nww\n")
        tab.click("train")
        tab.trained("1,500")
        assert tab.text("loss-words").startswith("On data that it has not seen, it does worse than guessing")

    def test_letters_show_probabilities_and_attention(self, browser: Any, address: str) -> None:
        tab = Tab(browser, address, QUICK)
        tab.click("train")
        tab.trained("60")
        drawing = Handler.current.ask("draw", temperature=0.5, seed=1)["drawing"]
        tab.browser.execute_script("[...document.querySelectorAll('#letters button.tile')].at(-1).click()")
        step = drawing["steps"][-1]
        labels = tab.get("[...document.querySelectorAll('#letters .next bdi')].map((each) => each.textContent)")
        assert labels == [label for label, _ in step["candidates"]]
        assert tab.get("document.querySelector('#letters .next .came bdi').textContent") == step["label"]
        tab.press("\ue004")  # so that the next line starts anywhere but at the letters
        cells = tab.get(
            "[...document.querySelectorAll('#letters .scroll tbody tr')].map("
            "(row) => [...row.querySelectorAll('.weight')].map((cell) => cell.textContent).filter(Boolean)"
            ".map((text) => parseFloat(text.replace('<', '')) / 100))"
        )
        assert np.abs(np.array(cells) - np.array(step["attention"][0])).max() <= 0.0051
        assert np.abs(np.sum(cells, axis=1) - 1).max() < 0.1

    def test_a_run_is_stopped_and_continued(self, browser: Any, address: str) -> None:
        tab = Tab(browser, address, "#steps=1000000&n_embd=8&n_head=2")
        tab.click("train")
        tab.wait("document.querySelectorAll('#samples li').length")
        assert tab.get("document.getElementById('train').hidden")
        tab.click("stop")
        tab.wait("document.getElementById('status-text').textContent.startsWith('Stopped after')")
        tab.wait("!document.getElementById('continue').hidden")
        assert tab.get("document.getElementById('stop').hidden")
        step = Handler.current.playground.run.step
        assert f"Stopped after {step:,} steps" in tab.text("status-text")
        tab.click("continue")
        tab.wait("!document.getElementById('stop').hidden")
        time.sleep(0.3)
        tab.click("stop")
        tab.wait("document.getElementById('status-text').textContent.startsWith('Stopped after')")
        assert Handler.current.playground.run.step > step
        assert tab.text("train") == "Start over"

    def test_settings_are_in_the_address(self, browser: Any, address: str) -> None:
        chosen = {
            "data": "sums", "format": "text", "n_embd": "32", "n_layer": "2", "n_head": "8", "block_size": "64",
            "steps": "123", "batch_size": "16", "learning_rate": "0.003", "dtype": "float32", "val_fraction": True,
            "temperature": "1.3",
        }  # fmt: skip
        tab = Tab(browser, address)
        assert tab.get("location.hash") == ""
        for name, value in chosen.items():
            tab.set(name, value)
        fragment = tab.get("location.hash")
        assert "data=sums" in fragment
        other = Tab(browser, address, fragment)
        for name, value in chosen.items():
            field = f"document.getElementById('{name}')"
            assert other.get(f"{field}.checked" if name == "val_fraction" else f"{field}.value") == value
        assert other.text("facts") == "21,445 letters, 13 different letters"
        assert other.get("location.hash") == fragment
        hostile = Tab(
            browser, address, "#n_embd=7&steps=-1&data=<img>&temperature=NaN&toString=1&dtype=float16&steps=1e9"
        )
        assert hostile.get("location.hash") == ""
        assert hostile.messages() == []

    def test_own_text_is_trained_on_and_errors_are_shown(self, browser: Any, address: str) -> None:
        tab = Tab(browser, address, QUICK)
        tab.set("text", "<b>x</b>\n<i>y</i>\n")
        assert tab.get("document.getElementById('data').value") == "own"
        assert "data" not in tab.get("location.hash")
        tab.click("train")
        tab.trained("60")
        assert "<" in tab.text("samples")
        assert tab.get("document.querySelectorAll('#samples b, #samples i, #letters b').length") == 0
        tab.set("text", "")
        tab.click("train")
        tab.wait("document.getElementById('error').textContent")
        assert tab.text("error").startswith("your text has no documents")
        tab.set("data", "elements")
        tab.wait("document.getElementById('facts').textContent.startsWith('118 lines')")
        tab.click("train")
        tab.wait("document.getElementById('error').textContent === ''")
        assert tab.messages() == []

    def test_a_model_is_downloaded_and_opened(self, browser: Any, address: str, tmp_path: Path) -> None:
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        tab = Tab(browser, address, QUICK)
        tab.click("train")
        tab.trained("60")
        samples, loss = tab.text("samples"), tab.text("loss")
        file, deadline = tmp_path / "model.safetensors", time.monotonic() + HANGS
        tab.click("save")
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert microgpt.load(file).state_dict()["wte"].tolist() == Handler.current.model.state_dict()["wte"].tolist()
        tab = Tab(browser, address)
        tab.browser.find_element("id", "open").send_keys(str(file))
        tab.wait("document.getElementById('status-text').textContent === 'Opened the model'")
        tab.wait("document.querySelectorAll('#letters .tile').length")
        assert (tab.text("samples"), tab.text("loss")) == (samples, loss)
        assert tab.messages() == []

    def test_the_keyboard_alone_does_everything(self, browser: Any, address: str) -> None:
        enter, right, home, space = "\ue007", "\ue014", "\ue011", " "
        tab = Tab(browser, address, QUICK)
        tab.press("\ue004")
        assert tab.get("document.activeElement.className") == "skip"
        tab.tab_to("train")
        tab.press(enter)
        tab.trained("60")
        tab.tab_to("steps")
        tab.press("\ue009a", "\ue000", "70", enter)  # Ctrl+A, release, 70, Enter
        tab.trained("70")
        tab.tab_to("temperature")
        tab.press(right)
        assert tab.get("document.getElementById('temperature').value") == "0.6"
        tab.tab_to("again")
        before = tab.text("samples")
        tab.press(space)
        tab.wait(f"document.getElementById('samples').textContent !== {json.dumps(before)}")
        tab.tab_to("prompt")
        tab.press("jo", enter)
        tab.wait(
            "[...document.querySelectorAll('#letters .tile')].map((t) => t.textContent).join('').startsWith('BOSjo')"
        )
        for _ in range(20):
            if tab.get("document.activeElement.matches('#letters button.tile')"):
                break
            tab.press("\ue004")
        tab.press(home)
        assert tab.get("document.querySelector('#letters h3').firstChild.textContent") == "At the beginning"
        tab.press(right, right)
        assert tab.get("document.activeElement.getAttribute('aria-label')").startswith(
            Handler.current.ask("draw", temperature=0.6, prompt="jo", seed=3)["drawing"]["steps"][2]["label"]
        )
        assert tab.get("document.activeElement.getAttribute('aria-pressed')") == "true"
        assert tab.get("document.querySelector('#letters h3').firstChild.textContent") == "After “jo”"
        for id in ("save", "open", "share", "reset", "file"):
            tab.browser.execute_script("document.activeElement.blur()")
            tab.tab_to(id)

    @pytest.mark.parametrize("width", [320, 375, 800, 1280])
    def test_nothing_is_wider_than_the_screen(self, browser: Any, address: str, width: int) -> None:
        metrics = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            tab = Tab(browser, address, QUICK + "&block_size=64&n_layer=2")
            tab.set("text", "supercalifragilisticexpialidocious\n" * 3)
            tab.click("train")
            tab.trained("60")
            assert tab.get("document.documentElement.scrollWidth") <= width
            assert tab.get("document.getElementById('train').getBoundingClientRect().top") < 700
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def offline(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page with Pyodide, all of it from a local folder."""
    if PYODIDE is None:
        pytest.skip("MICROGPT_PYODIDE names no folder with Pyodide and wheels")
    folder = tmp_path_factory.mktemp("offline")
    command = [sys.executable, str(BROWSER / "offline.py"), str(folder), "--pyodide", PYODIDE]
    subprocess.run(command, check=True, capture_output=True)
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    for server in serve(functools.partial(handler, directory=folder)):
        yield f"{server}/"
    shutil.rmtree(folder)


def test_chromium_trains_in_webassembly_without_a_network(browser: Any, offline: str) -> None:
    tab = Tab(browser, offline, "#steps=1500")  # more than a curve has points
    assert "compiled engine is missing" not in tab.text("status-text")
    tab.click("train")
    tab.trained("1,500")
    shown = tab.get("[...document.querySelectorAll('#samples li')].map((item) => item.textContent)")
    model = microgpt.train(steps=1500).model
    same = sum(a == b for a, b in zip(shown, model.generate(24, 0.5, 1)))
    assert same >= 20  # its C library may round otherwise
    assert tab.messages() == []
    assert all(url.startswith((offline, "blob:", "data:")) for url in tab.requests())
