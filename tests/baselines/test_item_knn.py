import math

import numpy as np
import pytest

from onerec.baselines.item_knn import ItemKnn, ItemKnnSettings
from onerec.data.histories import Histories


def make_histories(sequences):
    lengths = [len(sequence) for sequence in sequences]
    items = np.array([item for sequence in sequences for item in sequence], dtype=np.int32)
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=items,
        timestamps=np.arange(len(items)),
        splits=np.zeros(len(items), dtype=np.uint8),
    )


def fit(sequences, num_items, **settings):
    return ItemKnn.fit(make_histories(sequences), num_items, ItemKnnSettings(**settings), show_progress=False)


def test_similarities_by_hand():
    # Users of item 0: a, b, c; of item 1: a, b; of item 2: c. A repeated event counts once.
    knn = fit([[0, 1, 1], [1, 0], [0, 2]], 4, shrinkage=1.0, num_neighbors=5)
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 2 / (math.sqrt(3 * 2) + 1)
    expected[0, 2] = expected[2, 0] = 1 / (math.sqrt(3 * 1) + 1)
    np.testing.assert_allclose(knn.similarities_NN.toarray(), expected, rtol=1e-6)


def test_neighbours_are_cut_lower_index_first_among_equals():
    knn = fit([[0, 3], [0, 1], [0, 2, 1]], 4, shrinkage=0.0, num_neighbors=2)
    similarities = knn.similarities_NN.toarray()[0]
    # cosine(0, 1) = 2 / sqrt(3 * 2); items 2 and 3 both 1 / sqrt(3): the lower index stays.
    np.testing.assert_allclose(similarities, [0, 2 / math.sqrt(6), 1 / math.sqrt(3), 0], rtol=1e-6)


def test_recent_items_weigh_more():
    knn = fit([[0, 1], [2, 3]], 4, shrinkage=0.0, half_life_items=1.0)
    histories = [np.array([0, 2]), np.array([2, 0]), np.array([], dtype=np.int32)]
    ranking = knn.recommend(histories, 2, exclude_seen=False)
    np.testing.assert_array_equal(ranking.items_BK, [[3, 1], [1, 3], [0, 1]])
    np.testing.assert_allclose(ranking.scores_BK, [[1, 0.5], [1, 0.5], [0, 0]], rtol=1e-6)


def test_only_the_latest_items_count_but_all_are_excluded():
    knn = fit([[0, 1], [2, 3], [1, 3]], 4, shrinkage=0.0, max_history_items=1)
    ranking = knn.recommend([np.array([1, 2])], 4, exclude_seen=True)
    np.testing.assert_array_equal(ranking.items_BK, [[3, 0, -1, -1]])


@pytest.mark.parametrize("block", [1, 2, 1000])
def test_agrees_with_naive_loops(monkeypatch, block):
    monkeypatch.setattr("onerec.baselines.item_knn._ITEMS_AT_A_TIME", block)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(12, size=rng.integers(1, 8)).tolist() for _ in range(30)]
    knn = fit(sequences, 12, shrinkage=2.0, num_neighbors=12, half_life_items=3.0)
    users = [{u for u, sequence in enumerate(sequences) if item in sequence} for item in range(12)]
    history = [4, 7, 4, 2]
    expected = np.zeros(12)
    for candidate in range(12):
        for places_back, item in enumerate(reversed(history)):
            if item != candidate:
                similarity = len(users[item] & users[candidate]) / (
                    math.sqrt(len(users[item]) * len(users[candidate])) + 2.0
                )
                expected[candidate] += 0.5 ** (places_back / 3.0) * similarity
    ranking = knn.recommend([np.array(history)], 12, exclude_seen=False)
    np.testing.assert_allclose(ranking.scores_BK[0], expected[ranking.items_BK[0]], rtol=1e-5)
    np.testing.assert_allclose(ranking.scores_BK[0], np.sort(expected)[::-1], rtol=1e-5)
