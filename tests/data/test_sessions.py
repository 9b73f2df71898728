"""Sessions and their lists by hand."""

from typing import Any

import numpy as np
import pytest

from onerec.config import RunConfig
from onerec.data.histories import Histories, Split
from onerec.data.schema import ResolvedSchema
from onerec.data.sessions import check_sessions, held_out_sessions, session_numbers, session_windows, training_lists
from onerec.data.settings import FeedbackKind, SessionSettings
from onerec.errors import ConfigError, DataError
from tokenizer.settings import build_settings

NAN = float("nan")
TRAIN, VALIDATION, TEST = Split.TRAIN, Split.VALIDATION, Split.TEST


def make_histories(**changes: Any) -> Histories:
    """Two users; a pause of more than 100 seconds parts sessions: 0 | 1 2 3 4 | 5 6 and 7 8 9 | 10 11."""
    arrays: dict[str, Any] = {
        "offsets": np.array([0, 7, 12]),
        "items": np.array([4, 1, 2, 1, 3, 5, 6, 7, 8, 9, 3, 2], dtype=np.int32),
        "timestamps": np.array([0, 500, 510, 600, 700, 900, 901, 700, 800, 810, 950, 951]),
        "splits": np.array([0] * 5 + [1, 2] + [0] * 3 + [1, 2], dtype=np.uint8),
        "feedback": {
            "watch": np.array([9, 9, 9, 9, 2, 9, 9, 9, NAN, 9, 9, 9], dtype=np.float32),
            "like": np.array([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1], dtype=np.float32),
        },
    }
    return Histories(**{**arrays, **changes})


def rules(**changes: Any) -> SessionSettings:
    return SessionSettings(**{"pause_seconds": 100, "min_items": 2, **changes})


def test_a_session_ends_before_a_longer_pause_and_with_its_user() -> None:
    assert session_numbers(make_histories(), 100).tolist() == [0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4]
    assert session_numbers(make_histories(), 99).tolist() == [0, 1, 1, 1, 2, 3, 3, 4, 5, 5, 6, 6]
    idle = make_histories(offsets=np.array([0, 7, 7, 12, 12]))  # users without events
    assert session_numbers(idle, 1000).tolist() == [0] * 7 + [1] * 5


@pytest.mark.parametrize(
    ("changes", "rows", "items"),
    [
        ({}, [1, 7], [[1, 2], [7, 8]]),  # item 1 came again; the held-out sessions are none
        ({"watched": {"watch": 3}}, [1, 7], [[1, 2], [7, 9]]),  # what was not recorded was not watched
        ({"min_items": 3}, [1, 7], [[1, 2], [7, 8]]),
        ({"min_items": 3, "watched": {"watch": 3}}, None, None),
        ({"seconds_column": "watch", "min_seconds": 19}, [1], [[1, 2]]),  # 29 and 18 seconds
        ({"interactions": ("like",)}, [1], [[1, 2]]),
        ({"interactions": ("like",), "seconds_column": "watch", "min_seconds": 30}, None, None),
    ],
)
def test_lists_by_hand(changes: dict[str, Any], rows: list[int] | None, items: list[list[int]] | None) -> None:
    training = make_histories().training()  # rows 0 to 4, then 7 to 9 as 5 to 7
    if rows is None:
        with pytest.raises(DataError, match=r"found no session of [23] items watched"):
            training_lists(training, rules(**changes), num_items=2)
        return
    lists = training_lists(training, rules(**changes), num_items=2)
    assert lists.rows_X.tolist() == [row if row < 5 else row - 2 for row in rows]
    assert lists.items_Xm.tolist() == items


def test_a_list_is_as_long_as_asked_though_the_rules_would_take_fewer() -> None:
    lists = training_lists(make_histories().training(), rules(), num_items=3)
    assert lists.items_Xm.tolist() == [[1, 2, 3], [7, 8, 9]]
    with pytest.raises(DataError, match="found no session of 3 items watched"):
        training_lists(make_histories().training(), rules(watched={"watch": 3}), num_items=3)


def test_windows_read_what_came_before_the_session_and_nothing_else() -> None:
    windows = session_windows(make_histories(), rules(), num_items=2, max_items=3)
    batch = windows.collate(np.arange(2))
    assert batch["input_ids"].tolist() == [[5], [0]]  # item 4 came before; the other user's session is his first
    assert batch["target_items"].tolist() == [[[1, 2]], [[7, 8]]]
    assert windows.num_positions.tolist() == [2, 1]
    assert windows.num_targets == 4
    merged = session_windows(make_histories(timestamps=np.arange(12) * 1000), rules(min_items=1), 1, max_items=2)
    assert merged.collate(np.array([4]))["input_ids"].tolist() == [[3, 2]]  # the newest two before row 4
    assert merged.collate(np.array([4]))["target_items"].tolist() == [[[3]]]


def test_held_out_sessions_begin_with_their_split() -> None:
    found = held_out_sessions(make_histories(), VALIDATION, rules())
    assert found.rows_X.tolist() == [5, 10]
    assert [items.tolist() for items in found.items] == [[5], [3]]
    splits = np.array([TRAIN, TRAIN, VALIDATION, TEST, TEST, TEST, TEST] + [TEST] * 5, dtype=np.uint8)
    found = held_out_sessions(make_histories(splits=splits), TEST, rules(watched={"watch": 3}))
    assert found.rows_X.tolist() == [3, 5, 7, 10]
    assert [items.tolist() for items in found.items] == [[1], [5, 6], [7, 9], [3, 2]]
    with pytest.raises(DataError, match="the test split holds no event"):
        held_out_sessions(make_histories(), TEST, rules(watched={"watch": 100}))


def make_schema(has_time: bool) -> ResolvedSchema:
    return ResolvedSchema(
        text_columns=(),
        category_columns=(),
        user_category_columns=(),
        feedback={"watch": FeedbackKind.SECONDS, "like": FeedbackKind.BINARY},
        has_time=has_time,
        vector_width=None,
    )


@pytest.mark.parametrize(
    ("changes", "has_time", "reason"),
    [
        ({}, False, "data.sessions: found events without timestamps"),
        ({"watched": {"wach": 3}}, True, "data.sessions.watched: found 'wach'.*Did you mean 'watch'"),
        ({"interactions": ("follow",)}, True, "data.sessions.interactions: found 'follow'"),
        ({"seconds_column": "seconds"}, True, "data.sessions.seconds_column: found 'seconds'"),
    ],
)
def test_rules_that_the_data_cannot_tell_are_refused(changes: dict[str, Any], has_time: bool, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_sessions(rules(**changes), make_schema(has_time))
    check_sessions(rules(watched={"watch": 3}, interactions=("like",)), make_schema(has_time=True))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"data": {"sessions": {"min_seconds": 5}}}, "min_seconds: found 5 without seconds_column"),
        ({"model": {"session_items": 5, "path_sampling": 0.5}}, "path_sampling: found with session_items 5"),
        ({"model": {"session_items": 5}}, "session_items: found 5 with data of single events"),
        ({"data": {"sessions": {}}}, "data.sessions: found with model.session_items 0"),
        (
            {
                "data": {"sessions": {}},
                "model": {"session_items": 5},
                "training": {"targets": {"future": {"events": 3}}},
            },
            "training.targets, training.teacher: found beside model.session_items 5",
        ),
    ],
)
def test_contradictions_are_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_settings(RunConfig, config, "test")
