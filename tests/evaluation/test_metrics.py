import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.errors import DataError
from onerec.evaluation import metrics


def test_worked_example_of_the_docstring():
    names = metrics.metric_names([1, 5])
    means = metrics.mean_metrics(np.array([1, 3, metrics.NOT_RANKED]), [1, 5])
    assert list(means) == names
    assert means["recall@1"] == pytest.approx(1 / 3)
    assert means["recall@5"] == pytest.approx(2 / 3)
    assert means["ndcg@5"] == pytest.approx(1 / 2)
    assert means["mrr@5"] == pytest.approx(4 / 9)


def test_rank_on_the_edge_of_the_list():
    means = metrics.mean_metrics(np.array([10, 11]), [10, 20])
    assert means["recall@10"] == pytest.approx(1 / 2)
    assert means["recall@20"] == 1
    assert means["ndcg@10"] == pytest.approx(1 / math.log2(11) / 2)
    assert means["mrr@20"] == pytest.approx((1 / 10 + 1 / 11) / 2)


def test_no_rows_have_no_metrics():
    assert metrics.mean_metrics(np.array([], dtype=np.int32), [10]) == {}


def test_ranks_take_the_first_place_and_ignore_empty_ones():
    items = np.array([[4, 2, 7], [1, 1, 5], [3, -1, -1]])
    np.testing.assert_array_equal(metrics.ranks_of_targets(items, np.array([7, 1, 9])), [3, 1, 0])


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 30))
def test_agrees_with_naive_loops(seed, num_rows, num_items):
    rng = np.random.default_rng(seed)
    lists = np.array([rng.permutation(num_items) for _ in range(num_rows)])
    targets = rng.integers(num_items + 3, size=num_rows)
    ks = [1, 5, 10]
    means = metrics.mean_metrics(metrics.ranks_of_targets(lists, targets), ks)
    for k in ks:
        recall = ndcg = mrr = 0.0
        for items, target in zip(lists.tolist(), targets.tolist(), strict=True):
            for place, item in enumerate(items[:k]):
                if item == target:
                    recall += 1
                    ndcg += 1 / math.log2(place + 2)
                    mrr += 1 / (place + 1)
        assert means[f"recall@{k}"] == pytest.approx(recall / num_rows)
        assert means[f"ndcg@{k}"] == pytest.approx(ndcg / num_rows)
        assert means[f"mrr@{k}"] == pytest.approx(mrr / num_rows)


def test_bootstrap_is_deterministic_and_close_to_theory():
    hits = (np.arange(4000) < 800).astype(float)[:, None]
    users = np.arange(4000)
    first, again = (metrics.bootstrap_intervals(hits, users, 2000, 0.95, seed=7)[0] for _ in range(2))
    assert first == again
    assert first != metrics.bootstrap_intervals(hits, users, 2000, 0.95, seed=8)[0]
    half_width = 1.96 * math.sqrt(0.2 * 0.8 / 4000)
    assert first.low == pytest.approx(0.2 - half_width, abs=0.1 * half_width)
    assert first.high == pytest.approx(0.2 + half_width, abs=0.1 * half_width)


def test_bootstrap_does_not_depend_on_how_many_samples_are_drawn_at_a_time(monkeypatch):
    values = np.random.default_rng(0).random((50, 2))
    whole = metrics.bootstrap_means(values, np.arange(50), 40, seed=1)
    monkeypatch.setattr(metrics, "_DRAWS_AT_A_TIME", 120)
    np.testing.assert_allclose(metrics.bootstrap_means(values, np.arange(50), 40, seed=1), whole)


def test_bootstrap_draws_users_with_all_their_rows():
    values = np.repeat([[0.0], [1.0]], [30, 10], axis=0)
    users = np.repeat([5, 9], [30, 10])
    means = np.unique(metrics.bootstrap_means(values, users, 200, seed=0).round(12))
    # Two users: either one twice, or both, which weighs them by their rows.
    np.testing.assert_allclose(means, [0.0, 0.25, 1.0])


def test_bootstrap_of_nothing_is_refused():
    with pytest.raises(DataError, match="at least one row"):
        metrics.bootstrap_means(np.empty((0, 2)), np.empty(0), 10, 0)


def test_paired_comparison():
    rng = np.random.default_rng(0)
    base = rng.random((500, 1))
    users = np.arange(500)
    noise = rng.normal(scale=0.01, size=(500, 1))
    better = metrics.compare_paired(base + 0.01 + noise, base, users, 500, 0.95, 0)[0]
    assert better.p_value == 0
    assert better.interval.low > 0
    assert better.difference == pytest.approx((0.01 + noise).mean())
    same = metrics.compare_paired(base, base, users, 500, 0.95, 0)[0]
    assert (same.difference, same.p_value) == (0, 1)


def test_paired_comparison_of_other_rows_is_refused():
    with pytest.raises(DataError, match="same rows"):
        metrics.compare_paired(np.zeros((3, 1)), np.zeros((2, 1)), np.arange(3), 10, 0.95, 0)


def test_gini_and_coverage_by_hand():
    assert metrics.gini(np.array([0, 0, 4, 0])) == pytest.approx(3 / 4)
    assert metrics.gini(np.array([2, 2, 2])) == pytest.approx(0)
    assert metrics.gini(np.zeros(3)) == 0
    # By the definition: mean absolute difference over twice the mean.
    exposures = np.array([1, 5, 2, 0, 9])
    expected = np.abs(exposures[:, None] - exposures).mean() / (2 * exposures.mean())
    assert metrics.gini(exposures) == pytest.approx(expected)
    assert metrics.coverage(np.array([0, 3, 1, 0])) == 1 / 2


def test_popularity_percentiles_by_hand():
    np.testing.assert_allclose(metrics.popularity_percentiles(np.array([5, 0, 5, 1])), [3 / 4, 1 / 8, 3 / 4, 3 / 8])


def test_invalid_places_by_hand():
    items = np.array([[0, 1, 2], [1, 1, 7], [2, -1, -1], [-2, 0, -1]])
    seen = [np.array([2]), np.array([]), np.array([2, 2]), np.array([], dtype=np.int64)]
    # Filled: 3 + 3 + 1 + 2. Invalid: the repeated 1, the 7 and the -2; and the seen 2 of rows 0 and 2.
    assert metrics.count_invalid(items, 3, seen, exclude_seen=False) == (9, 3)
    assert metrics.count_invalid(items, 3, seen, exclude_seen=True) == (9, 5)


def test_slices_by_hand():
    counts = np.array([0, 1, 2, 10, 30])
    slices = metrics.popularity_slices(counts, counts, hot_min_count=10, head_share=0.4)
    expected = {"cold": [0], "warm": [1, 2], "hot": [3, 4], "head": [3, 4], "tail": [0, 1, 2]}
    assert {name: np.flatnonzero(mask).tolist() for name, mask in slices.items()} == expected


def test_an_item_never_seen_is_no_head_item():
    counts = np.array([0, 0, 0, 1])
    slices = metrics.popularity_slices(counts, counts, hot_min_count=2, head_share=0.9)
    np.testing.assert_array_equal(np.flatnonzero(slices["head"]), [3])
