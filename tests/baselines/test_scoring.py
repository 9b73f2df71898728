import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.baselines.scoring import rank_scores
from onerec.errors import DataError

EMPTY = np.array([], dtype=np.int32)


def test_equal_scores_go_to_the_lower_index():
    scores = np.array([[1.0, 2.0, 1.0, 2.0], [0.0, -0.0, 0.0, -0.0]])
    ranking = rank_scores(scores, [EMPTY, EMPTY], 3, exclude_seen=False)
    np.testing.assert_array_equal(ranking.items_BK, [[1, 3, 0], [0, 1, 2]])
    np.testing.assert_array_equal(ranking.scores_BK, [[2, 2, 1], [0, 0, 0]])
    assert ranking.items_BK.dtype == np.int32
    assert ranking.scores_BK.dtype == np.float32


def test_seen_items_are_left_out_and_short_lists_say_so():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, -np.inf, 1.0]], dtype=np.float32)
    before = scores.copy()
    ranking = rank_scores(scores, [np.array([0, 0]), EMPTY], 5, exclude_seen=True)
    np.testing.assert_array_equal(ranking.items_BK, [[1, 2, -1, -1, -1], [0, 2, -1, -1, -1]])
    np.testing.assert_array_equal(ranking.scores_BK[:, 2:], np.full((2, 3), -np.inf))
    np.testing.assert_array_equal(scores, before)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 25), st.booleans())
def test_agrees_with_a_stable_sort(seed, num_items, k, exclude_seen):
    rng = np.random.default_rng(seed)
    # Few distinct values, so that ties at the edge of the list are the rule.
    scores = rng.choice([-2.5, -1.0, -0.0, 0.0, 1e-30, 3.0], size=(4, num_items)).astype(np.float32)
    histories = [rng.integers(num_items, size=rng.integers(0, 5)) for _ in range(4)]
    ranking = rank_scores(scores, histories, k, exclude_seen)
    for row in range(4):
        allowed = [i for i in range(num_items) if not (exclude_seen and i in histories[row])]
        expected = sorted(allowed, key=lambda i: (-scores[row, i], i))[:k]
        assert ranking.items_BK[row].tolist() == expected + [-1] * (k - len(expected))


def test_nan_is_refused():
    with pytest.raises(DataError, match="item 1 in row 0 is NaN"):
        rank_scores(np.array([[0.0, np.nan]]), [EMPTY], 1, exclude_seen=False)
