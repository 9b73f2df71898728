"""List metrics by hand, and which events a list is proposed before."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from onerec.data.histories import Histories, Split
from onerec.data.settings import SessionSettings
from onerec.errors import DataError
from onerec.evaluation.sessions import evaluate_lists, list_values
from onerec.evaluation.settings import EvaluationSettings

SECOND, THIRD = 1 / math.log2(3), 1 / 2


@dataclass
class Data:
    histories: Histories
    num_items: int = 9


def make_data() -> Data:
    """Each user's last session is held out: items 3, 4, then 5; and 6."""
    return Data(
        Histories(
            np.array([0, 5, 7]),
            np.array([1, 2, 3, 4, 5, 1, 6], dtype=np.int32),
            np.array([0, 1, 500, 501, 900, 0, 900]),
            np.array([0, 0, 2, 2, 2, 0, 2], dtype=np.uint8),
        )
    )


@pytest.mark.parametrize(
    ("items", "relevant", "expected"),
    [
        ([7, 3, 8], [3, 4], [1, 1 / 2, SECOND / (1 + SECOND)]),
        ([3, 4, 8], [4, 3], [1, 1, 1]),
        ([8, 4, 3], [3, 4, 5, 6], [1, 2 / 3, (SECOND + THIRD) / (1 + SECOND + THIRD)]),
        ([3, -1, -1], [3], [1, 1, 1]),
        ([7, 8, 0], [3], [0, 0, 0]),
    ],
)
def test_values_by_hand(items: list[int], relevant: list[int], expected: list[float]) -> None:
    found = list_values(np.array([items]), [np.array(relevant)])
    np.testing.assert_allclose(found[0], expected)


def test_an_item_twice_in_a_list_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 lists hold an item twice; first: \[3, 7, 3\]"):
        list_values(np.array([[1, -1, -1], [3, 7, 3]]), [np.array([3])] * 2)


@pytest.mark.parametrize("max_rows", [None, 2])
def test_a_list_is_proposed_before_each_session(max_rows: int | None) -> None:
    asked: list[tuple[list[int], bool]] = []

    def propose(rows: np.ndarray, exclude_seen: bool) -> np.ndarray:
        asked.append((rows.tolist(), exclude_seen))
        return np.tile([4, 6], (len(rows), 1))

    settings = EvaluationSettings(batch_size=2, bootstrap_samples=50, max_rows=max_rows)
    found = evaluate_lists(propose, make_data(), Split.TEST, SessionSettings(pause_seconds=100), settings)
    assert list(found) == ["test", "test_unseen"]
    if max_rows is None:
        assert asked == [([2, 4], False), ([6], False), ([2, 4], True), ([6], True)]
        expected: dict[str, Any] = {"hit@2": 2 / 3, "recall@2": 1.5 / 3, "ndcg@2": (1 / (1 + SECOND) + SECOND) / 3}
        assert found["test"].metrics == pytest.approx(expected)
        assert found["test"].to_dict()["intervals"]["hit@2"][0] < 2 / 3 <= found["test"].intervals["hit@2"].high
    assert found["test_unseen"].num_sessions == (max_rows or 3)
