"""A small catalogue with buckets, a model of it far from uniform, and users who walk through it in a circle."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from onerec.data.histories import Histories, Split
from onerec.decoding.trie import Trie
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec

NUM_ITEMS = 14
SIZES = (3, 4, 2)


@dataclass(frozen=True)
class Toy:
    """What most tests of reinforcement learning begin with."""

    model: OneRec
    trie: Trie
    codes_NL: np.ndarray
    histories: Histories


@pytest.fixture
def toy() -> Toy:
    rng = np.random.default_rng(0)
    codes_NL = rng.integers(0, SIZES, (NUM_ITEMS, len(SIZES)))
    codes_NL[1] = codes_NL[0]  # a bucket
    torch.manual_seed(0)
    config = OneRecConfig(SIZES, NUM_ITEMS, d_model=16, d_ff=32, max_history_items=4, dropout=0.0)
    model = OneRec(config).eval()
    model.set_codes(codes_NL, "hash")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    trie = Trie.from_table(codes_NL, SIZES, np.arange(NUM_ITEMS))
    return Toy(model, trie, codes_NL, circular_histories())


def circular_histories(num_users: int = 12, length: int = 7) -> Histories:
    """User u starts at item u; the last two events are held out. Watched 1 to 7 seconds, in the order of time."""
    items = (np.arange(num_users)[:, None] + np.arange(length)) % NUM_ITEMS
    splits = np.tile([Split.TRAIN] * (length - 2) + [Split.VALIDATION, Split.TEST], num_users)
    times = np.tile(np.arange(length), num_users)
    offsets = np.arange(num_users + 1, dtype=np.int64) * length
    feedback = {"watch_seconds": (times + 1).astype(np.float32)}
    return Histories(offsets, items.astype(np.int32).ravel(), times, splits.astype(np.uint8), feedback)
