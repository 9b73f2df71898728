"""What the reward model reads of users: their newest events and what they made of them.

Shapes: B requests, S events of a history, T towers, N events of the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onerec.data.histories import Histories
from onerec.data.pathways import History, events_of
from onerec.model.preference.signals import CHOSEN, Signal, feedback_values


@dataclass(frozen=True)
class Contexts:
    """What is known of some users at some moment: their newest events, newest first, on the model's device."""

    items_BS: Tensor  # item indices, 0 in the padding
    bins_BST: Tensor  # what they made of them, see `Signal.bins`
    present_BS: Tensor  # False in the padding

    def of(self, requests: slice) -> "Contexts":
        """Some of the users."""
        return Contexts(self.items_BS[requests], self.bins_BST[requests], self.present_BS[requests])


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


def contexts_of(
    histories: Sequence[History], signals: Sequence[Signal], max_history_items: int, device: torch.device
) -> Contexts:
    """The newest events of histories that are given with a request; feedback that they do not say is not recorded."""
    requests = [events_of(history) for history in histories]
    lengths = [min(len(events), max_history_items) for events in requests]
    shape = (len(requests), max([1, *lengths]))
    items_BS, bins_BST = np.zeros(shape, dtype=np.int64), np.zeros((*shape, len(signals)), dtype=np.int64)
    for request, (events, length) in enumerate(zip(requests, lengths, strict=True)):
        newest = slice(len(events) - length, len(events))
        items_BS[request, :length] = np.asarray(events.items)[newest][::-1]
        for tower, signal in enumerate(signals):
            values = np.ones(len(events)) if signal.name == CHOSEN else events.feedback.get(signal.name)
            if values is not None:
                bins_BST[request, :length, tower] = signal.bins(np.asarray(values, dtype=np.float32)[newest])[::-1]
    present_BS = np.arange(shape[1]) < np.array(lengths)[:, None]
    return Contexts(*(torch.from_numpy(array).to(device) for array in (items_BS, bins_BST, present_BS)))
