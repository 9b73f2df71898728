"""The supervised windows: filtered targets are ignored, and processes share every window of a step."""

import dataclasses

import numpy as np
import pytest
import torch

from onerec.data.batches import IGNORED_TARGET, bucketed_batches, many_target_windows, one_target_windows
from onerec.errors import DataError
from rl.settings import SupervisedSettings
from rl.supervision import SupervisedWindows, kept_targets

CPU = torch.device("cpu")


def targets(windows: SupervisedWindows, num_steps: int) -> list[int]:
    batches = [windows.at(step, CPU) for step in range(num_steps)]
    return sorted(
        int(item)
        for batch in batches
        if batch.counted
        for item in batch.inputs["target_items"].ravel()
        if item != IGNORED_TARGET
    )


@pytest.mark.parametrize("make_windows", [many_target_windows, one_target_windows])
def test_targets_with_the_lowest_play_time_are_dropped(toy, make_windows) -> None:
    training = toy.histories.training()
    kept_N = kept_targets(training, SupervisedSettings(filter_column="watch_seconds", drop_share=0.5))
    # Everybody watched 1 to 5 seconds; the median is 3, and what lies above it stays.
    assert kept_N.reshape(12, 5).tolist() == [[False, False, False, True, True]] * 12
    windows = SupervisedWindows(make_windows(toy.histories, 3), kept_N, 1, 10_000, seed=0)
    assert targets(windows, 1) == sorted(training.items[kept_N].tolist())
    everything = SupervisedWindows(make_windows(toy.histories, 3), None, 1, 10_000, seed=0)
    assert targets(everything, 1) == sorted(training.items.tolist())


def test_filtered_targets_are_the_right_ones_where_leading_positions_have_none(toy) -> None:
    training = toy.histories.training()
    windows = many_target_windows(toy.histories, 3)
    shapes = windows.num_positions, windows.num_untrained_positions
    num_steps = len(bucketed_batches(*shapes, 4, 0, 0))  # one pass, a window a step
    assert windows.num_untrained_positions.max() > 0
    kept_N = np.random.default_rng(0).random(training.num_events) < 0.6
    found = targets(SupervisedWindows(windows, kept_N, num_steps, 4, seed=0), num_steps)
    assert found == sorted(training.items[kept_N].tolist())


def test_processes_share_the_windows_of_a_step(toy) -> None:
    windows = many_target_windows(toy.histories, 3)
    alone = SupervisedWindows(windows, None, 9, 30, seed=0)
    shares = [SupervisedWindows(windows, None, 9, 30, seed=0, rank=rank, num_processes=2) for rank in range(2)]
    assert sorted(targets(shares[0], 9) + targets(shares[1], 9)) == targets(alone, 9)


def test_a_process_without_a_window_takes_a_step_that_does_not_count(toy) -> None:
    windows = SupervisedWindows(many_target_windows(toy.histories, 3), None, 1, 1, seed=0, rank=1, num_processes=2)
    batch = windows.at(0, CPU)
    assert not batch.counted
    assert (batch.inputs["target_items"] != IGNORED_TARGET).any()


def test_a_step_whose_targets_are_all_dropped_does_not_count(toy) -> None:
    none_N = np.zeros(toy.histories.training().num_events, dtype=bool)
    batch = SupervisedWindows(many_target_windows(toy.histories, 3), none_N, 1, 100, seed=0).at(0, CPU)
    assert not batch.counted
    assert (batch.inputs["target_items"] != IGNORED_TARGET).any()


def test_a_filter_column_must_say_something(toy) -> None:
    with pytest.raises(DataError, match="no column 'likes', expected one of watch_seconds"):
        kept_targets(toy.histories, SupervisedSettings(filter_column="likes"))


def test_a_filter_that_would_leave_no_target_is_refused(toy) -> None:
    """Of a like that most events have, no share can be dropped from below but those without it."""
    training = toy.histories.training()
    likes_N = (np.arange(training.num_events) % 5 > 0).astype(np.float32)
    liked = dataclasses.replace(training, feedback={"like": likes_N})
    with pytest.raises(DataError, match="found its largest value, 1, in 50% of the events or more"):
        kept_targets(liked, SupervisedSettings(filter_column="like", drop_share=0.5))
    kept_N = kept_targets(liked, SupervisedSettings(filter_column="like", drop_share=0.1))
    assert kept_N.tolist() == likes_N.astype(bool).tolist()
