"""The model: one class, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt import backend as backends
from microgpt.arguments import choice, integer, number
from microgpt.arrays import aligned_zeros
from microgpt.config import GPTConfig
from microgpt.cores import physical_cores
from microgpt.packing import PackedSequences, pack, token_array
from microgpt.sampling import sample_documents, sample_independent_documents
from microgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

DTYPES = ("float64", "float32")
INITIAL_STD = 0.08
EVALUATED_ROWS = 1024  # positions that `mean_loss` looks at together


class GPT:
    """A GPT of the given shape, its parameters drawn from a normal distribution with standard deviation 0.08.

    Args:
        config: the sizes of the model.
        seed: an int, or a `random.Random` whose state is copied. Parameters are drawn from it in the seed's order;
            what `generate` draws comes after them.
        dtype: "float64" gives exactly the numbers of microgpt, "float32" the same to its own precision, faster.
        backend: "compiled" or "reference"; by default what `backend_info()` tells.
        threads: how many threads may share the work of a large batch; by default as many as there are physical cores.
            It changes no bit of any result. Small batches are faster on one, and stay there.
        tokenizer: what `generate` turns tokens into text with.

    Source: the model of microgpt, after GPT-2 (Radford et al., 2019).
    """

    def __init__(
        self,
        config: GPTConfig,
        seed: Any = 42,
        dtype: str = "float64",
        backend: str | None = None,
        threads: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        if not isinstance(config, GPTConfig):
            raise TypeError(f"config must be a GPTConfig, got {type(config).__name__}")
        if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
            raise ValueError(
                f"vocab_size must be the tokenizer's {tokenizer.vocab_size}, got a config with {config.vocab_size}"
            )
        self.threads = physical_cores() if threads is None else integer("threads", threads, 1)
        self.config = config
        self.dtype = choice("dtype", dtype, DTYPES)
        self.backend = backends.choose(backend)
        if self.dtype != "float64" and self.backend == "reference":
            raise ValueError(f"dtype must be 'float64' on the reference backend, got {dtype!r}")
        self.tokenizer = tokenizer
        self.generator = backends.new_generator(self.backend, seed)
        self._parameters = aligned_zeros(config.num_params, self.dtype)
        self._gradients = aligned_zeros(config.num_params, self.dtype)
        self.engine = backends.new_engine(self.backend, config, self._parameters, self._gradients, self.threads)
        self.generator.fill_gauss(self._parameters, INITIAL_STD)

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return self.config.num_params

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The parameters by name, each a matrix (outputs, inputs), in the order in which they were drawn.

        No copies: what is written into these arrays is what the model computes with.
        """
        return self._by_name(self._parameters)

    def load_state_dict(self, arrays: Mapping[str, ArrayLike]) -> None:
        """Copy parameters from arrays by name. `ValueError` names what is missing, unknown or of the wrong shape."""
        own = self.state_dict()
        for problem, names in (("lacks", own.keys() - arrays.keys()), ("does not know", arrays.keys() - own.keys())):
            if names:
                holder = "arrays" if problem == "lacks" else "the model"
                raise ValueError(f"{holder} {problem} {', '.join(sorted(names))}")
        new = {name: np.asarray(array) for name, array in arrays.items()}
        for name, array in new.items():
            if array.shape != own[name].shape or array.dtype.kind not in "fiu":
                raise ValueError(
                    f"arrays[{name!r}] must be numbers of shape {own[name].shape}, got {array.dtype} {array.shape}"
                )
        for name, array in new.items():
            own[name][...] = array

    def loss(self, sequences: Sequence[Sequence[int]]) -> float:
        """Mean over the sequences of the mean over their positions of -log(probability of the next token), in nats.

        Each sequence has at least 2 tokens, in [0, vocab_size); its first block_size positions count. For text, use
        `tokenizer.encode_document`.
        """
        return self.engine.loss(pack(sequences, self.config.vocab_size))

    def loss_and_gradients(self, sequences: Sequence[Sequence[int]]) -> tuple[float, dict[str, NDArray[Any]]]:
        """The loss, as `loss` gives it, and its derivatives by the parameters, with the shapes of `state_dict`.

        The arrays are the caller's own. `Adam(model).step()` uses the model's copy of them.
        """
        loss = self.engine.loss(pack(sequences, self.config.vocab_size), gradients=True)
        return loss, self._by_name(self._gradients.copy())

    def logits(self, tokens: Sequence[int]) -> NDArray[Any]:
        """Logits over what follows each token, shape (len(tokens), vocab_size); 1 to block_size tokens."""
        array = token_array("tokens", tokens, self.config.vocab_size)
        if not 1 <= len(array) <= self.config.block_size:
            raise ValueError(f"tokens must be 1 to block_size={self.config.block_size} tokens, got {len(array)}")
        return self.engine.logits_of(array)

    def mean_loss(self, packed: PackedSequences) -> float:
        """The loss of many sequences, as `loss` gives it for a few: in batches that fit the caches."""
        length = int(packed.lengths.max())
        count = max(1, EVALUATED_ROWS // min(length, self.config.block_size))
        total = 0.0
        for start in range(0, len(packed), count):
            part = packed.select(np.arange(start, min(start + count, len(packed))))
            total += self.engine.loss(part) * len(part)
        return total / len(packed)

    def generate(self, n: int = 1, temperature: float = 1.0, seed: int | None = None) -> list[str]:
        """`n` documents drawn from the model, as text; see `generate_tokens`."""
        if self.tokenizer is None:
            raise ValueError("generate needs a tokenizer: pass one to GPT, or use generate_tokens")
        return [self.tokenizer.decode(tokens) for tokens in self.generate_tokens(n, temperature, seed)]

    def generate_tokens(self, n: int = 1, temperature: float = 1.0, seed: int | None = None) -> list[list[int]]:
        """`n` documents drawn from the model, as token ids without BOS, each at most block_size long.

        `temperature` divides the logits: towards 0 the likeliest always wins, 1 samples the model as it is.

        Without `seed`, one after the other with the model's own generator, in the order of microgpt. With it, each with
        random numbers of its own, many at once: much faster, and document i is the same however many there are.

        BOS is the tokenizer's, or without one the last token of the vocabulary, as in microgpt.
        """
        n, temperature = integer("n", n, 0), number("temperature", temperature, above=0)
        bos = self.tokenizer.bos if self.tokenizer else self.config.vocab_size - 1
        if seed is None:
            return list(sample_documents(self.engine, self.generator, bos, n, temperature))
        return sample_independent_documents(self.engine, integer("seed", seed, 0), bos, n, temperature)

    def _by_name(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        arrays, start = {}, 0
        for name, (rows, columns) in self.config.parameter_shapes().items():
            arrays[name] = flat[start : start + rows * columns].reshape(rows, columns)
            start += rows * columns
        return arrays

    def __repr__(self) -> str:
        return f"GPT({self.config}, dtype={self.dtype!r}, backend={self.backend!r})"
