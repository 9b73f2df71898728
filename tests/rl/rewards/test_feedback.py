"""The duration-aware advantage by hand-worked logs and a brute-force oracle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.errors import DataError
from rl.rewards.feedback import (
    FeedbackSettings,
    duration_aware_advantages,
    duration_buckets,
    log_percentiles,
    past_percentiles,
)

NAN = float("nan")


def test_buckets_are_floors_of_a_shifted_logarithm() -> None:
    found = duration_buckets(np.array([0.0, 1.0, 2.9, 3.0, 7.0, NAN]), base=2, offset=1)
    np.testing.assert_array_equal(found, [0, 1, 1, 2, 3, NAN])


def test_only_the_same_users_past_in_the_same_bucket_counts() -> None:
    offsets = np.array([0, 5, 7])
    watched_N = np.array([10.0, 20.0, 5.0, 15.0, 15.0, 1.0, 99.0])
    buckets_N = np.array([1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    # user 0, bucket 1: 10 | 20 above 1 of 1 | 15 above 1 of 2 | 15 above 1 and equal to 1 of 3
    expected = [NAN, 1.0, NAN, 0.5, 0.5, NAN, 1.0]
    np.testing.assert_allclose(past_percentiles(offsets, watched_N, buckets_N), expected)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=30), st.integers(0, 30))
def test_percentiles_agree_with_counting(events: list[tuple[int, int]], cut: int) -> None:
    watched_N, buckets_N = (np.array(column, dtype=float) for column in zip(*events, strict=True))
    watched_N[watched_N == 3] = NAN
    offsets = np.array([0, min(cut, len(events)), len(events)])
    found = past_percentiles(offsets, watched_N, buckets_N)
    for row, (watched, bucket) in enumerate(zip(watched_N, buckets_N, strict=True)):
        first = offsets[np.searchsorted(offsets, row, side="right") - 1]
        past = [w for w, b in zip(watched_N[first:row], buckets_N[first:row], strict=True) if b == bucket and w == w]
        if not past or np.isnan(watched):
            assert np.isnan(found[row])
        else:
            assert found[row] == pytest.approx(np.mean([1.0 * (w < watched) + 0.5 * (w == watched) for w in past]))


def test_the_top_quarter_is_good_a_dislike_is_bad_and_the_rest_nothing() -> None:
    percentiles_M = np.array([0.1, 0.9, 0.5, 0.8, 0.3, 0.2, 0.4, 0.6, NAN, NAN])
    dislikes_M = np.zeros(10, dtype=bool)
    assert duration_aware_advantages(percentiles_M, dislikes_M).tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0, 0]
    dislikes_M[[1, 4, 9]] = True  # even where it was watched long, or has no past
    assert duration_aware_advantages(percentiles_M, dislikes_M).tolist() == [0, -1, 0, 1, -1, 0, 0, 0, 0, -1]
    assert duration_aware_advantages(np.array([NAN, NAN]), np.array([True, False])).tolist() == [-1, 0]


def test_a_columns_future_never_changes_its_past() -> None:
    rng = np.random.default_rng(0)
    feedback = {"watch_seconds": rng.random(40), "duration_seconds": rng.uniform(1, 100, 40)}
    before = log_percentiles(np.array([0, 40]), feedback, FeedbackSettings())
    feedback["watch_seconds"][30:] = 0.0
    np.testing.assert_array_equal(log_percentiles(np.array([0, 40]), feedback, FeedbackSettings())[:30], before[:30])


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        ({"watch_seconds": [1.0, 2.0]}, "no column 'duration_seconds', expected one of watch_seconds"),
        ({"watch_seconds": [3.0, 3.0], "duration_seconds": [1.0, 2.0]}, "the value 3 everywhere"),
        ({"watch_seconds": [NAN, NAN], "duration_seconds": [1.0, 2.0]}, "found nothing recorded"),
        ({"watch_seconds": [1.0, 2.0], "duration_seconds": [-1.0, 2.0]}, "found -1, expected 0 or more"),
    ],
)
def test_columns_that_say_nothing_are_refused(feedback: dict[str, list[float]], message: str) -> None:
    columns = {name: np.array(values) for name, values in feedback.items()}
    with pytest.raises(DataError, match=message):
        log_percentiles(np.array([0, 2]), columns, FeedbackSettings())
