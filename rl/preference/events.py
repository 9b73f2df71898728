"""Training events as examples: an item, what its user had done strictly before, and what came of it.

Shapes: B examples, S events of a history, T towers, N events of the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onerec.data.histories import Histories, Split
from onerec.data.settings import SplitSettings
from onerec.data.splits import split_by_time
from onerec.errors import DataError
from rl.preference.settings import RewardModelSettings
from rl.preference.signals import Signal, feedback_values


@dataclass(frozen=True)
class Contexts:
    """What is known of some users at some moment: their newest events, newest first, on the model's device."""

    items_BS: Tensor  # item indices, 0 in the padding
    bins_BST: Tensor  # what they made of them, see `Signal.bins`
    present_BS: Tensor  # False in the padding


class EventReader:
    """Reads the events of a log as one reward model understands them.

    Args:
        histories: whose row numbers the methods take.

    Raises:
        DataError: the log lacks a column that the model reads.
    """

    def __init__(self, histories: Histories, signals: Sequence[Signal], max_history_items: int) -> None:
        self.histories, self._max_history_items = histories, max_history_items
        self.values_NT = feedback_values(signals, histories.feedback, histories.num_events)
        columns = [signal.bins(self.values_NT[:, tower]) for tower, signal in enumerate(signals)]
        self._bins_NT = np.stack(columns, axis=1).astype(np.uint8)

    def contexts(self, rows_B: np.ndarray, device: torch.device) -> Contexts:
        """The newest events before each row, of the same user."""
        firsts_B = np.asarray(self.histories.offsets)[self.histories.users_of(rows_B)]
        lengths_B = np.minimum(rows_B - firsts_B, self._max_history_items)
        ages_S = np.arange(max(int(lengths_B.max(initial=0)), 1))
        present_BS = ages_S < lengths_B[:, None]
        events_BS = np.where(present_BS, rows_B[:, None] - 1 - ages_S, 0)
        items_BS = np.where(present_BS, self.histories.items[events_BS], 0).astype(np.int64)
        bins_BST = np.where(present_BS[:, :, None], self._bins_NT[events_BS], 0).astype(np.int64)
        arrays = (items_BS, bins_BST, present_BS)
        return Contexts(*(torch.from_numpy(array).to(device) for array in arrays))


@dataclass(frozen=True)
class ExampleRows:
    """Rows of the examples to train on, to stop by and to report on: earlier, later and latest ones."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(training: Histories, has_time: bool, settings: RewardModelSettings) -> ExampleRows:
    """Cut the training events at two moments that hold for all users.

    Where only an order is known, a moment is the share of its user's events that came before.

    Raises:
        DataError: a part is left without events.
    """
    moments = np.asarray(training.timestamps) if has_time else _shares_before(training.offsets)
    shares = {"validation_fraction": settings.validation_share, "test_fraction": settings.test_share}
    labels = split_by_time(moments, SplitSettings(kind="global_time", **shares))
    rows = ExampleRows(*(np.flatnonzero(labels == split) for split in Split))
    if not (len(rows.train) and len(rows.validation) and len(rows.test)):
        raise DataError(
            f"reward: the training events fall into {len(rows.train)} to train on, {len(rows.validation)} to stop by "
            f"and {len(rows.test)} held out, expected some of each. Change reward.validation_share or test_share."
        )
    return rows


def _shares_before(offsets: np.ndarray) -> np.ndarray:
    lengths_U = np.diff(offsets)
    places_N = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths_U)
    return places_N / np.repeat(lengths_U, lengths_U)
