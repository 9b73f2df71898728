from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onerec.data.events import EventLog, find_duplicates, index_events, number_ids
from onerec.data.settings import Policies
from onerec.data.tables import RawTables
from onerec.data.validation import Report


def index(tables: RawTables) -> EventLog:
    return index_events(Report(tables, Policies()), np.ones(tables.events.height, dtype=bool))


def test_log_is_sorted_by_user_and_time(tables: RawTables) -> None:
    log = index(tables)
    assert log.user_ids.to_list() == ["ann", "bob", "cy"]
    np.testing.assert_array_equal(log.offsets, [0, 4, 7, 10])
    np.testing.assert_array_equal(log.items, [0, 2, 1, 3, 1, 2, 0, 0, 3, 1])
    np.testing.assert_array_equal(log.moments[:4], [100_000_000, 102_000_000, 104_000_000, 109_000_000])


def test_ties_in_time_go_by_position_then_by_row(make_tables: Callable[..., RawTables]) -> None:
    events = pl.DataFrame({"user_id": [7, 7, 7], "item_id": ["a", "b", "c"], "timestamp": [5, 5, 4]})
    np.testing.assert_array_equal(index(make_tables(events=events)).items, [2, 0, 1])
    placed = events.with_columns(position=pl.Series([2, 1, 0]))
    np.testing.assert_array_equal(index(make_tables(events=placed)).items, [2, 1, 0])


def test_time_goes_before_position_where_they_disagree(make_tables: Callable[..., RawTables]) -> None:
    events = pl.DataFrame({"user_id": [7, 7], "item_id": ["a", "b"], "timestamp": [5, 6], "position": [1, 0]})
    np.testing.assert_array_equal(index(make_tables(events=events)).items, [0, 1])


def test_parts_of_a_second_count(make_tables: Callable[..., RawTables]) -> None:
    events = pl.DataFrame({"user_id": [7, 7], "item_id": ["a", "b"], "timestamp": [1.6e9 + 0.002, 1.6e9 + 0.001]})
    np.testing.assert_array_equal(index(make_tables(events=events)).items, [1, 0])


def test_users_without_events_are_numbered_away(tables: RawTables) -> None:
    log = index(tables)
    left = log.select(log.users != 1).without_absent_users()
    assert left.user_ids.to_list() == ["ann", "cy"]
    np.testing.assert_array_equal(left.users, [0, 0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("ids", "known"),
    [
        (pl.Series(["b", None, "x", "a"]), pl.Series(["a", "b"])),
        (pl.Series([9, None, 3, 5], dtype=pl.Int32), pl.Series([5, 9], dtype=pl.Int64)),
        (pl.Series([2**63 + 9, None, 3, 5], dtype=pl.UInt64), pl.Series([5, 2**63 + 9], dtype=pl.UInt64)),
        (pl.Series([2**63 - 1, None, 3, 5], dtype=pl.UInt64), pl.Series([5, 2**63 - 1], dtype=pl.Int64)),
    ],
)
def test_ids_of_any_kind_are_numbered(ids: pl.Series, known: pl.Series) -> None:
    numbers = number_ids(ids, known)
    np.testing.assert_array_equal(numbers, [1, -1, -1, 0])
    assert numbers.dtype == np.int32


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), max_size=30), st.booleans())
def test_duplicates_equal_a_walk(events: list[tuple[int, int, int]], by_item: bool) -> None:
    events = sorted(events, key=lambda event: event[:2])
    users, moments, items = np.array(events, dtype=np.int64).reshape(-1, 3).T
    found = find_duplicates(EventLog(users, items, moments, np.arange(len(users)), pl.Series([])), by_item)
    seen: set[tuple[int, ...]] = set()
    for event, duplicate in zip(events, found, strict=True):
        key = event if by_item else event[:2]
        assert duplicate == (key in seen)
        seen.add(key)
