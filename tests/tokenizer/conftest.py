from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from tokenizer.config import TokenizerSettings
from tokenizer.sequences import Sequences
from tokenizer.settings import build_settings

NUM_ITEMS = 120


@pytest.fixture
def items() -> pl.DataFrame:
    """120 items in twelve kinds, with ready vectors."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(12, 8)) * 4
    vectors = centres[np.arange(NUM_ITEMS) % 12] + random.normal(size=(NUM_ITEMS, 8))
    return pl.DataFrame({"item_id": [f"i{row}" for row in range(NUM_ITEMS)], "vector": vectors.tolist()})


@pytest.fixture
def sequences() -> Sequences:
    """40 users who stay within one kind of item."""
    random = np.random.default_rng(1)
    rows = [random.integers(0, 10, 6) * 12 + user % 12 for user in range(40)]
    return Sequences(np.arange(0, 241, 6), np.concatenate(rows).astype(np.int32))


@pytest.fixture
def make_settings() -> Callable[..., TokenizerSettings]:
    """Settings of a fast tokenizer on given vectors; keyword arguments replace whole groups."""

    def make(**groups: Any) -> TokenizerSettings:
        tree: dict[str, Any] = {
            "text": {"weight": 0},
            "collaborative": {"weight": 0.3, "width": 4},
            "given": {"weight": 0.7, "source": "vector"},
            "quantizer": {"codes_per_level": [8, 8], "iterations": 5},
        }
        return build_settings(TokenizerSettings, tree | groups, "test")

    return make
