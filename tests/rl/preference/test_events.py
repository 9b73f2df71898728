"""Examples know what came strictly before, and nothing else; the parts follow each other in time."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from onerec.data.histories import Histories
from onerec.errors import DataError
from rl.preference.events import EventReader, split_rows
from rl.preference.settings import RewardModelSettings

CPU = torch.device("cpu")


def test_a_context_is_the_users_newest_events_before_the_row(log: Any) -> None:
    """Against a loop over events."""
    histories, reader = log.histories, log.reader(max_history_items=4)
    rows = np.arange(histories.num_events)
    contexts = reader.contexts(rows, CPU)
    for row in rows:
        first = histories.offsets[histories.users_of(rows[row : row + 1])[0]]
        expected = list(range(max(first, row - 4), row))[::-1]
        assert contexts.present_BS[row].tolist() == [True] * len(expected) + [False] * (4 - len(expected))
        assert contexts.items_BS[row, : len(expected)].tolist() == histories.items[expected].tolist()
        for tower, signal in enumerate(log.signals):
            values = histories.feedback[signal.name][expected]
            assert contexts.bins_BST[row, : len(expected), tower].tolist() == signal.bins(values).tolist()


def test_neither_the_event_itself_nor_a_later_one_is_known(log: Any) -> None:
    histories, row = log.histories, 5
    changed = {name: values.copy() for name, values in histories.feedback.items()}
    for values in changed.values():
        values[row:] = values[row:][::-1] + 1
    items = histories.items.copy()
    items[row:] = 0
    other = dataclasses.replace(histories, items=items, feedback=changed)
    found = EventReader(other, log.signals, 4).contexts(np.array([row]), CPU)
    expected = log.reader().contexts(np.array([row]), CPU)
    for name in ("items_BS", "bins_BST", "present_BS"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_first_events_have_an_empty_context(log: Any) -> None:
    contexts = log.reader().contexts(log.histories.offsets[:-1], CPU)
    assert contexts.items_BS.shape == (log.histories.num_users, 1)
    assert not contexts.present_BS.any()


def test_the_held_out_events_are_the_latest_of_all_users() -> None:
    times = np.array([0, 1, 2, 30, 31, 5, 6, 7, 8, 32])
    histories = Histories(np.array([0, 5, 10]), np.zeros(10, np.int32), times, np.zeros(10, np.uint8))
    rows = split_rows(histories, True, RewardModelSettings(validation_share=0.2, test_share=0.2))
    assert times[rows.test].tolist() == [31, 32]
    assert times[rows.validation].tolist() == [30, 8]
    assert times[rows.train].max() < times[rows.validation].min()
    assert len(rows.train) == 6


def test_where_only_an_order_is_known_each_user_ends_in_the_held_out_part() -> None:
    lengths = [10, 20]
    positions = np.concatenate([np.arange(length) for length in lengths])
    histories = Histories(np.array([0, 10, 30]), np.zeros(30, np.int32), positions, np.zeros(30, np.uint8))
    rows = split_rows(histories, False, RewardModelSettings(validation_share=0.1, test_share=0.1))
    assert rows.test.tolist() == [9, 28, 29]
    assert rows.validation.tolist() == [8, 26, 27]


def test_events_of_one_moment_cannot_be_split() -> None:
    histories = Histories(np.array([0, 4]), np.zeros(4, np.int32), np.zeros(4, np.int64), np.zeros(4, np.uint8))
    with pytest.raises(DataError, match="fall into 0 to train on, 0 to stop by and 4 held out"):
        split_rows(histories, True, RewardModelSettings())
