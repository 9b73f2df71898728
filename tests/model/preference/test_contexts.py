"""A context is what came strictly before, and the same whether it is read from a log or sent with a request."""

import dataclasses
from typing import Any

import numpy as np
import torch

from onerec.data.pathways import EventSource, UserEvents
from onerec.data.settings import FeedbackKind
from onerec.model.preference.contexts import Contexts, EventReader, contexts_of
from onerec.model.preference.signals import CHOSEN, Signal

CPU = torch.device("cpu")


def assert_same(found: Contexts, expected: Contexts) -> None:
    for name, tensor in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), tensor, rtol=0, atol=0)


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


def test_a_request_that_sends_its_events_is_read_as_its_rows_in_the_log(log: Any) -> None:
    rows = np.arange(log.histories.num_events)
    source = EventSource(log.histories, [{}] * log.histories.num_users)
    found = contexts_of([source.before(int(row)) for row in rows], log.signals, 4, CPU)
    assert_same(found, log.reader(max_history_items=4).contexts(rows, CPU))


def test_items_alone_are_events_of_which_nothing_was_recorded(log: Any) -> None:
    chosen = Signal(
        name=CHOSEN, kind=FeedbackKind.BINARY, positive_from=1, is_good=True, mean=0.2, bounds=(), pscore_weight=1
    )
    found = contexts_of([np.array([4, 7, 1]), UserEvents(np.array([], dtype=int))], [*log.signals, chosen], 2, CPU)
    assert found.items_BS.tolist() == [[1, 7], [0, 0]]
    assert found.present_BS.tolist() == [[True, True], [False, False]]
    assert found.bins_BST[..., :-1].eq(0).all()
    assert found.bins_BST[..., -1].tolist() == [[1, 1], [0, 0]]  # that they were chosen is known of all events
