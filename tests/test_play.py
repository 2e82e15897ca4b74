"""The part of a report that plays: its JavaScript computes and draws what the engine does, in node and in Chromium."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt import GPT, ByteTokenizer, CharTokenizer, GPTConfig, HuggingFaceTokenizer
from microgpt.config import ACTIVATIONS
from microgpt.data.tokenizer import Tokenizer
from microgpt.display.labels import token_labels
from microgpt.random.splitmix import uniform_of
from microgpt.report import play
from microgpt.report.document import resource
from microgpt.report.page import report_page, write_report
from microgpt.sampling import context_length, next_probabilities

from conftest import COMPILED_IS_THERE, HANGS, Tab, needs_compiled, needs_processes


def make_model(tokenizer: Tokenizer | None, format: str | None = None, **sizes: Any) -> GPT:
    """A model whose probabilities differ, although it has learnt nothing."""
    sizes = {"n_embd": 6, "n_head": 3, "block_size": 8, "init_std": 0.5, **sizes}
    vocab_size = tokenizer.vocab_size if tokenizer else 9
    return GPT(GPTConfig(vocab_size=vocab_size, **sizes), 5, tokenizer=tokenizer, format=format)


LETTERS = CharTokenizer("abcdefgh")
CASES = {  # each a model, and beginnings of documents
    "relu": (make_model(LETTERS), ["", "abba", "abcdefg"]),
    "gelu in layers": (make_model(LETTERS, n_layer=3, activation="gelu"), ["bad"]),
    "silu with a head": (make_model(LETTERS, n_layer=2, n_head=1, activation="silu"), ["bad"]),
    "beyond the context": (make_model(LETTERS, n_layer=2), ["abcdefgh", "hgfedcbahgfedcbahgf"]),
    "context of 1": (make_model(LETTERS, block_size=1), ["", "ab"]),
    "added characters": (make_model(CharTokenizer("bd", added="aé")), ["", "dabé"]),
    "bytes": (make_model(ByteTokenizer()), ["", "aé😀"]),
    "bytes of a text": (make_model(ByteTokenizer("\n"), n_layer=2), ["", "é\nb"]),
    "a text": (make_model(CharTokenizer("abc \n", bos="\n")), ["", "a b\nca b\nc"]),
    "a text of one line": (make_model(CharTokenizer("abc "), format="text"), ["", "a bca bca"]),
}


SEEDS = 20 if COMPILED_IS_THERE else 3  # the reference takes seconds for each


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text of hundreds of tokens in each page."""
    monkeypatch.setattr("microgpt.report.samples.TEXT_TOKENS", 3)


def contents_of(page: str) -> Any:
    """The description of the model that a page gives its script."""
    return json.loads(re.search(r'<script type="application/json" id="play-model">(.*)</script>', page)[1])


