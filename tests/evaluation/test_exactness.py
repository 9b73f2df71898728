"""Shares of requests that beams answer as the exact search does."""

from typing import Any

import numpy as np
import pytest

from onerec.bundle import build_trie
from onerec.data.histories import Histories
from onerec.decoding.recommender import OneRecRecommender
from onerec.errors import ConfigError
from onerec.evaluation.exactness import LIST_LENGTH, shares_equal_to_exact
from onerec.evaluation.recommender import Ranking

NUM_USERS, NUM_EVENTS = 30, 6
ROWS = np.arange(1, NUM_USERS + 1) * NUM_EVENTS - 1  # each user's newest event


@pytest.fixture
def recommender(small_run: Any) -> OneRecRecommender:
    return OneRecRecommender(small_run.model, build_trie(small_run.table), num_beams=12)


@pytest.fixture(scope="module")
def histories(small_run: Any) -> Histories:
    num_rows = NUM_USERS * NUM_EVENTS
    items = np.random.default_rng(0).integers(small_run.table.num_items, size=num_rows).astype(np.int32)
    offsets = np.arange(0, num_rows + 1, NUM_EVENTS)
    return Histories(offsets, items, np.arange(num_rows), np.zeros(num_rows, dtype=np.uint8))


def test_narrow_beams_miss_what_wide_ones_find(recommender: OneRecRecommender, histories: Histories) -> None:
    before = [histories.before(int(row)) for row in ROWS]
    narrow, widest = (
        recommender.search(recommender.encode(before), LIST_LENGTH, before, beams).items_BK for beams in (10, 128)
    )
    share = float((narrow == widest).all(axis=1).mean())
    assert 0 < share < 1
    assert shares_equal_to_exact(recommender, histories, ROWS) == {"10": share, "50": 1.0, "128": 1.0}


def test_what_an_exact_search_cannot_tell_is_left_out(
    recommender: OneRecRecommender, histories: Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_exactly = recommender.search_exactly

    def refuse_few(context: Any, k: int, excluded: Any, num_beams: int) -> tuple[Ranking, np.ndarray]:
        if num_beams < 50:
            raise ConfigError("exact search: found more than 8 prefixes")
        return search_exactly(context, k, excluded, num_beams)

    monkeypatch.setattr(recommender, "search_exactly", refuse_few)
    assert list(shares_equal_to_exact(recommender, histories, ROWS)) == ["50", "128"]
