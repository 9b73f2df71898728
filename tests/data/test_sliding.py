"""Windows that slide over epochs: worked by hand, every target once a cycle, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.data.batches import TrainingWindows
from onerec.data.histories import Histories, Split
from onerec.data.sliding import sliding_windows


def histories_of(*lengths: int) -> Histories:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.arange(offsets[-1])
    return Histories(offsets, rows.astype(np.int32), rows, np.full(len(rows), Split.TRAIN, dtype=np.uint8))


def targets_of(windows: TrainingWindows, epoch: int) -> list[int]:
    return [
        row for window in windows.of_epoch(epoch) for row in range(windows.first_targets[window], windows.stops[window])
    ]


@pytest.mark.parametrize(
    ("num_events", "expected"),
    [
        (3, [(0, 3, 0)]),
        (5, [(0, 5, 0)]),
        (6, [(1, 6, 4), (0, 4, 0)]),
        (9, [(4, 9, 7), (2, 7, 5), (0, 5, 0)]),
    ],
)
def test_windows_of_four_items_go_back_by_two(num_events: int, expected: list[tuple[int, int, int]]) -> None:
    windows = sliding_windows(histories_of(num_events), 4, True, 0, 0)
    found = zip(windows.starts, windows.stops, windows.first_targets, strict=True)
    assert [tuple(map(int, window)) for window in found] == expected


def test_newest_windows_take_their_epochs_and_none_is_left_out() -> None:
    windows = sliding_windows(histories_of(9), 4, True, newest_every=3, seed=0)  # three windows, 0 the newest
    order = [windows.of_epoch(epoch).tolist() for epoch in range(9)]
    assert [order[2], order[5], order[8]] == [[0], [0], [0]]
    slid = [order[epoch][0] for epoch in (0, 1, 3, 4, 6, 7)]
    first = slid[0]
    assert slid == [(first + step) % 3 for step in range(6)]


@pytest.mark.parametrize("many_targets", [True, False])
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6), max_items=st.integers(1, 9), seed=st.integers(0, 5)
)
def test_a_cycle_holds_every_target_once(many_targets: bool, lengths: list[int], max_items: int, seed: int) -> None:
    windows = sliding_windows(histories_of(*lengths), max_items, many_targets, 0, seed)
    assert windows.sliding is not None
    cycle = int(np.lcm.reduce(windows.sliding.num_turns_W)) if len(windows) else 1
    if cycle > 500:
        return
    found = np.bincount([row for epoch in range(cycle) for row in targets_of(windows, epoch)], minlength=sum(lengths))
    owners = np.repeat(np.arange(len(lengths)), lengths)
    turns = {
        int(user): int(turn)
        for user, turn in zip(windows.sliding.histories_W, windows.sliding.num_turns_W, strict=True)
    }
    assert found.tolist() == [cycle // turns[int(user)] for user in owners]
    for epoch in range(min(cycle, 5)):  # one turn of each history an epoch
        chosen = windows.of_epoch(epoch)
        users = windows.sliding.histories_W[chosen]
        assert set(users) == {user for user, length in enumerate(lengths) if length}
        turns_taken = np.unique(np.stack([users, windows.sliding.turns_W[chosen]]), axis=1)
        assert turns_taken.shape[1] == len(set(users))


def test_histories_begin_where_the_seed_says() -> None:
    histories = histories_of(*[30] * 20)
    first, again, other = (sliding_windows(histories, 4, True, 0, seed).of_epoch(0) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(set(sliding_windows(histories, 4, True, 0, 1).sliding.turns_W[first])) > 3
