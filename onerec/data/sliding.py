"""Sliding windows over epochs: each epoch reads another window of a long history (arXiv 2409.14517).

Training on all windows of all histories in every epoch spends most of it on those who have been here longest; reading
the newest window alone never learns what they did before. Here a history gives one window an epoch, in turn.

Departures:
1. A window's targets are its newer half, so that each has half a window of context and each event is a target exactly
   once in as many epochs as its history has windows; of the oldest window all events are targets.
2. Where a history begins its turns is drawn from the seed, so that every epoch holds windows of every age.

Shapes: U histories, W windows of all of them.
"""

from dataclasses import dataclass, replace

import numpy as np

from onerec.data.batches import TrainingWindows, one_target_windows
from onerec.data.histories import Histories


@dataclass(frozen=True)
class SlidingEpochs:
    """Whose turn it is in which epoch.

    Args:
        histories_W: which history each window is of.
        turns_W: its number among that history's windows, 0 for the newest.
        num_turns_W: how many windows that history has.
        newest_every: every so many epochs it is the newest windows' turn; 0 for never.
    """

    histories_W: np.ndarray
    turns_W: np.ndarray
    num_turns_W: np.ndarray
    newest_every: int
    seed: int

    def windows(self, epoch: int) -> np.ndarray:
        """The windows of an epoch, ascending."""
        if self.newest_every and (epoch + 1) % self.newest_every == 0:
            return np.flatnonzero(self.turns_W == 0)
        if self.newest_every:
            epoch -= epoch // self.newest_every  # those that do not slide are not counted
        starts_U = np.random.default_rng(self.seed).random(int(self.histories_W.max(initial=-1)) + 1)
        starts_W = (starts_U[self.histories_W] * self.num_turns_W).astype(np.int64)
        return np.flatnonzero((starts_W + epoch) % self.num_turns_W == self.turns_W)

    def select(self, kept_W: np.ndarray) -> "SlidingEpochs":
        """The same for some of the windows."""
        parts = {name: getattr(self, name)[kept_W] for name in ("histories_W", "turns_W", "num_turns_W")}
        return replace(self, **parts)


def sliding_windows(
    histories: Histories, max_items: int, many_targets: bool, newest_every: int, seed: int
) -> TrainingWindows:
    """Windows over the training events, cut from the newest event back, of which an epoch reads one a history.

    Of windows with one target each, a turn is a stretch of `max_items` targets.
    """
    training = histories.training()
    windows = _from_newest(training, max_items) if many_targets else one_target_windows(training, max_items)
    owners_W = training.users_of(windows.first_targets)
    firsts_W, stops_W = training.offsets[owners_W], training.offsets[owners_W + 1]
    stride = _stride(max_items) if many_targets else max_items
    num_turns_W = _num_windows(firsts_W, stops_W, max_items) if many_targets else -(-(stops_W - firsts_W) // stride)
    turns_W = (stops_W - windows.stops) // stride
    return replace(windows, sliding=SlidingEpochs(owners_W, turns_W, num_turns_W, newest_every, seed))


def _from_newest(training: Histories, max_items: int) -> TrainingWindows:
    """Windows that go back by half a window; the oldest one's targets are all events that no newer one has."""
    firsts, stops = training.offsets[:-1], training.offsets[1:]
    firsts, stops = firsts[stops > firsts], stops[stops > firsts]
    stride, num_windows = _stride(max_items), _num_windows(firsts, stops, max_items)
    turn = np.arange(num_windows.sum()) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    firsts, stops, num_windows = (np.repeat(rows, num_windows) for rows in (firsts, stops, num_windows))
    ends = stops - turn * stride
    starts = np.maximum(firsts, ends - 1 - max_items)
    first_targets = np.where(turn == num_windows - 1, firsts, ends - stride)
    return TrainingWindows(training.items, starts, ends, first_targets, one_target=False)


def _stride(max_items: int) -> int:
    return max(max_items // 2, 1)


def _num_windows(firsts: np.ndarray, stops: np.ndarray, max_items: int) -> np.ndarray:
    return 1 + np.maximum(0, -(-(stops - firsts - 1 - max_items) // _stride(max_items)))
