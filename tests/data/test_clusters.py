"""Hierarchical clustering: a partition within its bound, groups that are there are found, centres by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.data.clusters import k_means, means_of_groups, representatives, split_events


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Events around far corners, shuffled, and the corner of each."""
    rng = np.random.default_rng(seed)
    corners = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return (100 * np.eye(len(sizes))[corners] + rng.normal(size=(len(corners), len(sizes)))).astype(np.float32), corners


def test_few_events_stand_for_themselves() -> None:
    chosen, clusters = representatives(np.zeros((5, 2), dtype=np.float32), max_clusters=5)
    assert chosen.tolist() == clusters.tolist() == [0, 1, 2, 3, 4]


def test_groups_that_are_there_are_found() -> None:
    vectors, corners = blobs([40, 25, 60])
    chosen, clusters = representatives(vectors, max_clusters=3, max_cluster_items=2)
    assert len(chosen) == 3
    assert sorted(corners[chosen].tolist()) == [0, 1, 2]
    np.testing.assert_array_equal(corners[chosen][clusters], corners)
    np.testing.assert_array_equal(np.sort(chosen), chosen)
    np.testing.assert_array_equal(clusters[chosen], np.arange(3))


def test_the_representative_is_nearest_to_the_mean() -> None:
    line = np.array([[0.0], [1.0], [5.0], [90.0], [91.0], [95.0]], dtype=np.float32)
    chosen, clusters = representatives(line, max_clusters=2, max_cluster_items=3)
    assert chosen.tolist() == [1, 4]  # the means are 2 and 92
    assert clusters.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_cube_root_says_how_many_parts() -> None:
    vectors, corners = blobs([9] * 3)  # 27 events: three parts at once, each of nine or fewer
    parts = split_events(vectors, max_clusters=100, max_cluster_items=9)
    assert [len(set(corners[part])) for part in parts] == [1, 1, 1]


@given(st.integers(1, 120), st.integers(1, 40), st.integers(1, 10), st.integers(0, 3), st.integers(0, 1000))
def test_clusters_are_a_partition_within_their_bound(
    num_events: int, max_clusters: int, max_cluster_items: int, num_distinct: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(num_events, 3)).astype(np.float32)
    if num_distinct:
        vectors = vectors[rng.integers(0, min(num_distinct, num_events), num_events)]
    parts = split_events(vectors, max_clusters, max_cluster_items)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_events))
    assert len(parts) <= max_clusters
    roomy = split_events(vectors, num_events, max_cluster_items)
    assert all(len(part) <= max_cluster_items or len(np.unique(vectors[part], axis=0)) == 1 for part in roomy)
    again = split_events(vectors.copy(), max_clusters, max_cluster_items)
    assert [part.tolist() for part in again] == [part.tolist() for part in parts]


def test_k_means_labels_have_no_gap() -> None:
    same = np.ones((6, 2), dtype=np.float32)
    assert k_means(same, 3).tolist() == [0] * 6
    vectors, corners = blobs([5, 7])
    labels = k_means(vectors, 2)
    assert sorted(set(labels.tolist())) == [0, 1]
    assert len(set(zip(labels.tolist(), corners.tolist(), strict=True))) == 2


def test_means_leave_out_what_is_not_known() -> None:
    values = np.array([[1, np.nan], [3, np.nan], [5, 7]], dtype=np.float32)
    means = means_of_groups(values, np.array([0, 0, 1]), 2)
    np.testing.assert_array_equal(means, np.array([[2, np.nan], [5, 7]], dtype=np.float32))
    assert means_of_groups(np.zeros((2, 0), dtype=np.float32), np.array([0, 0]), 1).shape == (1, 0)


@pytest.mark.parametrize("max_clusters", [1, 7, 50])
def test_a_long_history_keeps_to_the_bound(max_clusters: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)
    chosen, clusters = representatives(vectors, max_clusters)
    assert len(chosen) == max_clusters
    assert clusters.max() == max_clusters - 1
