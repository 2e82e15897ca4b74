"""Drawing documents from a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def sample_documents(
    engine: Any, generator: Any, bos: int, n: int, temperature: float
) -> Iterator[list[int]]:
    """`n` documents one after the other, each the tokens between `bos` and the next `bos`, at most block_size.

    Source: the inference loop of microgpt; the generator is spent in its order, once for each token drawn.
    """
    for _ in range(n):
        cache = engine.new_cache(1)
        tokens = [bos]
        while len(tokens) <= engine.config.block_size:
            last, uniforms = np.array(tokens[-1:], np.int32), np.array([generator.random()])
            tokens.append(int(engine.draw_tokens(cache, last, temperature, uniforms)[0]))
            if tokens[-1] == bos:
                tokens.pop()
                break
        yield tokens[1:]
