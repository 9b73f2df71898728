"""Training windows over ragged histories, batched by length so that little or nothing is padded.

Shapes: B batch, S positions of a window, P targets a row (S, or 1 in the one-target form).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onerec.data.histories import Histories

IGNORED_TARGET = -100
_BUCKETING_BATCHES = 32  # windows are sorted by length within the span of this many batches, so that order stays random


@dataclass(frozen=True)
class TrainingWindows:
    """Runs of events to train on: window w reads rows `starts[w]:stops[w] - 1` and predicts each row's successor.

    Only targets from row `first_targets[w]` on count; earlier ones are context that another window trains.
    """

    items: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    first_targets: np.ndarray
    one_target: bool

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """Input positions of each window."""
        return self.stops - self.starts - 1

    @property
    def num_targets(self) -> int:
        """Targets of one pass over all windows."""
        return int((self.stops - self.first_targets).sum())

    def collate(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Right-padded `input_ids` (B, S), item index + 1, and `target_items` (B, P), -100 where there is none."""
        starts, lengths = self.starts[rows], self.lengths[rows]
        positions_S = np.arange(lengths.max())
        real_BS = positions_S < lengths[:, None]
        event_BS = starts[:, None] + np.where(real_BS, positions_S, 0)
        inputs_BS = np.where(real_BS, self.items[event_BS].astype(np.int64) + 1, 0)
        if self.one_target:
            targets_BP = self.items[self.stops[rows] - 1].astype(np.int64)[:, None]
        else:
            counted_BS = real_BS & (event_BS + 1 >= self.first_targets[rows][:, None])
            next_BS = self.items[np.where(real_BS, event_BS + 1, 0)].astype(np.int64)
            targets_BP = np.where(counted_BS, next_BS, IGNORED_TARGET)
        return {"input_ids": torch.from_numpy(inputs_BS), "target_items": torch.from_numpy(targets_BP)}


def many_target_windows(histories: Histories, max_items: int) -> TrainingWindows:
    """Windows in which every position predicts its successor, each event a target exactly once.

    A history longer than a window is cut into windows that advance by half a window, so that a target never has
    less than half a window of context, where that much exists.
    """
    training = histories.training()
    firsts, stops = _row_ranges(training)
    stride = max(max_items // 2, 1)
    num_windows = 1 + np.maximum(0, -(-(stops - firsts - 1 - max_items) // stride))
    ordinal = np.arange(num_windows.sum()) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    ends = np.minimum(np.repeat(firsts, num_windows) + 1 + max_items + ordinal * stride, np.repeat(stops, num_windows))
    starts = np.maximum(np.repeat(firsts, num_windows), ends - 1 - max_items)
    previous_ends = np.repeat(firsts, num_windows) + 1 + max_items + (ordinal - 1) * stride
    first_targets = np.where(ordinal == 0, starts + 1, previous_ends)
    return TrainingWindows(training.items, starts, ends, first_targets, one_target=False)


def one_target_windows(histories: Histories, max_items: int) -> TrainingWindows:
    """One window a training event with a past: its newest `max_items` predecessors predict it."""
    training = histories.training()
    firsts, stops = _row_ranges(training)
    targets = np.concatenate(
        [np.arange(first + 1, stop) for first, stop in zip(firsts, stops, strict=True)] or [firsts]
    )
    starts = np.maximum(np.repeat(firsts, stops - firsts - 1), targets - max_items)
    return TrainingWindows(training.items, starts, targets + 1, targets, one_target=True)


def bucketed_batches(lengths: np.ndarray, max_positions: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Split windows into batches of at most `max_positions` padded positions, in an order fixed by seed and epoch.

    A single window longer than `max_positions` makes a batch of its own.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    mean_windows = max(1, int(max_positions / max(lengths.mean(), 1)))
    span = mean_windows * _BUCKETING_BATCHES
    batches = [
        batch
        for first in range(0, len(order), span)
        for batch in _pack(order[first : first + span], lengths, max_positions)
    ]
    return [batches[place] for place in generator.permutation(len(batches))]


def _pack(rows: np.ndarray, lengths: np.ndarray, max_positions: int) -> Iterator[np.ndarray]:
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    first = 0
    for place, row in enumerate(rows):
        if place > first and (place - first + 1) * int(lengths[row]) > max_positions:
            yield rows[first:place]
            first = place
    yield rows[first:]


def _row_ranges(training: Histories) -> tuple[np.ndarray, np.ndarray]:
    """First and end row of each user who has at least two training events, so one target."""
    firsts, stops = training.offsets[:-1], training.offsets[1:]
    trainable = stops - firsts >= 2
    return firsts[trainable], stops[trainable]
