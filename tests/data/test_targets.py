"""Weights by behaviour and targets from the future, worked by hand; what the data cannot tell is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from onerec.data.batches import TrainingWindows, many_target_windows
from onerec.data.histories import Histories, Split
from onerec.data.schema import ResolvedSchema
from onerec.data.settings import FeedbackKind
from onerec.data.target_settings import BehaviourWeight, FutureWindow, SlidingWindows, TargetSettings
from onerec.data.targets import FutureTargets, check_targets, event_weights
from onerec.errors import ConfigError, DataError
from tokenizer.settings import build_settings

NAN = float("nan")


def histories() -> Histories:
    """Two users of four and three events; the item of row r is 10 + r."""
    return Histories(
        np.array([0, 4, 7]),
        (10 + np.arange(7)).astype(np.int32),
        np.array([0, 5, 6, 100, 0, 3, 9]),
        np.full(7, Split.TRAIN, dtype=np.uint8),
        {
            "rating": np.array([1, 3.5, 4, 5, NAN, 4, 2], dtype=np.float32),
            "liked": np.array([0, 1, 0, 1, 0, 0, 1], dtype=np.float32),
        },
    )


def test_weights_by_hand() -> None:
    rating = BehaviourWeight(column="rating", weights={2: 0.5, 4: 2, 5: 3}, otherwise=0.25)
    found = event_weights(histories(), [rating])
    assert found is not None
    assert found.tolist() == [0.25, 0.5, 2, 3, 0.25, 2, 0.5]
    liked = BehaviourWeight(column="liked", weights={0: 0, 1: 4})
    both = event_weights(histories(), [rating, liked])
    assert both is not None
    assert both.tolist() == [0, 2, 0, 12, 0, 0, 2]
    assert event_weights(histories(), []) is None


def weighted(weights: list[float], max_items: int = 8) -> TrainingWindows:
    windows = many_target_windows(histories(), max_items)
    return replace(windows, weights=np.array(weights, dtype=np.float32)).with_targets()


def test_batches_carry_weights_and_leave_out_what_has_none() -> None:
    windows = weighted([0, 2, 0, 12, 0, 0, 0])
    assert len(windows) == 1  # the second user has no target left
    assert windows.num_targets == 2
    batch = windows.collate(np.array([0]))
    assert batch["input_ids"].tolist() == [[11, 12, 13]]
    assert batch["target_items"].tolist() == [[11, -100, 13]]  # the first position, without a target, is cut off
    assert batch["target_weights"].tolist() == [[2, 0, 12]]


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({"events": 2}, [2, 3, 4, 4, 6, 7, 7]),
        ({"events": 9}, [4, 4, 4, 4, 7, 7, 7]),
        ({"seconds": 5}, [2, 3, 3, 4, 6, 6, 7]),
        ({"seconds": 6}, [3, 3, 3, 4, 6, 7, 7]),
        ({"seconds": 6, "events": 2}, [2, 3, 3, 4, 6, 7, 7]),
        ({"seconds": 1e12}, [4, 4, 4, 4, 7, 7, 7]),
    ],
)
def test_windows_of_the_future_by_hand(window: dict[str, float], expected: list[int]) -> None:
    assert FutureTargets.of(histories(), FutureWindow(**window), None, 0).stops_N.tolist() == expected


def test_every_event_of_the_window_is_drawn_as_often_and_no_other() -> None:
    future = FutureTargets.of(histories(), FutureWindow(events=3, share=0.6), np.array([1, 1, 0, 1, 1, 1, 1]), 7)
    rows = np.zeros(30_000, dtype=np.int64)
    drawn = np.stack([future.draw(np.arange(7), epoch) for epoch in range(5000)])
    shares = np.bincount(drawn[:, 0], minlength=7) / len(drawn)
    # Rows 0 and 1 are positive in the window of rows 0 to 2: 0.4 stay, 0.6 are shared by the two.
    np.testing.assert_allclose(shares, [0.7, 0.3, 0, 0, 0, 0, 0], atol=0.03)
    assert set(drawn[:, 6]) == {6}
    assert set(drawn[:, 1]) == {1, 3}  # never its own row's neighbour of weight 0
    assert (future.draw(rows, 3) == future.draw(rows[:1], 3)).all()  # whoever asks, whatever stands beside it


def test_drawn_targets_take_their_own_weights() -> None:
    windows = weighted([1, 2, 3, 4, 5, 6, 7])
    future = FutureTargets.of(histories(), FutureWindow(events=4, share=1), windows.weights, 1)
    windows = replace(windows, future=future)
    epochs = [windows.collate(np.array([0, 1]), epoch) for epoch in range(8)]
    for batch in epochs:
        targets, weights = batch["target_items"], batch["target_weights"]
        real = targets >= 0
        assert (weights[real] == targets[real] - 9).all()
        assert (targets[0] >= 10 + torch.arange(4)).all()  # at or after the next event
        assert targets[0].max() <= 13 < targets[1][:3].min()  # within the user
    assert len({tuple(batch["target_items"].flatten().tolist()) for batch in epochs}) > 4


def test_what_the_data_cannot_tell_is_refused() -> None:
    rule = BehaviourWeight(column="likes", weights={1: 2})
    with pytest.raises(ConfigError, match=r"found 'likes', expected a feedback column \(rating, liked\).*liked"):
        event_weights(histories(), [rule])
    with pytest.raises(DataError, match="every event has weight 0"):
        event_weights(histories(), [BehaviourWeight(column="liked", weights={0: 0})])
    schema = ResolvedSchema(
        text_columns=(),
        category_columns=(),
        user_category_columns=(),
        feedback={"liked": FeedbackKind.BINARY},
        has_time=False,
        vector_width=None,
    )
    check_targets(TargetSettings(future=FutureWindow(events=3)), schema)
    with pytest.raises(ConfigError, match="found 'likes'"):
        check_targets(TargetSettings(weights=(rule,)), schema)
    with pytest.raises(ConfigError, match="events without timestamps"):
        check_targets(TargetSettings(future=FutureWindow(seconds=3)), schema)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (FutureWindow, {}, "events: found None without seconds"),
        (FutureWindow, {"events": 1}, "events: found 1 without seconds"),
        (SlidingWindows, {"newest_every": 1}, "newest_every: found 1, expected 0 or at least 2"),
        (BehaviourWeight, {"column": "liked", "weights": {}}, "weights: found {}"),
        (BehaviourWeight, {"column": "liked", "weights": {1: -2}}, "weights: found {1.0: -2.0}"),
    ],
)
def test_settings_without_effect_are_refused(kind: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings(kind, values, "test")
