"""Windows over new events: each a target once, with context, and the plain windows where nothing has been trained."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.data.batches import many_target_windows, one_target_windows
from onerec.data.histories import Histories, Split
from onerec.streaming.windows import new_event_windows


def make_histories(counts: list[tuple[int, int]]) -> Histories:
    """Users with so many trained and so many new events."""
    lengths = [trained + new for trained, new in counts]
    labels = np.concatenate([[Split.TRAIN] * trained + [Split.TEST] * new for trained, new in counts] or [[]])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = np.arange(offsets[-1], dtype=np.int32)
    return Histories(offsets, items, items.astype(np.int64), labels.astype(np.uint8))


USERS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6)


@given(USERS, st.integers(1, 9))
def test_every_new_event_is_a_target_once_with_half_a_window_before_it(
    counts: list[tuple[int, int]], max_items: int
) -> None:
    histories = make_histories(counts)
    windows = new_event_windows(histories, max_items, many_targets=True)
    targets = [
        (row, window)
        for window in range(len(windows))
        for row in range(windows.first_targets[window], windows.stops[window])
    ]
    assert sorted(row for row, _ in targets) == np.flatnonzero(histories.splits == Split.TEST).tolist()
    assert (windows.num_positions <= max_items + 1).all()
    for row, window in targets:
        first = histories.offsets[histories.users_of(np.array([row]))[0]]
        assert windows.starts[window] >= first
        assert row - windows.starts[window] >= min(row - first, max_items + 1 - max(max_items // 2, 1))


@pytest.mark.parametrize("many_targets", [True, False])
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6), max_items=st.integers(1, 9))
def test_where_nothing_is_trained_they_are_the_windows_of_pretraining(
    lengths: list[int], max_items: int, many_targets: bool
) -> None:
    new = make_histories([(0, length) for length in lengths])
    training = make_histories([(length, 0) for length in lengths])
    expected = (many_target_windows if many_targets else one_target_windows)(training, max_items)
    found = new_event_windows(new, max_items, many_targets)
    for name in ("starts", "stops", "first_targets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_one_target_windows_by_hand() -> None:
    windows = new_event_windows(make_histories([(3, 1), (0, 2)]), 2, many_targets=False)
    assert list(zip(windows.starts, windows.first_targets, windows.stops, strict=True)) == [
        (1, 3, 4),
        (4, 4, 5),
        (4, 5, 6),
    ]
