"""Text to token ids and back, as defined by a JSON file of Hugging Face's tokenizers library.

Such a file may be hostile, and the library trusts it: it divides by its numbers, indexes arrays with them, and expands
a character to any number of characters. So content known to end badly is refused before the library reads it, random
choices are removed, and every call of the library is made under `_library_errors`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt.data.tokenizer import Tokenizer, joined, strings_of, utf8
from microgpt.utils.arguments import file_name, shown, shown_path, string
from microgpt.utils.files import errors_named
from microgpt.utils.optional import require
from microgpt.utils.text import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer as LibraryTokenizer

    from microgpt.data.tokenizer import Encoded

LARGEST_FILE = 1 << 28  # bytes
LARGEST_VOCABULARY = 1 << 24
LONGEST = 1000  # characters of a token, or of a word for WordPiece, whose time grows with the cube of the length
MOST_STEPS = 10_000  # of a normalizer, pre-tokenizer or decoder
LARGEST_GROWTH = 1000  # length of a text after replacements, relative to before
# The most characters that one character becomes, by a step's type or by an option that only this kind of step has:
# the library takes some steps without their type. Repeating NORMALIZED adds nothing, unlike repeating MULTIPLIED.
NORMALIZED = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Precompiled": 18, "Lowercase": 3, "strip_accents": 4}
MULTIPLIED = {
    "ByteLevel": 5, "Metaspace": 2, "handle_chinese_chars": 3, "suffix": 3, "word_delimiter_token": 3, "cleanup": 2
}  # fmt: skip
NO_TOKENS = "the tokenizers file has no tokens for this text"
UNUSED = ("truncation", "padding", "post_processor")  # these change a text's tokens afterwards
RANDOM = ("dropout", "alpha", "nbest_size")  # options of models: BPE skips merges, Unigram samples


class HuggingFaceTokenizer(Tokenizer):
    """The tokens of a JSON file of Hugging Face's tokenizers library, and after them one for BOS.

    Args:
        content: the JSON; see `from_file` for a file.
        bos: for a text that does not consist of documents, a string that serves as BOS, such as the line feed: samples
            begin and end there. If its last token does not decode to exactly this string, BOS remains one more token.

    Special tokens of the file are neither added nor left out, and nothing is cut or padded. The same text always has
    the same tokens: dropout of BPE and sampling of Unigram are switched off. Needs the `tokenizers` package.

    `ValueError` says in one line what is wrong with the content. When the library itself fails (panics), it also
    writes to standard error, past Python.
    """

    def __init__(self, content: str, bos: str | None = None) -> None:
        library = require("tokenizers", extra="tokenizers")
        self._content = _settled(string("content", content))
        with _library_errors("not a tokenizers JSON file"):
            self._tokenizer: LibraryTokenizer = library.Tokenizer.from_str(self._content)
            vocabulary = self._tokenizer.get_vocab()
            ids = self._tokenizer.get_vocab(with_added_tokens=False)
            added = {token.content: i for i, token in self._tokenizer.get_added_tokens_decoder().items()}
            added |= {token: i for token, i in vocabulary.items() if token not in ids}
            normalized = _normalized(self._tokenizer)
        size = 1 + max(vocabulary.values(), default=-1)
        if not 1 <= size <= LARGEST_VOCABULARY:
            raise ValueError(f"a tokenizers JSON file must have 1 to {LARGEST_VOCABULARY:,} tokens, got {size:,}")
        longest = max(vocabulary, key=len)
        if len(longest) > LONGEST:
            raise ValueError(
                f"a token must have at most {LONGEST:,} characters, got {shown(longest)} of {len(longest):,}"
            )
        _check_distinct("tokens must have ids of their own", ids)
        _check_distinct("added tokens must have ids of their own", added)
        if empty := [token for token, text in normalized.items() if not text]:  # the library finds these without end
            raise ValueError(f"added tokens must not be empty when normalized, got {shown(min(empty))}")
        _check_distinct("added tokens must differ when normalized", normalized)
        ends = [] if bos is None else self._ids(string("bos", bos))
        self._bos_text = bos
        self.bos_is_text = bool(ends) and self._text(ends[-1:]) == bos
        self.bos = ends[-1] if self.bos_is_text else size
        self.vocab_size = size + (not self.bos_is_text)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], bos: str | None = None) -> HuggingFaceTokenizer:
        """The tokenizer of a file. `ValueError` names a file that cannot be read or is not a tokenizers file."""
        name = shown_path(file_name("file", file))
        with errors_named("read", file), open(file, "rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"{name}: a tokenizers JSON file must have at most {LARGEST_FILE:,} bytes, got more")
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"cannot read {name}: {error}") from None
        try:
            return cls(text, bos)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _ids(self, text: str) -> list[int]:
        utf8(text)
        with _library_errors(NO_TOKENS):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _text(self, tokens: list[int]) -> str:
        with _library_errors("the tokenizers file has no text for these tokens"):
            return self._tokenizer.decode(tokens, skip_special_tokens=False)

    def encode_array(self, text: str) -> NDArray[Any]:
        """See `Tokenizer`."""
        return np.array(self._ids(text), self.dtype)

    def encode_lines(self, text: str) -> Encoded:
        """See `Tokenizer`."""
        utf8(text)
        with _library_errors(NO_TOKENS):
            encodings = self._tokenizer.encode_batch_fast(text.split("\n")[:-1], add_special_tokens=False)
        return joined((encoding.ids for encoding in encodings), self.bos, self.dtype)

    def decode(self, tokens: Iterable[int]) -> str:
        """See `Tokenizer`."""
        return self._text([token for token in self._checked(tokens) if self.bos_is_text or token != self.bos])

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"type": "huggingface", "json": self._content, "bos": self._bos_text}

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> HuggingFaceTokenizer:
        return cls(*strings_of(content, "json", "bos"))

    def __repr__(self) -> str:
        return f"HuggingFaceTokenizer(<{self.vocab_size:,} tokens>)"


@contextlib.contextmanager
def _library_errors(meaning: str) -> Iterator[None]:
    """Turn errors of the tokenizers library into a `ValueError` of one line that begins with their meaning.

    Its `PanicException` is not an `Exception`, and no module exports it.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{meaning} ({one_line(error)})") from None


