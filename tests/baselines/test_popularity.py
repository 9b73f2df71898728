import numpy as np

from onerec.baselines.popularity import Popularity
from onerec.data.histories import Histories


def make_histories(splits):
    return Histories(
        offsets=np.array([0, 4, 6]),
        items=np.array([2, 2, 1, 3, 1, 3], dtype=np.int32),
        timestamps=np.arange(6),
        splits=np.array(splits, dtype=np.uint8),
    )


def test_counts_training_events_only():
    popularity = Popularity.fit(make_histories([0, 0, 0, 2, 0, 2]), num_items=4)
    history = [np.array([2], dtype=np.int32)]
    np.testing.assert_array_equal(popularity.recommend(history, 5, exclude_seen=False).items_BK, [[1, 2, 0, 3, -1]])
    np.testing.assert_array_equal(popularity.recommend(history, 5, exclude_seen=True).items_BK, [[1, 0, 3, -1, -1]])
    np.testing.assert_array_equal(popularity.counts_N, [0, 2, 2, 0])
