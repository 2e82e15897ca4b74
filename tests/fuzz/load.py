"""Damaged and lying files: `microgpt.load` gives a model that works, or a `ValueError` of one line; nothing else.

Damage leaves the checksum as it is, and must be noticed. A lie has a checksum that is right.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import random
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import save as serialize

from microgpt import GPT, GPTConfig, load, train
from microgpt.checkpoint import _checksum

try:
    import resource
except ImportError:  # not on Windows, and not in WebAssembly
    resource = None  # type: ignore[assignment]

TEST_CASES = 160
MOST_MEMORY = 200_000  # KiB
SMALL = {"n_embd": 4, "n_head": 2, "block_size": 4}
NAMES = ["anna", "bob", "carlotta", "di", "emma"] * 4
NUMBERS = [0, 1, -1, 2, 7, 0.5, -0.0, 1e308, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, -(2**63)]
VALUES = [None, True, False, "", "a", "\n", "é\ud800", [], {}, [[]], "lines", "text", "float32", "1", *NUMBERS]


def case(random: random.Random) -> None:
    """Load a file that has been damaged, or one that lies."""
    files = good_files()
    good = random.choice(files)
    lies = random.random() < 0.5
    content = lying(random, good) if lies else damaged(random, good, random.choice(files))
    memory = peak_memory()
    load_and_use(content, lies or content in files)
    assert peak_memory() - memory < MOST_MEMORY


def load_and_use(content: bytes, may_be_right: bool) -> None:
    """Load a file with this content; where that works, use the model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        try:
            model = load(path)
        except ValueError as error:
            check_message(str(error))
            assert str(path) in str(error)
            return
        assert may_be_right
        use(model, path)


def peak_memory() -> int:
    """Peak memory of this process in KiB, or 0 where the system does not tell."""
    if resource is None:
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))


def use(model: GPT, path: Path) -> None:
    """Use a model as its owner would, which may be refused in one line, and check that it round-trips."""
    try:
        drawn = model.generate_tokens(2, seed=1)
        if model.tokenizer is not None:
            model.generate(1, seed=1)
            model.evaluate(["anna"])
    except ValueError as error:
        check_message(str(error))
        return
    model.save(path)
    again = load(path)
    assert (again.config, again.tokenizer, again.format) == (model.config, model.tokenizer, model.format)
    assert again.generate_tokens(2, seed=1) == drawn


def check_message(message: str) -> None:
    """Check that an error is one line, and not a long one."""
    assert message
    assert "\n" not in message
    assert len(message) < 1000


@functools.cache
def good_files() -> list[bytes]:
    """Files of all kinds: with and without tokenizer, history and progress, of documents and texts, of both dtypes."""
    words = {"type": "WordLevel", "vocab": {name: i for i, name in enumerate(sorted(set(NAMES)))}, "unk_token": "di"}
    with tempfile.TemporaryDirectory() as folder:
        path, tokenizer = Path(folder) / "model.safetensors", Path(folder) / "words.json"
        tokenizer.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": words}))
        contents = []
        runs: list[dict[str, Any]] = [{"val_fraction": 0.2, "eval_every": 2}, {"format": "text", "tokenizer": "bytes"}]
        if importlib.util.find_spec("tokenizers"):
            runs.append({"tokenizer": tokenizer})
        drawn = train(NAMES, steps=0, **SMALL).model
        runs = [options | SMALL for options in runs]
        runs.insert(0, {"init_from": drawn, "extend_vocabulary": True})
        for options in runs:
            result = train([*NAMES, "zoë"] if "init_from" in options else NAMES, steps=3, out=path, **options)
            contents.append(path.read_bytes())
        result.model.save(path)
        contents.append(path.read_bytes())
        GPT(GPTConfig(vocab_size=27, **SMALL), 3).save(path)
        contents.append(path.read_bytes())
    return contents


def header_end(content: bytes) -> int:
    """The position at which the arrays begin."""
    return 8 + int(struct.unpack("<Q", content[:8])[0])


def damaged(random: random.Random, good: bytes, other: bytes) -> bytes:
    """A file after a few accidents: bits, sizes, pieces that are cut off, overwritten, swapped or doubled."""
    content = good
    while content == good:
        for _ in range(random.choice([1, 1, 1, 2, 5])):
            content = random.choice(ACCIDENTS)(random, content, other)
    return content


def flipped(random: random.Random, content: bytes, other: bytes) -> bytes:
    """One bit, anywhere or in the header."""
    position = random.randrange(random.choice([len(content), min(len(content), header_end(good_files()[0]))]) or 1)
    return (
        content[:position]
        + bytes(byte ^ 1 << random.randrange(8) for byte in content[position : position + 1])
        + (content[position + 1 :])
    )


def truncated(random: random.Random, content: bytes, other: bytes) -> bytes:
    """The beginning."""
    return content[: random.randrange(len(content) + 1)]


def resized(random: random.Random, content: bytes, other: bytes) -> bytes:
    """Another size of the header."""
    size = random.choice([2**64 - 1, 2**63, 2**40, 10**8 + 1, 0, 1, random.randrange(2**32), len(content)])
    return struct.pack("<Q", size) + content[8:]


