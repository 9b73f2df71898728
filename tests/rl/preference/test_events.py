"""The parts of the training events follow each other in time."""

import numpy as np
import pytest

from onerec.data.histories import Histories
from onerec.errors import DataError
from rl.preference.events import split_rows
from rl.preference.settings import RewardModelSettings


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
