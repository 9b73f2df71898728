import itertools
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from onerec.data.settings import DataSettings, SplitSettings
from onerec.data.splits import assert_order, leave_one_out, split_by_column, split_by_time, split_events
from onerec.errors import ConfigError, DataError
from tokenizer.settings import build_settings


def test_leave_one_out_by_hand() -> None:
    labels, num_short = leave_one_out(np.array([0, 4, 6, 6, 7, 10]))
    np.testing.assert_array_equal(labels, [0, 0, 1, 2, 0, 0, 0, 0, 1, 2])
    assert num_short == 3  # users of two, no and one event


@hypothesis_settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_leave_one_out_leaves_one_of_each_or_none(lengths: list[int]) -> None:
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    labels, num_short = leave_one_out(offsets)
    for start, end in itertools.pairwise(offsets):
        expected = [0] * (end - start - 2) + [1, 2] if end - start >= 3 else [0] * (end - start)
        assert labels[start:end].tolist() == expected
    assert num_short == sum(length < 3 for length in lengths)


def test_time_split_by_dates() -> None:
    seconds = np.array([datetime(2020, month, 1, tzinfo=UTC).timestamp() for month in (3, 1, 2, 3, 4)])
    settings = SplitSettings(
        kind="global_time", validation_from=datetime(2020, 2, 1), test_from=datetime(2020, 3, 1, tzinfo=UTC)
    )
    np.testing.assert_array_equal(split_by_time(seconds, settings), [2, 0, 1, 2, 2])


def test_time_split_by_shares() -> None:
    seconds = np.array([9, 3, 1, 7, 5, 0, 2, 4, 6, 8])
    settings = SplitSettings(kind="global_time", validation_fraction=0.2, test_fraction=0.1)
    np.testing.assert_array_equal(split_by_time(seconds, settings), [2, 0, 0, 1, 0, 0, 0, 0, 0, 1])


@hypothesis_settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=50), st.floats(0, 0.4), st.floats(0.05, 0.5))
def test_no_moment_lies_on_both_sides_of_a_cut(moments: list[int], validation: float, test: float) -> None:
    settings = SplitSettings(kind="global_time", validation_fraction=validation, test_fraction=test)
    labels = split_by_time(np.array(moments), settings)
    in_order = labels[np.argsort(moments, kind="stable")]
    assert (np.diff(in_order.astype(int)) >= 0).all()
    for moment in set(moments):
        assert len({label for label, other in zip(labels, moments, strict=True) if other == moment}) == 1


def test_column_split_maps_labels() -> None:
    labels = split_by_column(pl.Series(["train", "valid", "test", "validation"]), SplitSettings(kind="column"))
    np.testing.assert_array_equal(labels, [0, 1, 2, 1])


def test_unknown_or_null_label_is_refused() -> None:
    with pytest.raises(DataError, match=r"2 split labels are none of 'train'.*'april'"):
        split_by_column(pl.Series(["train", "april", None]), SplitSettings(kind="column"))


@pytest.mark.parametrize(("kind", "reason"), [("global_time", "order only"), ("column", "no split column")])
def test_kind_that_the_data_cannot_serve(kind: str, reason: str) -> None:
    settings = build_settings(SplitSettings, {"kind": kind}, "test")
    with pytest.raises(ConfigError, match=reason):
        split_events(np.array([0, 1]), None, None, settings)


def test_order_is_asserted_within_users_only() -> None:
    assert_order(np.array([0, 2, 4]), np.array([5, 6, 1, 2]))
    with pytest.raises(AssertionError, match="at 1 rows, first at row 3"):
        assert_order(np.array([0, 2, 4]), np.array([5, 6, 2, 1]))


@pytest.mark.parametrize(
    "section",
    [
        {"validation_from": "2020-01-01"},
        {"validation_from": "2020-02-01", "test_from": "2020-01-01"},
        {"validation_fraction": 0.5, "test_fraction": 0.5},
        {"kind": "leave_one_in"},
    ],
)
def test_contradictory_settings_are_refused(section: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        build_settings(DataSettings, {"split": section}, "test")
