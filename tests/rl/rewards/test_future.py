"""The reward of later events, by hand-worked values and against a loop."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onerec.data.histories import Histories
from onerec.errors import ConfigError, DataError
from rl.rewards.future import FutureReward, FutureRewardSettings

LISTS = [[7, 3, 5, 3], [1, 2]]
RATINGS = [1.0, 5.0, 2.0, 4.0, 3.0, 4.0]


def log(lists: list[list[int]], **feedback: list[float]) -> Histories:
    items = np.concatenate([np.array(items, dtype=np.int32) for items in lists])
    offsets = np.cumsum([0] + [len(items) for items in lists])
    columns = {name: np.array(values, dtype=np.float32) for name, values in feedback.items()}
    return Histories(offsets, items, np.arange(len(items)), np.zeros(len(items), dtype=np.uint8), columns)


def rewards(row: int, items: list[int], **settings: object) -> list[float]:
    judge = FutureReward(log(LISTS, rating=RATINGS), FutureRewardSettings.model_validate(settings))
    return judge(np.array([row]), np.array([items]))[0].tolist()


def test_later_items_earn_what_their_events_are_worth() -> None:
    assert rewards(1, [3, 5, 7, 9, -1], window_events=2) == [1, 1, 0, 0, 0]
    assert rewards(1, [3, 5, 7, 1], window_events=2, column="rating") == pytest.approx([1, 0.4, 0, 0])


def test_the_first_meeting_counts_and_another_user_does_not() -> None:
    assert rewards(2, [3, 5, 1, 2], window_events=9, column="rating") == pytest.approx([0.8, 0.4, 0, 0])
    assert rewards(1, [3], window_events=9, column="rating") == [1]
    assert rewards(5, [2, 1], window_events=9) == [1, 0]


def test_columns_are_refused_that_value_nothing() -> None:
    with pytest.raises(ConfigError, match="expected a feedback column: rating"):
        rewards(1, [3], column="stars")
    wrongs = {"missing or negative": [[float("nan")] * 6, [-1.0] * 6], "everywhere": [[0.0] * 6, [3.0] * 6]}
    for message, ratings in wrongs.items():
        for wrong in ratings:
            with pytest.raises(DataError, match=message):
                FutureReward(log(LISTS, rating=wrong), FutureRewardSettings(column="rating"))


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=7), min_size=1, max_size=4), st.integers(1, 9))
def test_equals_a_loop(lists: list[list[int]], window: int) -> None:
    values = [float(value) for value in range(1, sum(map(len, lists)) + 1)]
    assume(len(values) > 1)
    judge = FutureReward(log(lists, rating=values), FutureRewardSettings(window_events=window, column="rating"))
    rows = np.arange(len(values))
    found_BG = judge(rows, np.tile(np.arange(5), (len(rows), 1)))
    flat = iter(range(len(values)))
    for items in lists:
        own = [next(flat) for _ in items]
        for place, row in enumerate(own):
            coming = items[place : place + window]
            wanted = [values[own[place + coming.index(i)]] / len(values) if i in coming else 0 for i in range(5)]
            np.testing.assert_allclose(found_BG[row], wanted, rtol=1e-6)