def _settled(content: str) -> str:
    """The JSON without random and unused options. `ValueError` for content known to end badly."""
    try:
        settings = json.loads(content)
        if not isinstance(settings, dict):
            raise ValueError("must be an object")
        settings |= dict.fromkeys(UNUSED)
        if isinstance(model := settings.get("model"), dict):
            for name in RANDOM:
                model.pop(name, None)
            _check_model(model)
        for name in ("normalizer", "pre_tokenizer", "decoder"):
            steps = list(_steps(settings.get(name)))
            if len(steps) > MOST_STEPS:
                raise ValueError(f"{name} must have at most {MOST_STEPS:,} steps, got {len(steps):,}")
            if _growth(steps) > LARGEST_GROWTH:
                raise ValueError(
                    f"{name} must let a text grow to at most {LARGEST_GROWTH:,} times its length, got more"
                )
        for step in _steps(settings.get("pre_tokenizer")):
            if step.get("length", 1) == 0:
                raise ValueError("pre_tokenizer must have a length of at least 1, got 0")
        return json.dumps(settings, allow_nan=False)
    except RecursionError:
        raise ValueError("not a tokenizers JSON file (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"not a tokenizers JSON file ({error!s:.200})") from None


def _check_model(model: dict[str, Any]) -> None:
    longest = model.get("max_input_chars_per_word", 0)
    if isinstance(longest, (int, float)) and longest > LONGEST:
        raise ValueError(f"max_input_chars_per_word must be at most {LONGEST:,}, got more")
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if isinstance(prefix, str) and isinstance(merges, list):
        for merge in merges:  # "a b", or ["a", "b"]
            pair = merge.split(" ") if isinstance(merge, str) else merge
            second = pair[-1] if isinstance(pair, list) and pair else None
            if isinstance(second, str) and not second.startswith(prefix):
                raise ValueError(
                    f"continuing_subword_prefix {shown(prefix)} must begin {shown(second)}, which a merge adds"
                )


def _check_distinct(wanted: str, tokens: dict[str, Any]) -> None:
    """Raise `ValueError` if two tokens have the same value: the library picks one of them, not always the same."""
    if len(set(tokens.values())) == len(tokens):
        return
    by_value: dict[Any, str] = {}
    for token, value in sorted(tokens.items()):
        if (other := by_value.setdefault(value, token)) != token:
            raise ValueError(f"{wanted}, got {shown(value)} for both {shown(other)} and {shown(token)}")


def _normalized(tokenizer: Any) -> dict[str, str]:
    """The normalized form of each added token that the library searches in normalized text."""
    contents = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.normalized]
    normalizer = tokenizer.normalizer
    return {text: text if normalizer is None else normalizer.normalize_str(text) for text in contents}


