"""Tokenizers of every kind, most of them from hostile files: they work reproducibly, or are refused in one line."""

from __future__ import annotations

import itertools
import json
import random
import re
import tempfile
from pathlib import Path
from typing import Any

from fuzz.load import MOST_MEMORY, SMALL, changed, check_message, peak_memory
from microgpt import ByteTokenizer, CharTokenizer, HuggingFaceTokenizer, Tokenizer, load, train

TEST_CASES = 80
NEEDS = "tokenizers"
ALPHABET = ["a", "b", "ab", " ", "\n", "é", "#", "##", "\u0301", "ﷺ", "İ", "𝄞", "\0", "<0x0A>", "▁"]
PIECES = [
    "a",
    "b",
    "ab",
    "ba",
    "aba",
    "##a",
    "##b",
    "##ab",
    "<u>",
    "\n",
    " ",
    "▁",
    "é",
    "<0x0A>",
    "<0xC3>",
    "Ċ",
    "Ġ",
    "",
]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
PATTERNS = [{"String": piece} for piece in PIECES] + [
    {"Regex": regex} for regex in (r"\s+", "", "a*", "(a|b)+", "(?=b)", "(a+)+$", "[", r"\p{L}|\p{N}", "(?<=a)b", ".")
]
BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]


def case(random: random.Random) -> None:
    """Make a tokenizer, and use it twice."""
    memory = peak_memory()
    documents = [text_of(random) for _ in range(random.randrange(1, 4))]
    seed = random.randrange(2**32)
    first, second = (used(seed, documents) for _ in range(2))
    assert first == second
    assert peak_memory() - memory < MOST_MEMORY


def used(seed: int, documents: list[str]) -> Any:
    """Everything that a tokenizer drawn with this seed produces: tokens, text and a model, or an error message."""
    generator = random.Random(seed)
    try:
        tokenizer = new_tokenizer(generator)
        ids = [tokenizer.encode(document) for document in documents]
        texts = [tokenizer.decode(each) for each in ids]
        texts += [tokenizer.decode([token]) for token in range(min(tokenizer.vocab_size, 20))]
        assert all(0 <= token < tokenizer.vocab_size for each in ids for token in each)
        together, ends = tokenizer.encode_documents(documents)
        copy = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert copy == tokenizer
        assert [copy.encode(document) for document in documents] == ids
        assert [copy.decode(each) for each in ids] == texts[: len(ids)]
        return ids, texts, together.tolist(), ends.tolist(), trained(generator, tokenizer, documents)
    except ValueError as error:
        check_message(str(error))
        return re.sub("missing field `.*?`", "missing field", str(error))  # the library names any of several


def trained(random: random.Random, tokenizer: Tokenizer, documents: list[str]) -> Any:
    """The parameters of a model after one step, its samples and probabilities, before and after it was saved."""
    if tokenizer.vocab_size > 2000:
        return None
    format = random.choice(["lines", "text"])
    model = train(documents, tokenizer=tokenizer, format=format, steps=1, **{**SMALL, "block_size": 2}).model
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.safetensors")
        again = load(Path(folder) / "model.safetensors")
    results = []
    for each in (model, again):
        drawn = each.generate(2, seed=1), "".join(each.stream(seed=1, max_tokens=5))
        results.append((drawn, each.next_token_probabilities(), each.evaluate(documents)))
    assert results[0] == results[1]
    return model.state_dict()["wte"].tolist(), results


def text_of(random: random.Random) -> str:
    weights = [200, 100, 50, 90, 40] if random.random() < 0.5 else [20, 10, 5, 9, 4]
    weights += [random.random() for _ in ALPHABET[len(weights) :]]
    surrogate = "\ud800" if random.random() < 0.02 else ""
    return surrogate + "".join(random.choices(ALPHABET, weights, k=random.randrange(1, 30)))


