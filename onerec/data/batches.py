"""Training windows over ragged histories, batched by length so that little or nothing is padded.

A window of S items is S + 1 context positions: the model puts a start position before the first item, from which the
first item of a history is predicted.

Shapes: B batch, S input items of a window, P targets a row (S + 1, or 1 in the one-target form).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from onerec.data.histories import Histories
from onerec.data.pathways import WindowPathways

if TYPE_CHECKING:
    from onerec.data.sliding import SlidingEpochs
    from onerec.data.targets import FutureTargets

IGNORED_TARGET = -100
_BUCKETING_BATCHES = 32  # windows are sorted by length within the span of this many batches, so that order stays random


@dataclass(frozen=True)
class TrainingWindows:
    """Runs of events to train on: window w reads rows `starts[w]:stops[w] - 1` and predicts up to row `stops[w] - 1`.

    Only targets from row `first_targets[w]` on count; earlier ones are context that another window trains.
    """

    items: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    first_targets: np.ndarray
    one_target: bool
    pathways: WindowPathways | None = None  # what a model with pathways reads beside the items
    weights: np.ndarray | None = None  # how much each row counts as a target, 0 for not at all; None: all the same
    future: "FutureTargets | None" = None  # targets from further ahead; None: the rows themselves
    sliding: "SlidingEpochs | None" = None  # which windows an epoch reads; None: all of them

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_positions(self) -> np.ndarray:
        """Context positions of each window: the start and its input items."""
        return self.stops - self.starts

    @property
    def num_untrained_positions(self) -> np.ndarray:
        """Leading positions of each window that predict no target of its own, what pathways read before it included."""
        older = 0 if self.pathways is None else self.pathways.num_older(self.starts)
        return older + (np.zeros(len(self), dtype=np.int64) if self.one_target else self.first_targets - self.starts)

    @property
    def num_targets(self) -> int:
        """Targets of one pass over all windows."""
        return int(self._count_targets().sum())

    def of_epoch(self, epoch: int) -> np.ndarray:
        """The windows that an epoch reads, ascending."""
        return np.arange(len(self)) if self.sliding is None else self.sliding.windows(epoch)

    def with_targets(self) -> "TrainingWindows":
        """The same without windows that have no target."""
        kept = self._count_targets() > 0
        parts = {name: getattr(self, name)[kept] for name in ("starts", "stops", "first_targets")}
        return replace(self, sliding=None if self.sliding is None else self.sliding.select(kept), **parts)

    def collate(self, windows: np.ndarray, epoch: int = 0) -> dict[str, Any]:
        """Right-padded `input_ids` (B, S), item index + 1, and `target_items` (B, P), -100 where there is none.

        Beside them `pathways`, a dictionary of tensors, where the model reads any, and `target_weights` (B, P) where
        targets have some. The epoch matters for targets from further ahead alone.

        P is 1 + S less the leading positions of which no window has a target.
        """
        starts, lengths = self.starts[windows], self.num_positions[windows] - 1
        num_items = max(int(lengths.max()), 1)
        inputs_BS = self._gather(starts, lengths, num_items)
        rows_BP, counted_BP = self._target_rows(windows, num_items)
        if self.future is not None:
            rows_BP = self.future.draw(rows_BP, epoch)
        targets_BP = np.where(counted_BP, self.items[rows_BP].astype(np.int64), IGNORED_TARGET)
        batch: dict[str, Any] = {"input_ids": torch.from_numpy(inputs_BS), "target_items": torch.from_numpy(targets_BP)}
        if self.weights is not None:
            batch["target_weights"] = torch.from_numpy(self.weights[rows_BP] * counted_BP)
        if self.pathways is not None:
            batch["pathways"] = self.pathways.read(starts, self.stops[windows], num_items)
        return batch

    def _target_rows(self, windows: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
        """The row (B, P) that follows each position, any one where none does, and whether it is a target."""
        if self.one_target:
            rows_BP = self.stops[windows][:, None] - 1
            return rows_BP, np.ones_like(rows_BP, dtype=bool)
        rows_BP = self.starts[windows][:, None] + np.arange(num_items + 1)
        counted_BP = (rows_BP >= self.first_targets[windows][:, None]) & (rows_BP < self.stops[windows][:, None])
        rows_BP = np.where(counted_BP, rows_BP, 0)
        if self.weights is not None:
            counted_BP &= self.weights[rows_BP] > 0
        first = counted_BP.any(axis=0).argmax()
        return rows_BP[:, first:], counted_BP[:, first:]

    def _count_targets(self) -> np.ndarray:
        """Targets of each window."""
        if self.weights is None:
            return self.stops - self.first_targets
        before = np.concatenate([[0], np.cumsum(self.weights > 0)])
        return before[self.stops] - before[self.first_targets]

    def _gather(self, starts: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
        """Item index + 1 of `lengths` rows from `starts` on, 0 in the padding."""
        places = np.arange(width)
        real_BS = places < lengths[:, None]
        rows_BS = np.where(real_BS, starts[:, None] + places, 0)
        return np.where(real_BS, self.items[rows_BS].astype(np.int64) + 1, 0)


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
    firsts, stops = np.repeat(firsts, num_windows), np.repeat(stops, num_windows)
    ends = np.minimum(firsts + 1 + max_items + ordinal * stride, stops)
    starts = np.maximum(firsts, ends - 1 - max_items)
    first_targets = np.where(ordinal == 0, firsts, firsts + 1 + max_items + (ordinal - 1) * stride)
    return TrainingWindows(training.items, starts, ends, first_targets, one_target=False)


def one_target_windows(histories: Histories, max_items: int) -> TrainingWindows:
    """One window a training event: its newest `max_items` predecessors predict it."""
    training = histories.training()
    targets = np.arange(len(training.items))
    starts = np.maximum(training.offsets[training.users_of(targets)], targets - max_items)
    return TrainingWindows(training.items, starts, targets + 1, targets, one_target=True)


def bucketed_batches(
    num_positions: np.ndarray, num_untrained_positions: np.ndarray, max_positions: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Split windows into batches of at most `max_positions` padded positions, in an order fixed by seed and epoch.

    A batch holds windows of like length and, among those, of as many leading positions without a target, which then
    cost no decoding. A single window longer than `max_positions` makes a batch of its own.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(num_positions))
    span = _BUCKETING_BATCHES * max(1, int(max_positions / num_positions.mean()))
    batches = [
        batch
        for first in range(0, len(order), span)
        for batch in _pack(order[first : first + span], num_positions, num_untrained_positions, max_positions)
    ]
    return [batches[place] for place in generator.permutation(len(batches))]


def _pack(
    windows: np.ndarray, num_positions: np.ndarray, num_untrained_positions: np.ndarray, max_positions: int
) -> Iterator[np.ndarray]:
    windows = windows[np.lexsort((num_untrained_positions[windows], num_positions[windows]))]
    widths = num_positions[windows]
    first = 0
    while first < len(windows):
        padded = np.arange(1, len(windows) - first + 1) * widths[first:]  # never decreases: widths ascend
        size = max(1, int(np.searchsorted(padded, max_positions, side="right")))
        yield windows[first : first + size]
        first += size


def _row_ranges(training: Histories) -> tuple[np.ndarray, np.ndarray]:
    """First and end row of each user who has a training event."""
    firsts, stops = training.offsets[:-1], training.offsets[1:]
    has_events = stops > firsts
    return firsts[has_events], stops[has_events]
