"""New events behind each user's own, against plain lists, and what is late."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.data.histories import Histories, Split
from onerec.errors import DataError
from onerec.streaming.state import Log, NewRows, append_events


def histories_of(lists: list[list[int]]) -> Histories:
    """Users' items; moment k is that of a user's k-th event."""
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in lists])]).astype(np.int64)
    items = np.array([item for items in lists for item in items], dtype=np.int32)
    times = np.array([place for items in lists for place in range(len(items))], dtype=np.int64)
    return Histories(offsets, items, times, np.zeros(len(items), dtype=np.uint8))


EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99)), max_size=20)


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=4), EVENTS)
def test_appending_is_appending_to_each_users_list(old: list[list[int]], events: list[tuple[int, int]]) -> None:
    lists = [list(items) for items in old] + [[] for _ in range(6 - len(old))]
    for user, item in events:
        lists[user].append(item)
    users_E, items_E = (np.array([event[part] for event in events], dtype=np.int32) for part in (0, 1))
    rows = NewRows(items_E, 100 + np.arange(len(events)))
    found = append_events(histories_of(old), 6, users_E, rows)
    assert [found.items[a:b].tolist() for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)] == lists
    found.check()
    assert len(found.targets(Split.TEST)) == len(events)
    assert len(found.targets(Split.TRAIN)) == sum(len(items) for items in old)


def test_users_keep_their_numbers_and_new_ones_follow() -> None:
    log = Log(histories_of([[1], [2]]), pl.Series("user_id", [30, 10]), pl.DataFrame({"item_id": ["a", "b", "c"]}))
    rows = NewRows(np.array([0, 1, 2], dtype=np.int32), np.array([7, 8, 9]))
    after = log.append(pl.Series("user_id", [10, 20, 30]), log.items, np.array([0, 1, 2]), rows)
    assert after.user_ids.to_list() == [30, 10, 20]
    assert after.histories.offsets.tolist() == [0, 2, 4, 5]
    assert after.histories.items.tolist() == [1, 2, 2, 0, 1]
    assert after.trained().histories.splits.tolist() == [Split.TRAIN] * 5


def test_an_event_before_its_users_last_one_is_refused() -> None:
    old = histories_of([[1, 2, 3], [4]])  # moments 0, 1, 2 and 0
    rows = NewRows(np.array([5, 6], dtype=np.int32), np.array([1, 1]))
    with pytest.raises(DataError, match=r"1 events lie before one that their user has.*at 1 seconds after 2"):
        append_events(old, 2, np.array([0, 1]), rows)