def new_tokenizer(random: random.Random) -> Tokenizer:
    """A tokenizer, most often one of Hugging Face's."""
    bos = random.choice([None, "\n"] * 5 + ["a", "", "\n\n", "\ud800"])
    kind = random.randrange(20)
    if kind == 0:
        return CharTokenizer(text_of(random), bos)
    if kind == 1:
        return ByteTokenizer(bos)
    if kind == 2:
        return Tokenizer.from_json(changed(random, CharTokenizer("ab\n", "\n").to_json()))
    content = json.dumps(tokenizers_file(random))
    if random.random() < 0.1:
        position = random.randrange(len(content))
        content = content[:position] + random.choice(["", "\0", "{", '"', "9" * 30]) + content[position + 1 :]
    return HuggingFaceTokenizer(content, bos)


def tokenizers_file(random: random.Random) -> dict[str, Any]:
    """Content that a tokenizers file may have, and some that it should not have."""
    file = {
        "version": "1.0",
        "truncation": random.choice(
            [None, {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": random.randrange(3)}]
        ),
        "padding": None,
        "added_tokens": [added_token(random) for _ in range(random.choice([0, 0, 1, 3]))],
        "normalizer": normalizer(random),
        "pre_tokenizer": pre_tokenizer(random),
        "post_processor": random.choice([None, None, {"type": "ByteLevel"}, template(random)]),
        "decoder": decoder(random),
        "model": model(random),
    }
    for _ in range(random.choice([0, 0, 0, 0, 1, 2])):
        name = random.choice([*file, "model", "model"])
        file[name] = changed(random, file[name])
    return file


def model(random: random.Random) -> dict[str, Any]:
    """A model of one of the four kinds."""
    pieces = random.sample(PIECES, random.randrange(1, len(PIECES)) if random.random() < 0.5 else len(PIECES))
    ids = range(len(pieces)) if random.random() < 0.95 else random.choices(range(30), k=len(pieces))
    vocabulary = dict(zip(pieces, ids))
    unknown = "nowhere" if random.random() < 0.05 else random.choice(pieces)
    kind = random.choice(["BPE", "WordPiece", "WordLevel", "Unigram"])
    if kind == "WordLevel":
        return {"type": kind, "vocab": vocabulary, "unk_token": unknown}
    if kind == "WordPiece":
        longest = random.choice([100, 100, 100, 1, 0, 1000, 2**62])
        return {
            "type": kind,
            "vocab": vocabulary,
            "unk_token": unknown,
            "continuing_subword_prefix": random.choice(["##", "", "é"]),
            "max_input_chars_per_word": longest,
        }
    if kind == "Unigram":
        scores = [[piece, random.choice([0.0, -1.0, -2.5, -1e308, 1e308])] for piece in pieces]
        unk_id = random.choice([None, 0, 0, len(pieces) - 1, len(pieces) - 1, len(pieces)])
        drawing = random.choice([{}, {}, {"alpha": 0.5, "nbest_size": 10}])
        return {"type": kind, "vocab": scores, "unk_id": unk_id, "byte_fallback": random.random() < 0.3, **drawing}
    prefix = random.choice(["", "##", "#######"]) if random.random() < 0.3 else None
    merges = [
        [first, second]
        for first in pieces
        for second in pieces
        if random.random() < 0.5 and first + second.removeprefix(prefix or "") in vocabulary
    ]
    return {
        "type": kind,
        "vocab": vocabulary,
        "merges": [" ".join(pair) for pair in merges] if random.random() < 0.3 else merges,
        "dropout": random.choice([None, 0.1, 0.5, 1.0, 2.0]),
        "unk_token": random.choice([None, unknown]),
        "continuing_subword_prefix": prefix,
        "end_of_word_suffix": random.choice([None, None, "</w>"]),
        "fuse_unk": random.random() < 0.5,
        "byte_fallback": random.random() < 0.3,
        "ignore_merges": random.random() < 0.3,
    }


def added_token(random: random.Random) -> dict[str, Any]:
    flags = {name: random.random() < 0.3 for name in FLAGS}
    return {"id": random.choice([0, 1, 18, 2**32 - 1]), "content": random.choice([*PIECES, "<s>"]), **flags}


def sequence(random: random.Random, name: str, new: Any) -> dict[str, Any]:
    """Some steps, sometimes repeated many times, or with each other's options."""
    steps = [new(random) for _ in range(random.randrange(4))] * random.choice([1, 1, 1, 2, 7, 30])
    if random.random() < 0.1:
        steps = [{**step, **other} for step, other in itertools.pairwise(steps)]
    return {"type": "Sequence", name: steps}


def replacement(random: random.Random) -> dict[str, Any]:
    content = random.choice(["", "a", "ab", "b" * 50, "▁", "x" * 2000])
    return {"type": "Replace", "pattern": random.choice(PATTERNS), "content": content}


def normalizer(random: random.Random) -> Any:
    plain = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel", "Nothing"]
    kind = random.randrange(8)
    if kind < 2:
        return None
    if kind == 2:
        return {"type": random.choice(plain)}
    if kind == 3:
        return sequence(random, "normalizers", lambda random: normalizer(random) or replacement(random))
    if kind == 4:
        charsmap = random.choice(["", "AAAA", "BAAAAP////8=", "BAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAA"])
        return {"type": "Precompiled", "precompiled_charsmap": charsmap}
    if kind == 5:
        flags = {name: random.random() < 0.5 for name in ("clean_text", "handle_chinese_chars", "lowercase")}
        return {"type": "BertNormalizer", "strip_accents": None, **flags}
    if kind == 6:
        return random.choice(
            [
                {"type": "Strip", "strip_left": True, "strip_right": random.random() < 0.5},
                {"type": "Prepend", "prepend": random.choice(["", "▁", "ab"])},
            ]
        )
    return replacement(random)


def pre_tokenizer(random: random.Random) -> Any:
    kind = random.randrange(9)
    if kind < 2:
        return None
    if kind == 2:
        return {"type": random.choice(["Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts"])}
    if kind == 3:
        flags = {name: random.random() < 0.5 for name in ("add_prefix_space", "trim_offsets", "use_regex")}
        return {"type": "ByteLevel", **flags}
    if kind == 4:
        flags = {"behavior": random.choice(BEHAVIORS), "invert": random.random() < 0.3}
        return {"type": "Split", "pattern": random.choice(PATTERNS), **flags}
    if kind == 5:
        scheme = {"prepend_scheme": random.choice(["always", "never", "first"]), "split": random.random() < 0.5}
        return {"type": "Metaspace", "replacement": random.choice(["▁", "a", "é"]), **scheme}
    if kind == 6:
        return sequence(random, "pretokenizers", lambda random: pre_tokenizer(random) or {"type": "Whitespace"})
    if kind == 7:
        return {"type": "FixedLength", "length": random.choice([0, 1, 2, 2**63, 2**64 - 1])}
    return random.choice(
        [
            {"type": "Punctuation", "behavior": random.choice(BEHAVIORS)},
            {"type": "Digits", "individual_digits": True},
            {"type": "CharDelimiterSplit", "delimiter": random.choice(["a", "é", "\0"])},
        ]
    )


def template(random: random.Random) -> dict[str, Any]:
    pieces = [{"Sequence": {"id": random.choice("AB"), "type_id": 0}}] * random.choice([0, 1, 2, 50])
    return {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": {}}


def decoder(random: random.Random) -> Any:
    kind = random.randrange(8)
    if kind < 2:
        return None
    if kind == 2:
        return {"type": random.choice(["ByteLevel", "ByteFallback", "Fuse"])}
    if kind == 3:
        return {"type": "WordPiece", "prefix": random.choice(["##", "", "é"]), "cleanup": random.random() < 0.5}
    if kind == 4:
        ends = {name: random.choice([0, 1, 2, 2**63]) for name in ("start", "stop")}
        return {"type": "Strip", "content": random.choice(["a", " ", "é"]), **ends}
    if kind == 5:
        return sequence(random, "decoders", lambda random: decoder(random) or replacement(random))
    if kind == 6:
        return random.choice(
            [
                {"type": "BPEDecoder", "suffix": random.choice(["", "</w>"])},
                {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": True},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
            ]
        )
    return replacement(random)