def longer(random: random.Random, content: bytes, other: bytes) -> bytes:
    """Noise at the end, or in front."""
    noise = random.randbytes(random.randrange(1, 99))
    return random.choice([content + noise, noise + content])


def overwritten(random: random.Random, content: bytes, other: bytes) -> bytes:
    """A piece replaced by noise, nulls or a piece of another file."""
    start, end = sorted(random.choices(range(len(content) + 1), k=2))
    return (
        content[:start]
        + random.choice([random.randbytes(end - start), bytes(end - start), other[start:end]])
        + (content[end:])
    )


def doubled(random: random.Random, content: bytes, other: bytes) -> bytes:
    """A piece doubled or left out."""
    start, end = sorted(random.choices(range(len(content) + 1), k=2))
    return random.choice([content[:end] + content[start:], content[:start] + content[end:]])


def swapped(random: random.Random, content: bytes, other: bytes) -> bytes:
    """The header of one file and the arrays of another."""
    ends = [header_end(each) if len(each) >= 8 else 0 for each in (content, other)]
    return random.choice([content[: ends[0]] + other[ends[1] :], other[: ends[1]] + content[ends[0] :]])


ACCIDENTS = [flipped, truncated, resized, longer, overwritten, doubled, swapped]


def rewritten(good: bytes, change: Any) -> bytes:
    """The same file after `change(arrays, texts)`, with a correct checksum, as a liar would write it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.safetensors"
        path.write_bytes(good)
        with safe_open(path, framework="numpy") as file:
            arrays, texts = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    change(arrays, texts)
    texts.pop("checksum", None)
    texts["checksum"] = _checksum(arrays, texts)
    return serialize(arrays, texts)


def lying(random: random.Random, good: bytes) -> bytes:
    """A file with some wrong arrays or metadata."""

    def change(arrays: dict[str, Any], texts: dict[str, str]) -> None:
        for _ in range(random.choice([1, 1, 2, 4])):
            if arrays and random.random() < 0.3:
                change_array(random, arrays)
            else:
                change_text(random, texts)

    return rewritten(good, change)


def change_array(random: random.Random, arrays: dict[str, Any]) -> None:
    """Remove an array, add one, or change its numbers, type or shape."""
    name = random.choice(sorted(arrays))
    array = arrays[name]
    kind = random.randrange(6)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[random.choice(["more", "", name + "x", "optimizer.m.wte", "history.losses"])] = array
    elif kind == 2:
        arrays[name] = array.astype(random.choice(["float32", "float64", "int8", "uint64", "bool", "float16"]))
    elif kind == 3:
        arrays[name] = array.reshape(random.choice([(-1,), (1, *array.shape), array.shape[::-1]]))
    elif kind == 4:
        arrays[name] = array[: random.randrange(len(array) + 1)].copy()
    elif array.size and array.dtype.kind == "f":
        arrays[name] = array.copy()
        arrays[name].flat[random.randrange(array.size)] = random.choice([math.nan, math.inf, 0.0, 3e38, 1e-40])


def change_text(random: random.Random, texts: dict[str, str]) -> None:
    """Remove a text of the metadata, or change it."""
    name = random.choice(sorted(texts) or ["format"])
    kind = random.randrange(8)
    if kind == 0:
        texts.pop(name, None)
    elif kind == 1:
        texts[name] = random.choice(["", "{", "[" * 10_000, "NaN", "1e999", '"\\ud800"', "9" * 5000, "null", "\0"])
    else:
        try:
            item = json.loads(texts[name])
        except (ValueError, KeyError, RecursionError):
            item = None
        texts[name] = json.dumps(changed(random, item))


def changed(random: random.Random, item: Any) -> Any:
    """JSON that differs in one place."""
    if isinstance(item, dict) and item and random.random() < 0.9:
        name = random.choice(list(item))
        kind = random.randrange(8)
        if kind == 0:
            return {key: value for key, value in item.items() if key != name}
        if kind == 1:
            return {**item, random.choice(["more", "", name + "x"]): random.choice(VALUES)}
        return {**item, name: changed(random, item[name])}
    if isinstance(item, list) and item and random.random() < 0.9:
        i = random.randrange(len(item))
        kind = random.randrange(8)
        if kind == 0:
            return item[:i] + item[i + 1 :]
        if kind == 1:
            return item[:i] + item[i:] * random.choice([2, 3])
        return [*item[:i], changed(random, item[i]), *item[i + 1 :]]
    if isinstance(item, str) and random.random() < 0.5:
        if item.startswith("{"):  # a tokenizers file
            try:
                return json.dumps(changed(random, json.loads(item)))
            except ValueError:
                return item
        i = random.randrange(len(item) + 1)
        return item[:i] + random.choice(["a", "é", "\n", "#", " ", "\0", "\ud800", "x" * 2000]) + item[i:]
    if isinstance(item, (int, float)) and random.random() < 0.5:
        return item + random.choice([1, -1, 0.5])
    return random.choice(VALUES)