def _steps(step: Any) -> Iterator[dict[str, Any]]:
    """A normalizer, decoder or pre-tokenizer, and those that it is composed of, in order."""
    if isinstance(step, dict):
        sequences = [value for value in step.values() if isinstance(value, list)]
        yield step
        for each in sequences:
            for part in each:
                yield from _steps(part)


def _growth(steps: list[dict[str, Any]]) -> float:
    """The most characters that one character can become in a sequence of steps.

    From the last step to the first, it computes how many characters each character before a step can become in the end.
    A replacement of a pattern counts for the pattern's first character.
    """
    become: dict[str, float] = {}
    others = 1.0  # for all other characters
    normalized = 1.0  # growth by normal forms since the last replacement
    mapped = False  # by a Precompiled
    for step in reversed(steps):
        content, prepend = (
            sum(become.get(c, others) for c in text) if isinstance(text := step.get(name), str) else 0.0
            for name in ("content", "prepend")
        )
        pattern = step.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else pattern
        everywhere = prepend
        if isinstance(literal, str) and literal:
            become[literal[0]] = max(become.get(literal[0], others), content)
        elif pattern is not None:
            everywhere += content
        if everywhere:
            become = {c: times + everywhere for c, times in become.items()}
            others += everywhere
        if everywhere or content:
            normalized = 1.0
        names = [str(step.get("type")), *step]
        form = max(NORMALIZED.get(name, 1) for name in names)
        times = max(1.0, form / normalized) * math.prod(MULTIPLIED.get(name, 1) for name in names)
        normalized = max(normalized, form)
        if "precompiled_charsmap" in step:
            longest = _longest_replacement(step["precompiled_charsmap"])
            times *= longest if mapped or longest > NORMALIZED["Precompiled"] else 1
            mapped = True
        if times > 1:
            others, become = times * max([others, *become.values()]), {}
        if not all(map(math.isfinite, [others, *become.values()])):
            return math.inf
    return max([others, *become.values()])


def _longest_replacement(charsmap: Any) -> int:
    """The most characters of a string in a map of SentencePiece; at least as many as in the map of NFKC.

    The map is in Base64: the size of a trie in 4 bytes, the trie, and strings that each end with a zero byte.
    """
    usual = NORMALIZED["Precompiled"]
    try:
        content = base64.b64decode(charsmap)
    except (TypeError, ValueError):
        return usual  # refused by the library
    start = 4 + int.from_bytes(content[:4], "little")
    strings = re.compile(rb"[^\0]{%d,}" % usual).finditer(content, start)
    return max((len(string[0].decode(errors="replace")) for string in strings), default=usual)
