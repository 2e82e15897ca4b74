"""The page about a model: complete, escaped, reproducible, and shown by a browser without errors."""

from __future__ import annotations

import html
import json
import math
import os
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from microgpt import GPT, ByteTokenizer, CharTokenizer, GPTConfig
from microgpt.commands import cli
from microgpt.commands.report import names_of
from microgpt.history import TrainingHistory
from microgpt.report.comparison import comparison_page, write_comparison
from microgpt.report.page import report_page, write_report

from conftest import needs_compiled

HOSTILE = "<script>\"&'/=\0\n\t \x1b\x7f\xa0\u0301\u200d\u202e\u2028\ud800\ufffdאשلاℵ日本😀👩$%{}\\"


def make_model(characters: str, backend: str | None = None, bos: str | None = None, **sizes: int) -> GPT:
    tokenizer = CharTokenizer(characters, bos)
    sizes = {"n_embd": 4, "n_head": 2, "n_layer": 2, "block_size": 9, **sizes}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes), 5, backend=backend, tokenizer=tokenizer)
    losses = 2 + np.random.default_rng(2).random(50)
    model.history = TrainingHistory(losses, [(0, 3.0), (50, 2.5)], {"data": "</table><script>", "n_head": 2}, 1.25)
    return model


class Page(HTMLParser):
    """A parsed page; a tag that closes another one than the last opened is an error."""

    VOID = frozenset({"meta", "link", "br", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""  # without that of scripts
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["script"]:
            self.text += data


def test_the_page_needs_nothing_else(backend) -> None:
    page = report_page(make_model("abcdefgh", backend), samples=3)
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>\n")
    assert not {"iframe", "object", "img"} & set(parsed.tags)
    assert parsed.tags.count("script") == 2  # the model, and what runs it
    for name, value in parsed.attributes:
        if name.endswith("href") or name == "src":
            assert re.match("#|data:", value)
        assert not name.startswith("on")
    assert not re.search(r"url\((?!#)|@import", page)
    assert "$" not in parsed.text


def test_every_section_and_figure_is_there(backend) -> None:
    parsed = Page(report_page(make_model("abcdefgh", backend), text="abba", samples=3))
    assert parsed.tags.count("section") == parsed.tags.count("h2") == 7
    assert parsed.tags.count("h3") == 2
    assert parsed.tags.count("image") == 2 * 2
    assert parsed.tags.count("figure") == 1 + 1 + 4 + 1  # losses, probabilities, attention, embedding
    assert parsed.tags.count("li") == 3 + 5  # samples, and the legend
    assert "steps50" in parsed.text
    assert "2.5000 nats, after 50 steps" in parsed.text


def test_the_probabilities_are_the_models(backend) -> None:
    model = make_model("abc", backend)
    page = Page(report_page(model, text="ab", samples=0))
    logits = model.logits([3, 0, 1])
    for row in np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True):
        order = np.argsort(-row)
        assert "".join(f"{['a', 'b', 'c', 'BOS'][i]}{100 * row[i]:.1f}%" for i in order) in page.text
    assert f"Its mean loss here is {model.loss([[3, 0, 1]]):.2f} nats" in page.text


def test_the_same_model_gives_the_same_page(backend) -> None:
    model = make_model("abcdefgh", backend)
    page = report_page(model, samples=3)
    assert report_page(model, samples=3) == page
    assert report_page(model, samples=3, seed=1) != page
    assert report_page(model, samples=0, text="abc").count("<figure") == page.count("<figure")


@pytest.mark.parametrize("bos", [None, "\n"])
def test_hostile_characters_are_escaped_and_shown(bos, capfd, monkeypatch) -> None:
    monkeypatch.setattr("microgpt.report.samples.TEXT_TOKENS", 30)
    model = make_model(HOSTILE, bos=bos)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in (None, HOSTILE[:11], HOSTILE[11:], ""):
            page = report_page(model, text=text, samples=5)
            parsed = Page(page)
            page.encode()
            assert page.count("<script") == page.count("</script") == 2
            assert "</table><script>" in parsed.text  # an option of the training
            assert {c for c in page if c < " "} <= {"\n", "\t"}
            assert not set("\x7f\xa0\u202e\u2028\ud800") & set(page)
            for label in ("<", "&", "\\n", "\\x00", "\\u202e", "\\ud800", "\\xa0", "◌\u0301", "␣", "😀", "א"):
                assert label in parsed.text
    assert capfd.readouterr() == ("", "")


def test_a_model_without_tokenizer_and_history_is_shown(backend) -> None:
    model = GPT(GPTConfig(vocab_size=1, n_embd=1, n_head=1, block_size=1), backend=backend)
    parsed = Page(report_page(model, samples=3))
    assert "BOS100.0%" in parsed.text
    assert "has no record of its training" in parsed.text
    with pytest.raises(ValueError, match="text needs a model with a tokenizer"):
        report_page(model, text="a")


def test_text_beyond_the_context_is_cut() -> None:
    parsed = Page(report_page(make_model("ab", block_size=4), text="abababab", samples=0))
    assert "The text has 9 tokens, BOS included; the first 4 are shown." in parsed.text
    assert parsed.tags.count("image") == 4


@needs_compiled
def test_large_models_make_pages_of_bounded_size() -> None:
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 6000)))
    model = make_model(characters, "compiled", n_layer=30, n_head=8, n_embd=16, block_size=256)
    for name, matrix in model.state_dict().items():
        if "attn_w" in name:
            matrix *= 20  # attention with all kinds of weights
    page = report_page(model, text=characters[:300], samples=2)
    assert len(page.encode()) < 5_000_000
    assert "8 of 8 heads in 18 of 30 layers are shown." in page
    assert "The first 300 tokens are labelled." in page
    assert page.count("<image ") == 144


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "aé"}, "^text: character 'é' at position 1 is not one the tokenizer knows"),
        ({"samples": -1}, "samples must be at least 0, got -1"),
        ({"seed": math.nan}, "seed must be finite, got nan"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_nothing_written(tmp_path, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        write_report(make_model("abc"), tmp_path / "page.html", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["page.pdf", "page.html.gz", "page", ".html", "model.safetensors"])
def test_a_page_is_written_to_no_file_that_promises_something_else(tmp_path, name) -> None:
    with pytest.raises(ValueError, match=rf"^a report must end in \.html or \.htm, got .*{name}$"):
        write_report(make_model("abc"), tmp_path / name)
    assert os.listdir(tmp_path) == []
    for right in ("page.htm", "PAGE.HTML"):
        write_report(make_model("abc"), tmp_path / right)
    assert len(os.listdir(tmp_path)) == 2


def test_parameters_that_are_no_numbers_are_refused() -> None:
    model = make_model("abc")
    model.state_dict()["wpe"][0, 0] = np.nan
    with pytest.raises(
        ValueError, match="report needs finite parameters, but not all of wpe are: training has diverged"
    ):
        report_page(model)


def test_the_command_writes_a_page(tmp_path, monkeypatch, capsys, backend) -> None:
    pytest.importorskip("microgpt.checkpoint")
    monkeypatch.chdir(tmp_path)
    model = make_model("abc", backend)
    model.save("model.safetensors")
    assert cli.main(["report", "model.safetensors", "--text", "abcab", "--samples=2", "--seed=7"]) == 0
    size = os.path.getsize("report.html")
    assert capsys.readouterr() == (f"report.html: {size:,} bytes\n", "")
    assert Path("report.html").read_text("utf-8").count("<li><bdi>") == 2
    assert cli.main(["report", "model.safetensors", "--no-play"]) == 0
    assert "<script" not in Path("report.html").read_text("utf-8")
    capsys.readouterr()
    model.save("model.html")
    assert cli.main(["report", "model.html", "--out", "./model.html"]) == 2
    message = "model and out must be different files, got ./model.html for both"
    assert capsys.readouterr().err == f"microgpt: error: {message}\n"
    assert cli.main(["report", "model.safetensors", "--out", "nowhere/page.html"]) == 2
    assert capsys.readouterr().err == "microgpt: error: cannot write nowhere/page.html: No such file or directory\n"


def show(browser, page: Path) -> tuple[list[str], list[str]]:
    """Open a page, and return its console messages and the addresses that it requests."""
    for log in ("browser", "performance"):
        browser.get_log(log)  # discard earlier entries
    browser.get(page.as_uri())
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [entry["message"] for entry in browser.get_log("browser")], [url for url in sent if url[:5] != "data:"]


def test_the_browser_tells_errors_and_requests(browser, tmp_path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<link rel='icon' href='data:,'><script>console.error('x')</script><img src='nowhere.png'>")
    console, requests = show(browser, page)
    assert len(console) == 2
    assert requests == [page.as_uri(), (tmp_path / "nowhere.png").as_uri()]


@pytest.mark.parametrize("characters", ["abcdefghijklmnopqrstuvwxyz", HOSTILE], ids=["letters", "hostile"])
def test_chromium_shows_every_figure_without_error_or_request(browser, tmp_path, characters) -> None:
    page = tmp_path / "page.html"
    write_report(make_model(characters), page, text=characters[:8])
    assert show(browser, page) == ([], [page.as_uri()])
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure, figure svg, figure image, figure table')]"
        ".map(e => [e.tagName, e.getBoundingClientRect().width, e.getBoundingClientRect().height])"
    )
    counts = {name: sum(tag == name for tag, _, _ in sizes) for name in ("FIGURE", "svg", "image", "TABLE")}
    assert counts == {"FIGURE": 7, "svg": 7, "image": 4, "TABLE": 1}
    assert all(width >= 50 and height >= 50 for _, width, height in sizes)
    decoded = "return Promise.all([...document.querySelectorAll('image')].map(e => {"
    decoded += "const i = new Image(); i.src = e.href.baseVal; return i.decode().then(() => i.naturalWidth) }))"
    assert browser.execute_script(decoded) == [9] * 4
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(overflow) <= 0


def test_a_model_of_continuous_text_shows_a_text(monkeypatch) -> None:
    monkeypatch.setattr("microgpt.report.samples.TEXT_TOKENS", 40)
    model = GPT(
        GPTConfig(vocab_size=7, n_embd=6, block_size=5, n_head=2), 3, tokenizer=CharTokenizer("abcde<\n", bos="\n")
    )
    page = report_page(model, seed=1)
    text = "".join(model.stream(temperature=0.5, seed=1, max_tokens=40))
    assert len(text) == 40
    assert f'<p class="text"><bdi>{html.escape(text)}</bdi></p>' in page


def test_a_page_draws_what_it_shows(monkeypatch) -> None:
    drawn: list[tuple[str, int]] = []

    def counting(name: str, count_of: str, original):
        def counted(model, *arguments, **options):
            drawn.append((name, options.get(count_of) or arguments[0]))
            return original(model, *arguments, **options)

        return counted

    monkeypatch.setattr(GPT, "stream", counting("stream", "max_tokens", GPT.stream))
    monkeypatch.setattr(GPT, "generate_tokens", counting("generate", "n", GPT.generate_tokens))
    text, lines = make_model("abcd", bos="a"), make_model("abcd")
    for page, expected in [
        (lambda: comparison_page({"one": text, "two": text}, samples=0), []),
        (lambda: comparison_page({"one": text, "two": text}), [("stream", 500)] * 2),
        (lambda: comparison_page({"one": lines, "two": lines}, samples=0), []),
        (lambda: comparison_page({"one": lines, "two": lines}, samples=3), [("generate", 3)] * 2),
        (lambda: report_page(text, text="ab", samples=0), []),
        (lambda: report_page(lines, text="ab", samples=3), [("generate", 3)]),
    ]:
        drawn.clear()
        page()
        assert drawn == expected
    assert "<p>0 tokens drawn at temperature 0.5" in report_page(text, samples=0)


def test_the_text_of_a_page_is_the_first_sample_that_is_not_empty() -> None:
    model = make_model("ab")
    model.state_dict()["lm_head"][:] = 0
    seed = next(seed for seed in range(100) if model.generate(2, 0.5, seed)[0] == "")
    first = next(filter(None, model.generate(20, 0.5, seed)))
    page = report_page(model, samples=20, seed=seed)
    assert report_page(model, samples=20, seed=seed, text=first) == page
    assert report_page(model, samples=20, seed=seed, text="") != page
    assert report_page(model, samples=1, seed=seed) == report_page(model, samples=1, seed=seed, text="")


def make_run(losses: list[float], validations: list[tuple[int, float]], **options: object) -> GPT:
    model = make_model("abcd")
    model.history = TrainingHistory(np.array(losses), validations, {"batch_size": 1, **options}, 1.25, 7, 7)
    return model


RUNS = {
    "first": make_run([3.0, 2.0], [(0, 3.1), (1, 2.1), (2, 2.25)], learning_rate=0.01),
    "a <b>": make_run([2.5] * 40, [(0, 3.2), (40, 2.2)], learning_rate=0.02, schedule="cosine"),
    "third": make_run([], [], learning_rate=0.01),
}


def table_of(page: str) -> dict[str, list[str]]:
    """The cells of each row of the page's table, by the name of the row."""
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    return {html.unescape(name): re.findall(r"<td>(.*?)</td>", cells) for name, cells in rows}


def test_a_comparison_shows_losses_differences_and_samples() -> None:
    page = comparison_page(RUNS, samples=3, seed=7)
    parsed = Page(page)
    assert {"script", "b"} & set(parsed.tags) == set()
    assert [parsed.tags.count(tag) for tag in ("h2", "figure", "path", "li")] == [3, 2, 4, 3 + 3 * 3]
    assert re.findall(r'<th scope="col"><span class="run" style="--colour: (#\w+)">([^<]*)<', page) == [
        ("#4080eb", "first"), ("#e0662f", "a &lt;b&gt;"), ("#2f9e5b", "third")
    ]  # fmt: skip
    table = table_of(page)
    assert table.pop("training loss") == ["<strong>2.5000</strong>", "<strong>2.5000</strong>", "none"]
    assert table.pop("validation loss") == ["2.2500", "<strong>2.2000</strong>", "none"]
    assert table.pop("lowest validation loss") == ["<strong>2.1000</strong>", "2.2000", "none"]
    assert table == {
        "learning_rate": ["0.01", "0.02", "0.01"],
        "schedule": ["none", "cosine", "none"],
        "steps": ["2", "40", "0"],
        "seconds": ["1.25", "1.25", "1.25"],
        "after step": ["1", "40", "none"],
        "validated on": ["all 7 held-out tokens", "all 7 held-out tokens", "none"],
    }
    assert "a &lt;b&gt;, validation from 3.20 at step 0 to 2.20 at step 40" in page
    assert "first, mean of 1 from 3.00 at step 1 to 2.00 at step 2" in page
    documents = RUNS["first"].generate(3, 0.5, 7)
    for document in documents:
        assert page.count(f"<li><bdi>{document}</bdi></li>") >= 3  # their parameters are the same
    assert comparison_page(RUNS, samples=3, seed=7) == page != comparison_page(RUNS, samples=3, seed=8)


def test_losses_of_different_tokens_are_not_compared() -> None:
    other = make_model("abc")
    page = comparison_page({"one": RUNS["first"], "two": other}, samples=0)
    assert "The models have different tokens, so their losses cannot be compared" in page
    assert "guessing" not in page
    assert "<strong>" not in page
    swapped = comparison_page({"one": RUNS["first"], "two": make_model("abce")}, samples=0)  # as many characters
    assert "No loss is marked, because the models have different tokens." in swapped
    assert "guessing" not in swapped
    assert "<strong>" not in swapped


def marked_rows(one: GPT, two: GPT) -> tuple[list[str], str]:
    """The names of the rows with a mark, and the words about marks."""
    page = comparison_page({"one": one, "two": two}, samples=0)
    words = re.search(r"is the mean of the last 100 steps\. (.*?)</p>", page)[1]
    return [name for name, cells in table_of(page).items() if "<strong>" in "".join(cells)], words


def test_the_lowest_loss_is_marked_only_where_losses_mean_the_same() -> None:
    def run(held_out: int = 9, predicted: int = 9, dropout: float = 0.0, is_validated: bool = True) -> GPT:
        config = GPTConfig(vocab_size=257, n_embd=4, n_head=1, block_size=4, dropout=dropout)
        model = GPT(config, 5, tokenizer=ByteTokenizer())
        validations = [(2, 2.5)] if is_validated else []
        model.history = TrainingHistory(np.array([3.0, 2.0]), validations, {}, 1.0, predicted, held_out)
        return model

    bold = "The lowest is bold, which means something only if all runs had the same data."
    of_validation = ["validation loss", "lowest validation loss"]
    assert marked_rows(run(), run()) == (["training loss", *of_validation], bold)
    diverged = run()
    diverged.history.losses[:] = np.nan
    page = comparison_page({"one": diverged, "two": run()}, samples=0)
    assert table_of(page)["training loss"] == ["nan", "<strong>2.5000</strong>"]
    assert marked_rows(run(), run(0, 0, is_validated=False)) == (["training loss"], bold)
    other_data = "No loss is marked, because the runs hold out different numbers of tokens: "
    rows, words = marked_rows(run(9, 8), run(10, 8))
    assert rows == []
    assert words.startswith(other_data)
    one, two = run(), run()
    for model, fingerprint in ((one, "0" * 32), (two, "0" * 32)):
        model.history = replace(model.history, fingerprint=fingerprint)
    assert marked_rows(one, two) == (["training loss", *of_validation], "The lowest is bold.")
    two.history = replace(two.history, fingerprint="1" * 32)
    assert marked_rows(one, two) == ([], "No loss is marked, because the runs had different data.")
    assert table_of(comparison_page({"one": one, "two": two}, samples=0))["data"] == ["00000000", "11111111"]
    rows, words = marked_rows(run(9, 8), run(9, 9))
    assert rows == ["training loss"]
    assert "Validation losses are not marked, because they are of different parts" in words
    rows, words = marked_rows(run(), run(dropout=0.3))
    assert rows == of_validation
    assert words.startswith(f"{bold} The training loss is not marked, because the runs differ in dropout")
    rows, words = marked_rows(run(9, 8), run(9, 9, dropout=0.3))
    assert rows == []
    assert bold not in words


def test_models_that_cannot_be_compared_are_refused(tmp_path) -> None:
    plain, text = make_model("abcd"), make_model("abcd", bos="a")
    plain.history = None
    run = RUNS["first"]
    for models, message in [
        ({"one": run}, "^models must be 2 to 8, got 1$"),
        ({str(i): run for i in range(9)}, "^models must be 2 to 8, got 9$"),
        ({"one": run, "two": plain}, "^two must have a record of its training, but it was saved without one$"),
        ({"one": run, "two": text}, "^models must have the same format, got 'lines' of one and 'text' of two$"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_comparison(models, tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"^a report must end in \.html or \.htm"):
        write_comparison(RUNS, tmp_path / "page.pdf")
    assert os.listdir(tmp_path) == []


def test_the_command_compares_models(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("microgpt.checkpoint")
    monkeypatch.chdir(tmp_path)
    for path, model in (("a/x.safetensors", "first"), ("b/x.safetensors", "third"), ("b/y.safetensors", "third")):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        RUNS[model].save(path)
    files = ["a/x.safetensors", "b/x.safetensors", "b/y.safetensors"]
    assert cli.main(["report", *files, "--out", "page.html", "--samples=1"]) == 0
    assert capsys.readouterr() == (f"page.html: {os.path.getsize('page.html'):,} bytes\n", "")
    assert "<p>a/x, b/x, y.</p>" in Path("page.html").read_text("utf-8")
    for arguments, message in [
        ([*files, "b/../a/x.safetensors"], "models must be different files, got b/../a/x.safetensors twice"),
        ([*files, "--text=a"], "text is for the page about one model, got 3 models"),
        ([*files, "--no-play"], "no_play is for the page about one model, got 3 models"),
        ([*files, "b/z.safetensors", "--out=b/y.html"], "cannot read b/z.safetensors: No such file or directory"),
    ]:
        assert cli.main(["report", *arguments]) == 2
        assert capsys.readouterr().err == f"microgpt: error: {message}\n"
    assert not Path("b/y.html").exists()


def test_files_have_short_names_that_differ() -> None:
    assert names_of(["one.safetensors", "runs/two.safetensors"]) == ["one", "two"]
    assert names_of(["x/a/m.st", "y/a/m.st", "y/b/m.st"]) == ["x/a/m", "y/a/m", "b/m"]
    assert names_of(["x/m.a", "x/m.b", "y/m.a"]) == ["x/m.a", "x/m.b", "y/m"]


def test_chromium_shows_a_comparison(browser, tmp_path) -> None:
    page = tmp_path / "page.html"
    write_comparison(RUNS, page)
    assert show(browser, page) == ([], [page.as_uri()])
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure, .run')].map((each) => each.getBoundingClientRect().height)"
    )
    assert len(heights) == 2 + 3 + 3
    assert min(heights) > 10
