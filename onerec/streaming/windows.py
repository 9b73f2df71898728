"""Training windows over new events alone; what a model has trained on is their context."""

import numpy as np

from onerec.data.batches import TrainingWindows
from onerec.data.histories import Histories, Split


def new_event_windows(histories: Histories, max_items: int, many_targets: bool) -> TrainingWindows:
    """Windows in which each event that is not labelled as trained is a target exactly once.

    Windows of many targets advance by half a window, as those of `onerec.data.batches.many_target_windows`, so that a
    target never has less than half a window of context, where that much exists.
    """
    if not many_targets:
        targets = np.flatnonzero(histories.splits != Split.TRAIN)
        starts = np.maximum(histories.offsets[histories.users_of(targets)], targets - max_items)
        return TrainingWindows(histories.items, starts, targets + 1, targets, one_target=True)
    firsts, news, stops = _new_rows(histories)
    stride = max(max_items // 2, 1)
    first_stops = np.minimum(np.maximum(firsts + 1 + max_items, news + stride), stops)
    num_windows = 1 - (first_stops - stops) // stride
    ordinal = np.arange(num_windows.sum()) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    firsts, news, stops, first_stops = (np.repeat(rows, num_windows) for rows in (firsts, news, stops, first_stops))
    ends = np.minimum(first_stops + ordinal * stride, stops)
    first_targets = np.where(ordinal == 0, news, first_stops + (ordinal - 1) * stride)
    return TrainingWindows(histories.items, np.maximum(firsts, ends - 1 - max_items), ends, first_targets, False)


def _new_rows(histories: Histories) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row, first new row and end row of each user who has a new event."""
    trained = np.concatenate([[0], np.cumsum(histories.splits == Split.TRAIN)])
    firsts, stops = histories.offsets[:-1], histories.offsets[1:]
    news = firsts + trained[stops] - trained[firsts]  # labels never decrease within a user
    has_new = stops > news
    return firsts[has_new], news[has_new], stops[has_new]
