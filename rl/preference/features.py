"""Facts about items as numbers of categories: codes of the semantic ID, category columns, binned numbers.

Shapes: N items, C features, L code levels.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from onerec.data.tables import ITEM

_NUM_QUANTILES = 16


def item_features(
    items: pl.DataFrame, codes_NL: np.ndarray, category_columns: Sequence[str]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Features (N, C) and how many values each has; 0 stands for a missing one.

    Args:
        items: the items table, row k is item index k.
        codes_NL: the ID table.
        category_columns: columns read as categories; other columns of numbers are cut into bins of like size.
    """
    columns = [np.asarray(codes_L) for codes_L in codes_NL.T]
    for column in items:
        if column.name == ITEM:
            continue
        if column.name in category_columns:
            columns.append(column.rank("dense").fill_null(0).to_numpy())
        elif column.dtype.is_numeric():
            columns.append(_binned(column.cast(pl.Float64).fill_null(float("nan")).to_numpy()))
    features_NC = np.stack(columns, axis=1).astype(np.int64)
    return features_NC, tuple((features_NC.max(axis=0) + 1).tolist())


def _binned(values_N: np.ndarray) -> np.ndarray:
    missing_N = np.isnan(values_N)
    if missing_N.all():
        return np.zeros(len(values_N))
    bounds = np.unique(np.quantile(values_N[~missing_N], np.linspace(0, 1, _NUM_QUANTILES + 1)[1:-1]))
    return np.where(missing_N, 0, 1 + np.searchsorted(bounds, values_N, side="right"))
