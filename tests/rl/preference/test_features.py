"""Facts about items as numbers of categories."""

import numpy as np
import polars as pl

from rl.preference.features import item_features

CODES_NL = np.array([[0, 2], [1, 0], [1, 1]])


def test_codes_categories_and_binned_numbers() -> None:
    items = pl.DataFrame(
        {
            "item_id": [10, 20, 30],
            "title": ["a", "b", "c"],
            "genre": ["war", None, "art"],
            "seconds": [1.0, 9.0, None],
            "year": [1990, 1990, 2000],
        }
    )
    features_NC, sizes = item_features(items, CODES_NL, ["genre", "year"])
    assert features_NC[:, :2].tolist() == CODES_NL.tolist()
    assert features_NC[:, 2].tolist() == [2, 0, 1]  # 0: missing
    assert features_NC[2, 3] == 0
    assert 0 < features_NC[0, 3] < features_NC[1, 3]
    assert features_NC[:, 4].tolist() == [1, 1, 2]
    assert sizes == tuple((features_NC.max(axis=0) + 1).tolist())


def test_a_column_without_a_value_is_missing_everywhere() -> None:
    items = pl.DataFrame({"item_id": [1, 2, 3], "weight": pl.Series([None, None, None], dtype=pl.Float64)})
    features_NC, _ = item_features(items, CODES_NL, [])
    assert features_NC[:, 2].tolist() == [0, 0, 0]
