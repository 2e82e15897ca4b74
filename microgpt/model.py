"""The model: one class for both engines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt import checkpoint, inspection
from microgpt.config import DTYPES, GPTConfig
from microgpt.data.detokenize import text_pieces
from microgpt.data.documents import FORMATS, named_documents
from microgpt.data.tokenizer import Tokenizer
from microgpt.engine import backend as backends
from microgpt.engine.arrays import aligned_copy, aligned_zeros, not_finite
from microgpt.engine.cores import physical_cores
from microgpt.engine.packing import PackedSequences, context_array, pack, token_array
from microgpt.evaluation import DocumentLosses, Evaluation, document_losses, evaluate
from microgpt.history import TrainingHistory
from microgpt.random.splitmix import step_stream, stream_seed
from microgpt.sampling import (
    Context,
    IsComplete,
    Sampler,
    generator_uniforms,
    next_probabilities,
    room,
    sample_in_turn,
    sample_independently,
    sample_one,
    stream_uniforms,
)
from microgpt.stop import Stop
from microgpt.utils.arguments import choice, integer, string

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from microgpt.data.corpus import Corpus
    from microgpt.engine.interface import Engine

SEED = 42  # the default everywhere, as in microgpt


class Missing(Enum):
    """The default of an argument for which None means something."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return self.name


NOT_GIVEN = Missing.NOT_GIVEN