def run_in_node(model: GPT, code: str) -> Any:
    """The value of an expression of JavaScript, with the modules of the page and its contents as `page`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not there")
    modules = play.joined(play.MODULES[:-1])
    page = json.dumps(contents_of(play.play_section(model)))
    source = f"{modules}\nconst page = {page};\nconsole.log(JSON.stringify({code}));"
    command = [node, "--input-type=module"]
    done = subprocess.run(command, input=source, capture_output=True, encoding="utf-8", timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


READER = """(() => {
  const tokenizer = makeTokenizer(page.tokenizer);
  const reader = new Reader({ stateDict: readStateDict(page.parameters, page.shapes), config: page.config });
  %s
})()"""


@needs_processes
@pytest.mark.parametrize("case", CASES)
def test_node_computes_the_engines_probabilities_and_attention(case: str) -> None:
    model, texts = CASES[case]
    found = run_in_node(
        model,
        READER
        % f"""return {json.dumps(texts)}.map((text) => {{
            const tokens = tokenizer.encode(text);
            const given = page.reads_bos ? [page.bos, ...tokens] : tokens;
            reader.read(given.length ? given : [page.bos]);
            const {{ logits, attention }} = reader.outputs.at(-1);
            return [tokens, [...softmax(logits)], attention.map((heads) => heads.map((weights) => [...weights]))];
        }})""",
    )
    for text, (tokens, probabilities, attention) in zip(texts, found, strict=True):
        context = model._context(model.tokenizer.encode(text))
        assert tokens == model.tokenizer.encode(text)
        assert np.abs(probabilities - next_probabilities(model.engine, context)).max() < 1e-5
        read = context.read()
        seen = read[-context_length(len(read), model.config.block_size) :]
        assert np.abs(attention - model.attention(seen)[:, :, -1]).max() < 1e-5


@needs_processes
def test_node_reads_a_text_that_is_changed_as_one_that_is_not() -> None:
    model, _ = CASES["beyond the context"]
    texts = ["abcdefghabcd", "abcdefghabca", "abc", "abcdefghab", "h", "abcdefghab"]
    found = run_in_node(
        model,
        READER
        % f"""return {json.dumps(texts)}.map((text) => {{
            reader.read(tokenizer.encode(text));
            return reader.outputs.map(({{ logits }}) => [...logits]);
        }})""",
    )
    for text, outputs in zip(texts, found, strict=True):
        tokens = model.tokenizer.encode(text)
        assert len(outputs) == len(tokens)
        seen = tokens[-context_length(len(tokens), model.config.block_size) :]
        assert np.abs(np.array(outputs[-1]) - model.logits(seen)[-1]).max() < 1e-4
        assert np.abs(np.array(outputs[:8]) - model.logits(tokens[:8])).max() < 1e-4


@needs_processes
def test_node_draws_what_the_sampler_draws() -> None:
    model, _ = CASES["relu"]
    options = [(1.0, None), (0.7, 3), (2.0, 1), (0.0, None), (1e-31, 5), (0.5, 100)]
    found = run_in_node(
        model,
        READER
        % f"""const seeds = {list(range(SEEDS))};
        return {json.dumps(options)}.map(([temperature, topK]) => seeds.map((seed) => {{
            const drawn = [];
            while (drawn.at(-1) !== page.bos && drawn.length < page.config.block_size) {{
                reader.read([page.bos, ...drawn]);
                const probabilities = nextProbabilities(reader.outputs.at(-1).logits, temperature, topK ?? Infinity);
                drawn.push(drawToken(probabilities, uniformOf(seed, drawn.length)));
            }}
            return drawn.filter((token) => token !== page.bos);
        }}))""",
    )
    for (temperature, top_k), documents in zip(options, found, strict=True):
        expected = [model.generate_tokens(1, temperature, seed, top_k=top_k)[0] for seed in range(SEEDS)]
        assert documents == expected


@needs_processes
def test_node_has_the_functions_of_the_reference() -> None:
    model, _ = CASES["relu"]
    numbers = [-30.0, -6.5, -5.9, -2.0, -0.3, 0.0, 1e-9, 0.7, 3.1, 6.1, 800.0]
    ties = [0.25, 0.5, 0.5, 0.0, 0.5]
    calls = [(0, 0), (7, 3), (2**53 - 1, 250)]
    found = run_in_node(
        model,
        f"""{{
            names: Object.keys(ACTIVATIONS),
            erf: {numbers}.map(erf), gelu: {numbers}.map(ACTIVATIONS.gelu), silu: {numbers}.map(ACTIVATIONS.silu),
            likeliest: [1, 2, 5].map((n) => likeliestOf({ties}, n)),
            greedy: [...nextProbabilities({ties}, 0)], two: [...nextProbabilities({ties}, 1, 2)],
            drawn: [0, 0.3, 0.9999].map((uniform) => drawToken([0, 0.5, 0.25, 0.25, 0], uniform)),
            uniforms: {json.dumps(calls)}.map(([seed, number]) => uniformOf(seed, number)),
        }}""",
    )
    assert tuple(found["names"]) == ACTIVATIONS
    assert found["erf"] == pytest.approx([math.erf(x) for x in numbers], abs=1e-15)
    assert found["gelu"] == pytest.approx([x * (1 + math.erf(x * 0.5**0.5)) / 2 for x in numbers], abs=1e-14)
    assert found["silu"] == pytest.approx([x / (1 + math.exp(-x)) for x in numbers])
    assert found["likeliest"] == [[1], [1, 2], [1, 2, 4, 0, 3]]
    assert found["greedy"] == [0, 1, 0, 0, 0]
    assert found["two"] == [0, 0.5, 0.5, 0, 0]
    assert found["drawn"] == [1, 1, 3]
    assert found["uniforms"] == [uniform_of(seed, 0, number) for seed, number in calls]


@needs_processes
def test_node_names_an_unknown_character_and_shows_incomplete_bytes() -> None:
    named = """["xé", "a\\u00a0"].map((text) => {
        try { makeTokenizer(page.tokenizer).encode(text) } catch (error) { return error.message }
    })"""
    assert run_in_node(make_model(CharTokenizer("ax")), named) == [
        "The model does not know “é” (U+00E9), character 2.",
        "The model does not know U+00A0, character 2.",
    ]
    decoded = "[[97, 195], [97, 195, 169], [256, 240, 159, 152], [255, 98]].map((tokens) => tokenizer.decode(tokens))"
    assert run_in_node(make_model(ByteTokenizer()), READER % f"return {decoded}") == ["a", "aé", "", "\ufffdb"]


def test_a_page_holds_the_parameters_as_float32() -> None:
    import base64

    model, _ = CASES["gelu in layers"]
    contents = contents_of(report_page(model, samples=0))
    numbers = np.frombuffer(base64.b64decode(contents["parameters"]), "<f4")
    start = 0
    for (name, shape), matrix in zip(contents["shapes"].items(), model.state_dict().values(), strict=True):
        assert tuple(shape) == matrix.shape == model.state_dict()[name].shape
        assert numbers[start : start + matrix.size].tolist() == matrix.astype(np.float32).ravel().tolist()
        start += matrix.size
    assert start == len(numbers)


def test_a_page_that_does_not_play_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(LETTERS)
    monkeypatch.setattr(play, "MOST_PARAMETERS", model.num_params - 1)
    page = report_page(model, samples=0)
    assert f"does not run the model, because it has {model.num_params:,} parameters; models of at most" in page
    assert "<script" not in page
    monkeypatch.setattr(play, "MOST_PARAMETERS", model.num_params)
    assert page.count("<section ") == report_page(model, samples=0).count("<section ")
    assert page.index(">Model</h2>") < page.index(">Play</h2>")
    page = report_page(model, samples=0)
    assert page.index(">Play</h2>") < page.index(">Model</h2>")
    without = report_page(model, samples=0, play=False)
    assert "Play" not in without
    assert "<script" not in without
    model.state_dict()["wpe"][0, 0] = 1e39
    page = report_page(model, samples=0)
    assert "because some of its parameters are beyond the largest float32." in page
    assert "<script" not in page


@pytest.mark.parametrize("case", ["relu", "a text"])
def test_only_a_text_has_a_field_of_several_lines_and_can_be_scrolled(case: str) -> None:
    model, _ = CASES[case]
    section = play.play_section(model)
    is_text = model.format == "text"
    assert ('<textarea rows="2" id="play-beginning"' in section) == is_text
    assert ('<input type="text" id="play-beginning"' in section) != is_text
    assert ('tabindex="0"' in section) == is_text
    for name in ("play-beginning", "play-written", "play-given", "play-drawn"):
        assert section.count(f'id="{name}"') == 1
    untyped = play.play_section(make_model(None))
    assert "play-given" not in untyped
    assert 'id="play-beginning"' not in untyped


def test_the_modules_can_be_joined() -> None:
    script = play.joined()
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    assert not re.search(r"</script|<!--|innerHTML|\beval\b|://", script)
    names = re.findall(r"^(?:async )?(?:const|let|class|function) (\w+)", script, re.MULTILINE)
    assert len(names) == len(set(names)) > 40
    for package, name in play.MODULES:
        for imported in re.findall(r'from "(.*)";', resource(package, name)):
            assert Path(imported).name in [module for _, module in play.MODULES]


class Play(Tab):
    """A page that plays, in Chromium."""

    def __init__(self, browser: Any, model: GPT, folder: Path, fragment: str = "") -> None:
        write_report(model, folder / "page.html", samples=0)
        super().__init__(browser, (folder / "page.html").as_uri(), fragment, "playable")
        self.wait_until_drawn()
        self.model = model

    def candidates(self) -> dict[str, float]:
        """The probability of each token that is listed, by its label."""
        rows = self.get(
            "[...document.querySelectorAll('.next .candidate')].map((row) => "
            "[row.querySelector('bdi').textContent, parseFloat(row.style.getPropertyValue('--share')) / 100])"
        )
        assert len(rows) == len(dict(rows))
        return dict(rows)

    def expected(self, tokens: list[int]) -> dict[str, float]:
        """The probability of each token after these, by its label."""
        probabilities = next_probabilities(self.model.engine, self.model._context(tokens))
        return dict(zip(token_labels(self.model, range(len(probabilities))), probabilities.tolist()))

    def wait_until_drawn(self) -> None:
        self.wait("document.querySelector('.player button').textContent === 'Play'")

    def tiles(self) -> list[str]:
        return self.get("[...document.querySelectorAll('.tile')].map((tile) => tile.textContent)")


@pytest.mark.parametrize("case", CASES)
def test_chromium_shows_the_engines_probabilities(browser: Any, tmp_path: Path, case: str) -> None:
    model, texts = CASES[case]
    tab = Play(browser, model, tmp_path)
    tab.set("play-temperature", 1)
    for text in texts:
        tab.set("play-beginning", text)
        expected = tab.expected(model.tokenizer.encode(text))
        found = tab.candidates()
        assert len(found) == min(10, model.config.vocab_size)
        assert list(found) == sorted(expected, key=lambda label: -expected[label])[: len(found)]
        assert found == pytest.approx({label: expected[label] for label in found}, abs=1e-5)
        assert tab.text("play-given") == text
    assert tab.messages() == []
    assert [url for url in tab.requests() if url[:5] != "data:"] == [(tmp_path / "page.html").as_uri()]


@needs_compiled
@pytest.mark.parametrize("case", ["relu", "beyond the context", "bytes", "a text", "a text of one line"])
def test_chromium_draws_what_generate_draws(browser: Any, tmp_path: Path, case: str) -> None:
    model, texts = CASES[case]
    tab = Play(browser, model, tmp_path)
    tab.set("play-temperature", 1)
    tab.set("play-top-k", 4)
    for text in texts:
        for seed in (1, 2):
            tab.set("play-beginning", text)
            tab.set("play-seed", seed)
            tab.press_button("To the end")
            tab.wait_until_drawn()
            options: dict[str, Any] = {"temperature": 1.0, "top_k": 4, "seed": seed}
            if model.format == "text":
                expected = text + "".join(model.stream(text, max_tokens=200, **options))
            else:
                (expected,) = model.generate(prompt=text, **options)
            assert tab.get("document.querySelector('.written').textContent") == expected.rstrip("\ufffd")
    assert tab.messages() == []


def test_chromium_draws_letter_by_letter(browser: Any, tmp_path: Path) -> None:
    model, _ = CASES["gelu in layers"]
    tab = Play(browser, model, tmp_path)
    tab.set("play-beginning", "ab")
    assert tab.tiles() == ["BOS", "a", "b", ""]
    assert tab.heading() == "After “ab”"
    tab.press_button("Forward")
    (whole,) = model.generate(1, 0.5, seed=1, prompt="ab")
    assert tab.tiles() == ["BOS", "a", "b", whole[2], ""]
    assert tab.get("document.querySelector('.came bdi').textContent") == whole[2]
    rows = "[...document.querySelectorAll('.letters .scroll tbody tr')].map((row) => "
    rows += "[...row.querySelectorAll('.weight:not(.is-unseen)')].map((cell) => cell.title))"
    attention = model.attention([model.bos, 0, 1])[0, :, 2]
    assert len(tab.get(rows)) == 3
    for titles, weights in zip(tab.get(rows), attention):
        assert [title.split(" to ")[1] for title in titles] == ["BOS", "a", "b"]
        assert [float(title.split("%")[0]) / 100 for title in titles] == pytest.approx(weights.tolist(), abs=0.0051)
    tab.press_button("Forward")
    assert tab.heading() == f"After “{whole[:3]}”"
    tab.press_button("Back")
    tab.press_button("Back")
    assert tab.heading() == "After “a”"
    layer, head = "document.querySelectorAll('.player select')[0]", "document.querySelectorAll('.player select')[1]"
    for select, value, count in ((layer, "all", 9), (head, "2", 3), (layer, "1", 1)):
        tab.get(f"{select}.value = '{value}', {select}.dispatchEvent(new Event('change'))")
        assert len(tab.get(rows)) == count
    (titles,) = tab.get(rows)
    assert float(titles[0].split("%")[0]) / 100 == pytest.approx(
        model.attention([model.bos, 0])[1, 2, 1, 0], abs=0.0051
    )
    tab.get("[...document.querySelectorAll('.next button')].at(1).click()")  # in the place of b
    tab.wait("document.querySelectorAll('.tile').length === 4")
    assert tab.value("play-beginning") == "a"
    assert tab.tiles()[:2] == ["BOS", "a"]
    assert tab.tiles()[2] == token_labels(model, np.argsort(-model.logits([model.bos, 0])[-1], kind="stable"))[1]
    assert tab.messages() == []


def test_chromium_refuses_what_the_model_does_not_know(browser: Any, tmp_path: Path) -> None:
    model, _ = CASES["relu"]
    tab = Play(browser, model, tmp_path)
    tab.set("play-beginning", "ab")
    tab.set("play-beginning", "abc<é")
    assert tab.text("play-refusal") == "The model does not know “<” (U+003C), character 4."
    assert tab.value("play-beginning") == "abc<é"
    assert tab.tiles() == ["BOS", "a", "b", ""]
    tab.click("play-draw")
    assert tab.tiles() == ["BOS", "a", "b", ""]
    tab.set("play-beginning", "abc")
    assert tab.text("play-refusal") == ""
    tab.set("play-seed", "")
    tab.set("play-top-k", "0")
    assert len(tab.candidates()) == 9
    tab.set("play-temperature", 0)
    likeliest = model.logits([model.bos, 0, 1, 2]).argmax(axis=1)
    for tile, token in zip((1, 2), likeliest[:2]):
        tab.get(f"document.querySelector('[data-letter=\"{tile}\"]').click()")
        assert tab.candidates() == {token_labels(model, [token])[0]: 1.0, "abc"[tile - 1]: 0.0}
    assert tab.messages() == []


def test_chromium_draws_after_the_beginning_that_the_field_shows(browser: Any, tmp_path: Path) -> None:
    model, _ = CASES["relu"]
    tab = Play(browser, model, tmp_path)
    pick = "document.querySelector('.next button').click()"
    for draw in (lambda: tab.get(pick), lambda: tab.press_button("Forward")):
        tab.set("play-beginning", "ab")
        tab.set("play-beginning", "ab?")
        assert "“?”" in tab.text("play-refusal")
        draw()
        assert tab.tiles()[:3] == ["BOS", "a", "b"]
        assert tab.value("play-beginning") == tab.text("play-given") == "ab"
        assert tab.text("play-refusal") == ""
    assert tab.messages() == []


def test_chromium_restarts_a_full_context(browser: Any, tmp_path: Path) -> None:
    model, _ = CASES["beyond the context"]
    tab = Play(browser, model, tmp_path)
    tab.set("play-temperature", 1)
    tab.set("play-beginning", "abcdefgh")  # with BOS, one more than the context
    hidden = "[...document.querySelector('.scroll tbody tr').querySelectorAll('.weight')].map((cell) => "
    hidden += "cell.classList.contains('is-unseen'))"
    assert tab.get(hidden) == [True] * 5 + [False] * 4 + [True]
    assert tab.heading() == "After “…efgh”"
    tab.set("play-beginning", "hgfedcba" * 20)
    assert len(tab.tiles()) == 72
    assert tab.get("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_chromium_walks_through_tokens_that_it_cannot_encode(browser: Any, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {token: i for i, token in enumerate(["jo", "an", "na", "</script>", "<b>"])}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "jo"))
    for tokenizer in (HuggingFaceTokenizer(library.to_str()), None):
        model = make_model(tokenizer)
        tab = Play(browser, model, tmp_path)
        tab.set("play-temperature", 1)
        assert tab.get("document.getElementById('play-beginning')") is None
        tab.set("play-seed", 2)
        assert tab.candidates() == pytest.approx(tab.expected([]), abs=1e-5)
        (second,) = tab.get("[[...document.querySelectorAll('.next button')].map((each) => each.textContent)[1]]")
        tab.get("document.querySelectorAll('.next button')[1].click()")
        labels = token_labels(model, range(model.config.vocab_size))
        if second != "BOS":
            assert tab.tiles() == ["BOS", second, ""]
            assert tab.candidates() == pytest.approx(tab.expected([labels.index(second)]), abs=1e-5)
        tab.press_button("Forward")
        assert tab.get("document.querySelectorAll('.letters b').length") == 0
        assert tab.messages() == []


def test_chromium_needs_only_the_keyboard(browser: Any, tmp_path: Path) -> None:
    tab_key, enter, left, right, home = "\ue004", "\ue007", "\ue012", "\ue014", "\ue011"
    model, _ = CASES["relu"]
    tab = Play(browser, model, tmp_path)
    tab.tab_to("play-beginning")
    tab.press("ab")
    tab.tab_to("play-temperature")
    tab.press(right)
    assert tab.text("play-temperature-value") == "0.6"
    tab.tab_to("play-draw")
    tab.press(enter)
    (whole,) = model.generate(1, 0.6, seed=1, prompt="ab")
    tab.wait(f"document.querySelector('.written').textContent === '{whole}'")
    tab.wait_until_drawn()
    while not tab.get("document.activeElement.matches('.tile')"):
        tab.press(tab_key)
    tab.press(home)
    assert tab.heading() == "At the beginning"
    tab.press(right, right, left)
    assert tab.heading() == "After “a”"
    assert tab.get("document.activeElement.getAttribute('aria-label')") == "b, letter 2: given"
    tab.press(tab_key)
    assert tab.get("document.activeElement.matches('.next button')")
    tab.press(enter)
    tab.wait("document.querySelectorAll('.tile').length === 4")
    assert tab.value("play-beginning") == "a"
    tab.press(enter)  # the likeliest again
    assert len(tab.tiles()) == 5
    while tab.get("document.activeElement.textContent") != "Forward":
        tab.press("\ue008" + tab_key + "\ue008")  # Shift
    tab.press(enter)
    assert tab.get("document.activeElement.textContent") == "Forward"
    assert tab.messages() == []


def test_chromium_runs_no_script_of_others(browser: Any, tmp_path: Path) -> None:
    """The page's policy holds even where something was not escaped."""
    model, _ = CASES["relu"]
    write_report(model, tmp_path / "page.html", samples=0)
    page = (tmp_path / "page.html").read_text("utf-8")
    attack = "<script>document.title = 'attacked'</script><img src=x onerror=\"document.title = 'attacked'\">"
    (tmp_path / "page.html").write_text(page.replace("<main>", f"<main>{attack}"), "utf-8")
    tab = Tab(browser, (tmp_path / "page.html").as_uri(), "", "playable")
    assert tab.get("document.title") == "A GPT of microgpt"
