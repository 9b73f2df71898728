from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onerec.data.histories import Histories, Split
from onerec.errors import DataError


def example() -> Histories:
    """User 0: items 3 1 4 (train, validation, test); user 1: none; user 2: items 1 5 (train, train)."""
    return Histories(
        offsets=np.array([0, 3, 3, 5]),
        items=np.array([3, 1, 4, 1, 5], dtype=np.int32),
        timestamps=np.array([10, 20, 30, 5, 6]),
        splits=np.array([0, 1, 2, 0, 0], dtype=np.uint8),
        feedback={"rating": np.array([1, 2, 3, 4, 5], dtype=np.float32)},
    )


def test_views_by_hand() -> None:
    histories = example()
    assert (histories.num_users, histories.num_events) == (3, 5)
    np.testing.assert_array_equal(histories.targets(Split.TEST), [2])
    np.testing.assert_array_equal(histories.targets(Split.TRAIN), [0, 3, 4])
    np.testing.assert_array_equal(histories.users_of(np.arange(5)), [0, 0, 0, 2, 2])
    np.testing.assert_array_equal(histories.before(2), [3, 1])
    np.testing.assert_array_equal(histories.before(3), [])
    np.testing.assert_array_equal(histories.before(4), [1])
    np.testing.assert_array_equal(histories.item_counts(7), [0, 2, 0, 1, 1, 1, 0])


def test_training_keeps_one_row_range_a_user() -> None:
    training = example().training()
    np.testing.assert_array_equal(training.offsets, [0, 1, 1, 3])
    np.testing.assert_array_equal(training.items, [3, 1, 5])
    np.testing.assert_array_equal(training.feedback["rating"], [1, 4, 5])


def test_saved_histories_come_back_memory_mapped(tmp_path: Path) -> None:
    example().save(tmp_path)
    loaded = Histories.load(tmp_path)
    for name in ("offsets", "items", "timestamps", "splits"):
        array = getattr(loaded, name)
        assert isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, getattr(example(), name))
    np.testing.assert_array_equal(loaded.feedback["rating"], example().feedback["rating"])
    assert [loaded.items.dtype, loaded.offsets.dtype, loaded.splits.dtype] == [np.int32, np.int64, np.uint8]


def test_decreasing_split_labels_are_refused() -> None:
    histories = example()
    histories.splits[1] = Split.TEST
    histories.splits[2] = Split.VALIDATION
    with pytest.raises(DataError, match="decrease within a user at 1 rows, first at row 2"):
        histories.check()


def test_labels_may_fall_from_one_user_to_the_next() -> None:
    example().check()


def test_arrays_of_unequal_length_are_refused(tmp_path: Path) -> None:
    example().save(tmp_path)
    np.save(tmp_path / "splits.npy", np.zeros(4, dtype=np.uint8))
    with pytest.raises(DataError, match=r"'splits': 4.*expected 5 items"):
        Histories.load(tmp_path)


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=6), min_size=1, max_size=8))
def test_views_equal_a_walk_over_lists(users: list[list[tuple[int, int]]]) -> None:
    ordered = [sorted(events, key=lambda event: event[1]) for events in users]
    flat = [event for events in ordered for event in events]
    histories = Histories(
        offsets=np.concatenate(([0], np.cumsum([len(events) for events in ordered]))).astype(np.int64),
        items=np.array([item for item, _ in flat], dtype=np.int32),
        timestamps=np.arange(len(flat)),
        splits=np.array([label for _, label in flat], dtype=np.uint8),
    )
    histories.check()
    training = histories.training()
    row = 0
    for user, events in enumerate(ordered):
        start, end = training.offsets[user : user + 2]
        assert training.items[start:end].tolist() == [item for item, label in events if label == Split.TRAIN]
        for place in range(len(events)):
            assert histories.before(row).tolist() == [item for item, _ in events[:place]]
            assert histories.users_of(np.array([row])).item() == user
            row += 1