class GPT:
    """A GPT of the given architecture, with parameters drawn from normal distributions, see `GPTConfig.init_stds`.

    Args:
        config: the architecture of the model.
        seed: a number, a string or anything else that `random.Random` takes, or a `random.Random`, whose state is
            copied. Parameters are drawn in the order of the original, and `generate` continues with the same generator.
        dtype: "float64" gives exactly the numbers of the original; "float32" is faster.
        backend: "compiled" or "reference"; by default the one that `backend_info()` names.
        threads: number of threads that may share a large batch; by default the number of physical cores. It changes no
            bit of any result. Small batches run on one thread, which is faster. The reference has only one.
        tokenizer: turns text into tokens and back, for `generate` and `evaluate`.
        format: "lines" for a model of documents, "text" for one of continuous text, as in `train`; it decides how text
            is read and drawn. By default "text" if BOS is a character of the tokenizer, else "lines".

    Copies and pickles share no memory with the model. A pickle also loads where only the reference backend exists, as
    float64.

    Source: the model of microgpt, after GPT-2 (Radford et al., 2019).

    Attributes:
        history: the `TrainingHistory` of the model, or None.
    """

    def __init__(
        self,
        config: GPTConfig,
        seed: Any = SEED,
        dtype: str = "float64",
        backend: str | None = None,
        threads: int | None = None,
        tokenizer: Tokenizer | None = None,
        format: str | None = None,
    ) -> None:
        if not isinstance(config, GPTConfig):
            raise TypeError(f"config must be a GPTConfig, got {type(config).__name__}")
        config.check_tokenizer(tokenizer)
        self.config = config
        self.dtype = choice("dtype", dtype, DTYPES)
        self.backend = backends.choose(backend)
        if self.backend == "reference":
            if self.dtype != "float64":
                raise ValueError(f"dtype must be 'float64' on the reference backend, got {dtype!r}")
            if threads is not None:
                raise ValueError(f"threads must be left out on the reference backend, got {threads!r:.60}")
            self.threads = 1
        else:
            self.threads = physical_cores() if threads is None else integer("threads", threads, 1)
        self.tokenizer = tokenizer
        if format is None:
            format = "text" if tokenizer is not None and tokenizer.bos_is_text else "lines"
        self.format = choice("format", format, FORMATS)
        self.generator = backends.new_generator(self.backend, seed)
        self._parameters = aligned_zeros(config.num_params, self.dtype, "a model of this size")
        self._gradients = aligned_zeros(config.num_params, self.dtype, "a model of this size")
        self.engine = self._new_engine()
        for matrix, std in zip(self.state_dict().values(), config.init_stds().values()):
            self.generator.fill_gauss(matrix.reshape(-1), std)
        self.history: TrainingHistory | None = None

    def _new_engine(self) -> Engine:
        return backends.new_engine(self.backend, self.config, self._parameters, self._gradients, self.threads)

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles: no engine, and the generator's state in a form that every backend reads."""
        state = {**vars(self), "generator": self.generator.getstate()}
        del state["engine"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a model with memory of its own; on the reference backend in float64 if there is no other."""
        vars(self).update(state)
        if not backends.compiled_engine():
            self.backend, self.dtype, self.threads = "reference", "float64", 1
        self._parameters = aligned_copy(self._parameters, self.dtype, "a model of this size")
        self._gradients = aligned_copy(self._gradients, self.dtype, "a model of this size")
        self.generator = backends.new_generator(self.backend, 0)
        self.generator.setstate(state["generator"])
        self.engine = self._new_engine()

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return self.config.num_params

    @property
    def bos(self) -> int:
        """The token that begins and ends a document: the tokenizer's, or the last of the vocabulary, as in microgpt."""
        return self.tokenizer.bos if self.tokenizer else self.config.vocab_size - 1

    @property
    def reads_bos(self) -> bool:
        """Whether BOS is put before what the model reads and draws.

        True except for a model of continuous text whose tokenizer has no token for a line feed: training never showed
        it BOS.
        """
        return self.format == "lines" or (self.tokenizer is not None and self.tokenizer.bos_is_text)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The parameters by name, each a matrix (outputs, inputs), in the order in which they were drawn.

        The arrays are views: writing into them changes the model.
        """
        return self.by_name(self._parameters)

    def is_finite(self) -> bool:
        """Whether all parameters are finite; if not, `save`, `evaluate` and `generate` raise `ValueError`."""
        return bool(np.isfinite(self._parameters).all())

    def load_state_dict(self, arrays: Mapping[str, ArrayLike]) -> None:
        """Copy parameters from arrays by name. `ValueError` names those missing, unknown or of the wrong shape."""
        if not isinstance(arrays, Mapping):
            raise TypeError(f"arrays must be a dict of arrays by name, got {arrays!r:.60}")
        own = self.state_dict()
        for problem, names in (("lacks", own.keys() - arrays.keys()), ("does not know", arrays.keys() - own.keys())):
            if names:
                holder = "arrays" if problem == "lacks" else "the model"
                raise ValueError(f"{holder} {problem} {', '.join(sorted(names))}")
        new = {}
        for name, array in arrays.items():
            wanted = f"arrays[{name!r}] must be numbers of shape {own[name].shape}"
            try:
                new[name] = np.asarray(array)
            except ValueError:
                raise ValueError(f"{wanted}, got rows of different lengths") from None
            if new[name].shape != own[name].shape or new[name].dtype.kind not in "fiu":
                raise ValueError(f"{wanted}, got {new[name].dtype} {new[name].shape}")
        for name, array in new.items():
            own[name][...] = array

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, its tokenizer and its history to a safetensors file; `load` reads it.

        The file is replaced as a whole or not at all. `ValueError` if it cannot be written, or if parameters are not
        finite.
        """
        checkpoint.save(path, self)

    def loss(self, sequences: Sequence[Sequence[int]]) -> float:
        """Mean over the sequences of the mean over their positions of -log(probability of the next token), in nats.

        Each sequence has at least 2 tokens, in [0, vocab_size); only its first block_size positions count. For text,
        use `tokenizer.encode_document`.
        """
        return self.engine.loss(pack(sequences, self.config.vocab_size))

    def loss_and_gradients(
        self, sequences: Sequence[Sequence[int]], *, dropout_seed: Any = NOT_GIVEN
    ) -> tuple[float, dict[str, NDArray[Any]]]:
        """The loss, as `loss` returns it, and its gradients by parameter name, with the shapes of `state_dict`.

        A model with dropout needs a `dropout_seed`, which decides what is dropped: another one in each step of
        training, such as its number. With None, nothing is dropped.

        If the loss is not finite, all gradients are NaN. The returned arrays are copies: `Adam(model).step()` uses the
        model's own.
        """
        if dropout_seed is NOT_GIVEN and self.config.dropout > 0:
            raise ValueError(
                f"dropout_seed must be given for a model with dropout={self.config.dropout:g}: another seed for each"
                " step, or None to drop nothing"
            )
        stream = None
        if dropout_seed is not NOT_GIVEN and dropout_seed is not None:
            stream = step_stream(stream_seed(dropout_seed, "dropout_seed"), 0)
        loss = self.engine.loss(pack(sequences, self.config.vocab_size), gradients=True, stream=stream)
        return loss, self.by_name(self._gradients.copy())

    def logits(self, tokens: Sequence[int]) -> NDArray[Any]:
        """Logits for the token after each of 1 to block_size tokens, shape (len(tokens), vocab_size)."""
        return self.engine.logits_of(context_array(tokens, self.config.vocab_size, self.config.block_size))

    def attention(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Attention weights on 1 to block_size tokens, shape (n_layer, n_head, len(tokens), len(tokens)).

        Each row is a position, and holds how much the head attends from it to each position: it sums to 1, and is 0
        for later ones. The weights are computed by NumPy in float64, whatever the engine, and equal its own up to
        rounding.
        """
        return inspection.forward(self, tokens).attention

    def evaluate(self, documents: Iterable[str]) -> Evaluation:
        """Measure how well the model predicts these documents: every token of each once, and its end.

        A document longer than the context is split into pieces of block_size tokens, which are predicted separately. A
        model of continuous text takes texts, which have no end to predict; their first token is predicted only if the
        model reads BOS before it (`reads_bos`). Lines that end in line feeds, as from `readlines`, are read as `train`
        reads them.

        `TypeError` or `ValueError` names a document that is not a string or has characters the tokenizer does not know.
        """
        self.check_finite("evaluate")
        read, characters = self._read(self._tokenizer_for("evaluate"), documents)
        sequences = [tokens for tokens in read if len(tokens) > 1]
        if not sequences:
            raise ValueError("documents must hold at least one with something to predict, got none")
        return evaluate(self.engine, pack(sequences, self.config.vocab_size), max(1, characters))

    def document_losses(self, documents: Iterable[str]) -> DocumentLosses:
        """The loss of each document by itself, in nats: the lower, the likelier; see `evaluate` for how it is read.

        The documents that the model expects least are those with the highest `nats_per_token`. With a model for each
        class, a document belongs to the class whose model gives it the lowest `nats`.
        """
        self.check_finite("document_losses")
        sequences, _ = self._read(self._tokenizer_for("document_losses"), documents)
        tokens = np.array([max(0, len(sequence) - 1) for sequence in sequences], np.int64)
        nats = np.zeros(len(tokens))
        if tokens.any():  # a document without a token to predict cannot be packed
            packed = pack([sequence for sequence in sequences if len(sequence) > 1], self.config.vocab_size)
            nats[tokens > 0] = document_losses(self.engine, packed).nats
        return DocumentLosses(nats, tokens)

    def _read(self, tokenizer: Tokenizer, documents: Iterable[str]) -> tuple[list[list[int]], int]:
        """The tokens of each document as the model reads it, and the number of their characters, ends included."""
        begin, end = [self.bos] * self.reads_bos, [self.bos] * (self.format == "lines")
        named = named_documents("documents", documents, as_text=self.format == "text")
        sequences = [begin + tokens_of(tokenizer, name, document) + end for name, document in named]
        return sequences, sum(len(document) + len(end) for _, document in named)

    def evaluate_corpora(self, corpora: Sequence[Corpus]) -> Evaluation:
        """`evaluate` for corpora that `read_corpus` read with the model's format and tokenizer.

        `ValueError` if there is nothing to predict.
        """
        self.check_finite("evaluate")
        sequences = PackedSequences.joined([corpus.documents() for corpus in corpora])
        if not len(sequences):
            raise ValueError(f"{corpora[0].name} must have at least 2 tokens, so that one can be predicted")
        ends = sum(map(len, corpora)) if self.format == "lines" else 0
        characters = sum(corpus.characters for corpus in corpora) + ends
        return evaluate(self.engine, sequences, characters)

    def perplexity(self, documents: Iterable[str]) -> float:
        """Perplexity: e to the power of the mean over all tokens of -log(probability of the token); see `evaluate`."""
        return self.evaluate(documents).perplexity

    def next_token_probabilities(self, prompt: str = "") -> dict[str, float]:
        """The probability of each token that can follow `prompt`, by its text, likeliest first.

        The prompt is read after BOS, or alone if the model does not read BOS (`reads_bos`) and the prompt is not empty.
        BOS is shown as "<BOS>" unless it is a character of the text. The probabilities of tokens with the same text are
        added up, such as bytes that are not characters by themselves. A prompt longer than the context is treated as in
        `generate_tokens`.
        """
        tokenizer = self._tokenizer_for("next_token_probabilities")
        self.check_finite("next_token_probabilities")
        by_text: dict[str, float] = {}
        probabilities = next_probabilities(self.engine, self._context(tokens_of(tokenizer, "prompt", prompt)))
        for token, probability in enumerate(probabilities.tolist()):
            is_bos = token == tokenizer.bos and not tokenizer.bos_is_text
            text = "<BOS>" if is_bos else tokenizer.decode([token])
            by_text[text] = by_text.get(text, 0.0) + probability
        return dict(sorted(by_text.items(), key=lambda item: -item[1]))

    def generate(
        self,
        n: int = 1,
        temperature: float = 1.0,
        seed: Any = None,
        *,
        prompt: str = "",
        top_k: int | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        stop: str | Iterable[str] | None = None,
    ) -> list[str]:
        """`n` documents sampled from the model, as text, each beginning with `prompt`.

        `stop` is a text, or several: a document ends before the first of them that is drawn, and drawing ends there.
        The prompt does not count. With a seed, each document is the same as without `stop`, only shorter. The other
        arguments are those of `generate_tokens`.
        """
        tokenizer, stops = self._tokenizer_for("generate"), Stop.of(stop)
        tokens = tokens_of(tokenizer, "prompt", prompt)
        is_complete = stops.completes(tokenizer.decode, tokens)
        documents = self._draw(n, Sampler(temperature, top_k, top_p), seed, tokens, max_tokens, is_complete)
        begin = len(tokenizer.decode(tokens))
        return [text[:begin] + stops.cut(text[begin:]) for text in map(tokenizer.decode, documents)]

    def generate_tokens(
        self,
        n: int = 1,
        temperature: float = 1.0,
        seed: Any = None,
        *,
        prompt: Sequence[int] = (),
        top_k: int | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
    ) -> list[list[int]]:
        """`n` documents sampled from the model, as token ids without BOS, each up to the first BOS drawn.

        Args:
            n: number of documents.
            temperature: divides the logits: 1 samples the model as it is, 0 always takes the likeliest token.
            seed: without a seed, documents are drawn one after the other with the model's own generator, in the order
                of microgpt. With a seed, as for `GPT`, each document has its own stream of random numbers, and many are
                drawn at once: this is much faster, and document i is the same however many there are.
            prompt: tokens that each document begins with; they are part of what is returned.
            top_k: draw only from this many of the likeliest tokens; 1 is the same as temperature 0.
            top_p: draw only from the likeliest tokens that together have this probability; see `Sampler`.
            max_tokens: most tokens to draw for each document; by default as many as fit the context, which is
                block_size without a prompt.

        When the context is full, it restarts with its most recent half, at position 0. The same happens within a prompt
        that is longer than the context.

        BOS is the tokenizer's: in continuous text, the line feed, so that a document is a line. Without a tokenizer it
        is the last token of the vocabulary, as in microgpt. A continuous text without line feeds has no end; it stops
        after `max_tokens`.
        """
        return self._draw(n, Sampler(temperature, top_k, top_p), seed, prompt, max_tokens)

    def _draw(
        self,
        n: int,
        sampler: Sampler,
        seed: Any,
        prompt: Sequence[int],
        max_tokens: int | None,
        is_complete: IsComplete | None = None,
    ) -> list[list[int]]:
        """See `generate_tokens`; a document also ends when `is_complete`, or later."""
        n = integer("n", n, 0)
        self.check_finite("generate")
        tokens = token_array("prompt", prompt, self.config.vocab_size).tolist()
        context = self._context(tokens)
        limit = self._most_tokens(max_tokens, context)
        if seed is None:
            drawn = sample_in_turn(self.engine, self.generator, context, n, sampler, limit, is_complete)
        else:
            drawn = sample_independently(self.engine, stream_seed(seed), context, n, sampler, limit, is_complete)
        return [tokens + document for document in drawn]

    def stream(
        self,
        prompt: str = "",
        temperature: float = 1.0,
        seed: Any = None,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        stop: str | Iterable[str] | None = None,
    ) -> Iterator[str]:
        """The continuation of `prompt`, without the prompt, in pieces of text as they are drawn.

        A document is the same as `generate` returns. A continuous text does not end at a line feed, but after
        `max_tokens`, before a text of `stop`, or never. Text that could be the beginning of one is held back until it
        is not. The other arguments are those of `generate`.
        """
        tokenizer, sampler = self._tokenizer_for("stream"), Sampler(temperature, top_k, top_p)
        stops = Stop.of(stop)
        self.check_finite("stream")
        tokens = tokens_of(tokenizer, "prompt", prompt)
        context = self._context(tokens, ends=self.format == "lines")
        limit = self._most_tokens(max_tokens, context) if context.ends or max_tokens is not None else None
        if seed is None:
            uniforms = generator_uniforms(self.generator)
        else:
            uniforms = stream_uniforms(stream_seed(seed), range(1))
        drawn = sample_one(self.engine, context, sampler, limit, uniforms)
        return stops.cut_pieces(text_pieces(tokenizer.decode, tokens, drawn))

    def _context(self, tokens: list[int], ends: bool = True) -> Context:
        """The beginning of a document with these tokens, which BOS ends if `ends` and the model reads BOS."""
        bos = [self.bos] if self.reads_bos else []
        return Context(bos + tokens, self.bos, ends and self.reads_bos)

    def _most_tokens(self, max_tokens: int | None, context: Context) -> int:
        if max_tokens is None:
            return room(len(context.read()), self.config.block_size)
        return integer("max_tokens", max_tokens, 0)

    def check_finite(self, method: str) -> None:
        """`ValueError` if not all parameters are finite; `method` is the one that needs them, for the message."""
        if not self.is_finite():
            names = not_finite(self.state_dict())
            raise ValueError(f"{method} needs finite parameters, but not all of {names} are: training has diverged")

    def _tokenizer_for(self, method: str) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{method} needs a tokenizer: pass one to GPT")
        return self.tokenizer

    def by_name(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Views of a flat array with an element for each parameter, with the names and shapes of `state_dict`."""
        arrays, start = {}, 0
        for name, (rows, columns) in self.config.parameter_shapes().items():
            arrays[name] = flat[start : start + rows * columns].reshape(rows, columns)
            start += rows * columns
        return arrays

    def _repr_html_(self) -> str:
        """The table that notebooks show: the model's sizes, and how it computes."""
        from microgpt.display.html import facts_table  # imported here because only notebooks need it
        from microgpt.display.summary import describe_model

        return facts_table("GPT", describe_model(self))

    def __repr__(self) -> str:
        return f"GPT({self.config}, dtype={self.dtype!r}, backend={self.backend!r})"


def tokens_of(tokenizer: Tokenizer, name: str, text: str) -> list[int]:
    """The tokens of a text; error messages begin with `name`."""
    try:
        return tokenizer.encode(string(name, text))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def load(
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> GPT:
    """Load a model from a file that `GPT.save`, or `train` with `out`, has written.

    `dtype` is by default the file's, or "float64" on the reference backend, which has no other. `backend` and `threads`
    are those of `GPT`. `ValueError` says in one line what is wrong with a file.
    """
    return from_checkpoint(checkpoint.read(path), dtype, backend, threads)


def from_checkpoint(
    content: checkpoint.Checkpoint, dtype: str | None = None, backend: str | None = None, threads: int | None = None
) -> GPT:
    """The model in a checkpoint; see `load` for the other arguments."""
    if dtype is None:
        dtype = content.dtype if backends.choose(backend) == "compiled" else "float64"
    model = GPT(content.config, 0, dtype, backend, threads, content.tokenizer, content.format)
    copy_parameters(model, content.parameters)
    model.generator.setstate(content.generator)
    model.history = content.history
    return model


def copy_parameters(model: GPT, parameters: Mapping[str, NDArray[Any]]) -> None:
    """Copy finite parameters of either dtype into a model. `ValueError` if float32 cannot hold them."""
    with np.errstate(over="ignore"):
        model.load_state_dict(parameters)
    if not model.is_finite():
        raise ValueError("dtype must be 'float64' for a model with parameters beyond the largest float32")
