from collections.abc import Callable

import numpy as np
import pytest

from tokenizer.behaviour.tokens import NO_WORD, TEXT, ItemTokens, TokenVectors

MakeTokens = Callable[..., ItemTokens]


@pytest.fixture(scope="session")
def make_tokens() -> MakeTokens:
    """Token vectors of `counts` items: random float16 rows; words count up from 100, each item opened by a mark."""

    def make(counts: list[int], width: int = 6, seed: int = 0, kind: str = TEXT) -> ItemTokens:
        counts_N = np.array(counts)
        starts_N = np.cumsum(counts_N) - counts_N
        words_T = 100 + np.arange(counts_N.sum()) % 7
        words_T[starts_N[counts_N > 0]] = NO_WORD
        vectors_TD = np.random.default_rng(seed).normal(size=(counts_N.sum(), width)).astype(np.float16)
        return ItemTokens({kind: TokenVectors(f"key{seed}", starts_N, counts_N, vectors_TD, words_T)})

    return make
