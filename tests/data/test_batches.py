"""Windows worked by hand, every training event a target exactly once, batches that lose nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.data.batches import (
    IGNORED_TARGET,
    TrainingWindows,
    bucketed_batches,
    many_target_windows,
    one_target_windows,
)
from onerec.data.histories import Histories, Split


def histories_of(*lengths: int, held_out: int = 0) -> Histories:
    """Users of so many training events, then `held_out` test events; the item of row r is 10 + r."""
    per_user = [[Split.TRAIN] * length + [Split.TEST] * held_out for length in lengths]
    splits = np.array([label for user in per_user for label in user], dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in per_user])]).astype(np.int64)
    rows = np.arange(len(splits))
    return Histories(offsets, (10 + rows).astype(np.int32), rows, splits)


def spans(windows: TrainingWindows) -> list[tuple[int, int, int]]:
    """(first row, end row, first row that is a target) of each window."""
    return list(zip(windows.starts.tolist(), windows.stops.tolist(), windows.first_targets.tolist(), strict=True))


def trained_pairs(windows: TrainingWindows) -> list[tuple[list[int], int]]:
    """(context, target) of every target, read off the collated tensors."""
    pairs = []
    for window in range(len(windows)):
        batch = windows.collate(np.array([window]))
        inputs = [int(token) - 1 for token in batch["input_ids"][0] if token]
        targets = batch["target_items"][0].tolist()
        cuts = range(len(inputs) + 1 - len(targets), len(inputs) + 1) if inputs else range(len(targets))
        pairs += [(inputs[:cut], target) for cut, target in zip(cuts, targets, strict=True) if target != IGNORED_TARGET]
    return pairs


@pytest.mark.parametrize(
    ("num_events", "expected"),
    [
        (1, [(0, 1, 0)]),
        (3, [(0, 3, 0)]),
        (5, [(0, 5, 0)]),  # four inputs and the target after them: exactly one window
        (6, [(0, 5, 0), (1, 6, 5)]),
        (7, [(0, 5, 0), (2, 7, 5)]),
        (8, [(0, 5, 0), (2, 7, 5), (3, 8, 7)]),
    ],
)
def test_windows_of_four_items_by_hand(num_events: int, expected: list[tuple[int, int, int]]) -> None:
    assert spans(many_target_windows(histories_of(num_events), 4)) == expected


def test_windows_stay_within_their_user() -> None:
    windows = many_target_windows(histories_of(6, 0, 1, 2, held_out=2), 4)
    assert spans(windows) == [(0, 5, 0), (1, 6, 5), (6, 7, 6), (7, 9, 7)]
    assert windows.items[6:].tolist() == [20, 23, 24]  # rows of training events only
    assert windows.num_targets == 9


def test_windows_of_one_item() -> None:
    assert trained_pairs(many_target_windows(histories_of(4), 1)) == [([], 10), ([10], 11), ([11], 12), ([12], 13)]


def test_one_target_windows_by_hand() -> None:
    windows = one_target_windows(histories_of(4, 0, 1, held_out=1), 2)
    assert spans(windows) == [(0, 1, 0), (0, 2, 1), (0, 3, 2), (1, 4, 3), (4, 5, 4)]
    assert trained_pairs(windows) == [([], 10), ([10], 11), ([10, 11], 12), ([11, 12], 13), ([], 16)]


@pytest.mark.parametrize("make_windows", [many_target_windows, one_target_windows])
def test_no_training_event_no_window(make_windows) -> None:
    assert len(make_windows(histories_of(0, 0, held_out=2), 4)) == 0


def test_collate_by_hand() -> None:
    windows = many_target_windows(histories_of(6, 1), 4)
    batch = windows.collate(np.array([0, 1, 2]))
    assert batch["input_ids"].tolist() == [[11, 12, 13, 14], [12, 13, 14, 15], [0, 0, 0, 0]]
    ignored = IGNORED_TARGET
    assert batch["target_items"].tolist() == [
        [10, 11, 12, 13, 14],
        [ignored, ignored, ignored, ignored, 15],  # the others are targets of the window before
        [16, ignored, ignored, ignored, ignored],
    ]
    assert batch["input_ids"].dtype == batch["target_items"].dtype


def test_collate_one_target_by_hand() -> None:
    windows = one_target_windows(histories_of(3), 4)
    batch = windows.collate(np.array([2, 0]))
    assert batch["input_ids"].tolist() == [[11, 12], [0, 0]]
    assert batch["target_items"].tolist() == [[12], [10]]


def test_a_lone_first_event_is_a_row_of_padding() -> None:
    batch = many_target_windows(histories_of(1), 4).collate(np.array([0]))
    assert batch["input_ids"].tolist() == [[0]]
    assert batch["target_items"].tolist() == [[10, IGNORED_TARGET]]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 2))
def test_every_training_event_is_a_target_once_with_context(lengths: list[int], max_items: int, held_out: int) -> None:
    histories = histories_of(*lengths, held_out=held_out)
    training = histories.training()
    position = {
        int(item): place
        for first, end in zip(training.offsets[:-1], training.offsets[1:], strict=True)
        for place, item in enumerate(training.items[first:end])
    }
    for make_windows in (many_target_windows, one_target_windows):
        windows = make_windows(histories, max_items)
        pairs = trained_pairs(windows)
        assert sorted(target for _, target in pairs) == sorted(position)
        assert windows.num_targets == len(pairs)
        assert (windows.num_positions <= max_items + 1).all()
        for context, target in pairs:
            assert context == list(range(target - len(context), target))
            least = min(position[target], max_items if windows.one_target else max_items // 2)
            assert least <= len(context) <= min(position[target], max_items)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=400), st.integers(1, 60), st.integers(0, 9), st.integers(0, 9))
def test_batches_lose_nothing_and_keep_their_budget(
    widths: list[int], max_positions: int, seed: int, epoch: int
) -> None:
    num_positions = np.array(widths)
    untrained = np.arange(len(widths)) % 3
    batches = bucketed_batches(num_positions, untrained, max_positions, seed, epoch)
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(len(widths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * num_positions[batch].max() <= max_positions
    again = bucketed_batches(num_positions, untrained, max_positions, seed, epoch)
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in batches]


def test_epochs_and_seeds_differ() -> None:
    num_positions = np.random.default_rng(0).integers(1, 20, 300)
    orders = {
        (seed, epoch): [batch.tolist() for batch in bucketed_batches(num_positions, np.zeros(300), 64, seed, epoch)]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({str(order) for order in orders.values()}) == 4
    for order in orders.values():
        lengths = [num_positions[batch].mean() for batch in order]
        assert lengths != sorted(lengths)  # batches are not in order of length


def test_batches_of_equal_widths_are_full() -> None:
    batches = bucketed_batches(np.full(10, 4), np.zeros(10), 16, seed=0, epoch=0)
    assert sorted(len(batch) for batch in batches) == [2, 4, 4]


def test_windows_with_as_many_untrained_positions_share_a_batch_that_leaves_them_out() -> None:
    windows = many_target_windows(histories_of(7, 7, 5, 5), 4)  # two windows each of the long, one of the others
    assert windows.num_untrained_positions.tolist() == [0, 3, 0, 3, 0, 0]
    batches = bucketed_batches(windows.num_positions, windows.num_untrained_positions, 20, seed=0, epoch=0)
    assert sorted(sorted(batch.tolist()) for batch in batches) == [[0, 2, 4, 5], [1, 3]]
    later = windows.collate(np.array([1, 3]))
    assert later["input_ids"].shape == (2, 4)
    assert later["target_items"].tolist() == [[15, 16], [22, 23]]


def test_a_batch_of_both_kinds_keeps_every_target_under_its_position() -> None:
    windows = many_target_windows(histories_of(7), 4)
    both = windows.collate(np.array([0, 1]))["target_items"]
    assert both.tolist() == [[10, 11, 12, 13, 14], [IGNORED_TARGET] * 3 + [15, 16]]
