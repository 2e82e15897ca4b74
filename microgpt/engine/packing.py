"""Token sequences packed end to end, as every engine takes them.

This is the boundary: sequences are validated before they are packed, and the engines trust them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microgpt.utils.arguments import check_order, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class PackedSequences:
    """Sequence i is `tokens[starts[i] : starts[i] + lengths[i]]`, each with at least 2 tokens.

    Attributes:
        tokens: int32, every one in [0, vocab_size).
        starts, lengths: int64, one for each sequence. Sequences may overlap or repeat.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def select(self, indices: NDArray[np.int64]) -> PackedSequences:
        """The sequences at these indices, over the same tokens."""
        return PackedSequences(self.tokens, self.starts[indices], self.lengths[indices])

    def compact(self) -> PackedSequences:
        """A copy of the sequences alone, end to end."""
        starts = np.cumsum(self.lengths) - self.lengths
        sources = np.arange(self.lengths.sum()) + np.repeat(self.starts - starts, self.lengths.astype(np.intp))
        return PackedSequences(self.tokens[sources].astype(np.int32, copy=False), starts, self.lengths)

    def split(self, positions: int) -> PackedSequences:
        """Pieces of at most `positions` positions; the last target of one is the first input of the next."""
        counts = self.piece_counts(positions)
        offsets = positions * (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts))
        starts, lengths = np.repeat(self.starts, counts), np.repeat(self.lengths, counts)
        return PackedSequences(self.tokens, starts + offsets, np.minimum(lengths - offsets, positions + 1))

    def piece_counts(self, positions: int) -> NDArray[np.intp]:
        """The number of pieces of each sequence in `split`: its last token has no position."""
        counts: NDArray[np.intp] = ((self.lengths - 2) // positions + 1).astype(np.intp)
        return counts

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def joined(cls, parts: Sequence[PackedSequences]) -> PackedSequences:
        """All sequences of several packs, in order."""
        ends = np.cumsum([len(part.tokens) for part in parts])
        starts = [part.starts + end - len(part.tokens) for part, end in zip(parts, ends)]
        lengths = [part.lengths for part in parts]
        return cls(np.concatenate([part.tokens for part in parts]), np.concatenate(starts), np.concatenate(lengths))


def token_array(name: str, tokens: Sequence[int], vocab_size: int) -> NDArray[np.int32]:
    """`tokens` as int32; `TypeError` if they are not whole numbers, `ValueError` if one is not in [0, vocab_size)."""
    try:
        array = np.asarray(tokens)
    except ValueError:
        array = np.empty((0, 0), object)
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be a sequence of whole numbers, got {shown(tokens)}")
    outside = np.flatnonzero((array < 0) | (array >= vocab_size))
    if outside.size:
        first = int(outside[0])
        raise ValueError(f"{name}[{first}] is {array[first]}, out of range for vocab_size={vocab_size}")
    return array.astype(np.int32)


def context_array(tokens: Sequence[int], vocab_size: int, block_size: int) -> NDArray[np.int32]:
    """`token_array` of a context; `ValueError` if it does not have 1 to `block_size` tokens."""
    array = token_array("tokens", tokens, vocab_size)
    if not 1 <= len(array) <= block_size:
        raise ValueError(f"tokens must be 1 to block_size={block_size} tokens, got {len(array)}")
    return array


def pack(sequences: Sequence[Sequence[int]], vocab_size: int) -> PackedSequences:
    """Token sequences, each of at least two tokens, end to end.

    `TypeError` or `ValueError` names the sequence, and the token that is not a whole number in [0, vocab_size).
    """
    if isinstance(sequences, (str, bytes)) or not hasattr(sequences, "__iter__"):
        raise TypeError(f"sequences must be a list of token sequences, got {shown(sequences)}")
    check_order("sequences", sequences)
    arrays = []
    for i, sequence in enumerate(sequences):
        if isinstance(sequence, str) or not hasattr(sequence, "__len__"):
            raise TypeError(f"sequences[{i}] must be a sequence of whole numbers, got {shown(sequence)}")
        if len(sequence) < 2:
            raise ValueError(
                f"sequences[{i}] must have at least 2 tokens, so that one can be predicted, got {len(sequence)}"
            )
        arrays.append(token_array(f"sequences[{i}]", sequence, vocab_size))
    if not arrays:
        raise ValueError("sequences must hold at least one token sequence, got none")
    lengths = np.array([len(array) for array in arrays], np.int64)
    return PackedSequences(np.concatenate(arrays), np.cumsum(lengths) - lengths, lengths)
