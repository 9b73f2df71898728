"""Metrics of ranked lists with one target a row, by the ranks of the targets.

A rank is 1 for the first place and `NOT_RANKED` (0) for a target outside the list. With one target the ideal list has
it first, so its DCG is 1 / log2(1 + 1) = 1 and NDCG needs no further division:

    Recall@K = [1 <= rank <= K]       (the same as the hit rate)
    NDCG@K   = [1 <= rank <= K] / log2(1 + rank)
    MRR@K    = [1 <= rank <= K] / rank

each averaged over rows. Worked example: three rows whose targets come first, third and nowhere. Then Recall@1 = 1/3,
Recall@5 = 2/3, NDCG@5 = (1 + 1/log2(4) + 0) / 3 = 1/2, MRR@5 = (1 + 1/3 + 0) / 3 = 4/9.

Shapes: R rows (one target each), K places of a list, U users, N items, M metrics, X bootstrap samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onerec.errors import DataError
from onerec.evaluation.recommender import NO_ITEM

NOT_RANKED = 0
_DRAWS_AT_A_TIME = 4_000_000


def ranks_of_targets(items_RK: np.ndarray, targets_R: np.ndarray) -> np.ndarray:
    """Place of each row's target in its list, from 1; `NOT_RANKED` where the list does not hold it. int32 (R,)."""
    hits_RK = items_RK == targets_R[:, None]
    return np.where(hits_RK.any(axis=1), hits_RK.argmax(axis=1) + 1, NOT_RANKED).astype(np.int32)


def metric_names(ks: Sequence[int]) -> list[str]:
    """Names of the columns of `metric_values`."""
    return [f"{metric}@{k}" for metric in ("recall", "ndcg", "mrr") for k in ks]


def metric_values(ranks_R: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """Recall, NDCG and MRR of each row at each of `ks`, in the order of `metric_names`. float64 (R, M)."""
    found = np.where(ranks_R == NOT_RANKED, np.inf, ranks_R.astype(np.float64))[:, None]
    within = found <= np.asarray(ks, dtype=np.float64)
    return np.hstack([within, within / np.log2(1.0 + found), within / found]).astype(np.float64)


def mean_metrics(ranks_R: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Every metric averaged over rows; zero rows give no metrics, for there is nothing to average."""
    if not len(ranks_R):
        return {}
    return dict(zip(metric_names(ks), metric_values(ranks_R, ks).mean(axis=0).tolist(), strict=True))


@dataclass(frozen=True)
class Interval:
    """Bounds of a percentile bootstrap interval."""

    low: float
    high: float


def bootstrap_means(values_RM: np.ndarray, users_R: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Means of the columns over `num_samples` resamplings of the *users*, each with all its rows. float64 (X, M).

    Rows of one user are not independent, so users are what is drawn, with replacement.

    Raises:
        DataError: there is no row to draw from.
    """
    if not len(values_RM):
        raise DataError("a bootstrap needs at least one row, found none. Does the split hold any target?")
    _, user_of_row = np.unique(users_R, return_inverse=True)
    num_users = int(user_of_row.max()) + 1
    rows_and_sums = np.hstack([np.ones((len(values_RM), 1)), values_RM])
    totals_UM = np.zeros((num_users, rows_and_sums.shape[1]))
    np.add.at(totals_UM, user_of_row, rows_and_sums)

    rng = np.random.default_rng(seed)
    samples_at_a_time = max(1, _DRAWS_AT_A_TIME // num_users)
    means = []
    for start in range(0, num_samples, samples_at_a_time):
        num_drawn = min(samples_at_a_time, num_samples - start)
        draws = rng.integers(num_users, size=(num_drawn, num_users)) + np.arange(num_drawn)[:, None] * num_users
        weights_XU = np.bincount(draws.ravel(), minlength=num_drawn * num_users).reshape(num_drawn, num_users)
        sums_XM = weights_XU.astype(np.float64) @ totals_UM
        means.append(sums_XM[:, 1:] / sums_XM[:, :1])
    return np.concatenate(means)


def bootstrap_intervals(
    values_RM: np.ndarray, users_R: np.ndarray, num_samples: int, confidence: float, seed: int
) -> list[Interval]:
    """Percentile interval of each column's mean, users resampled; see `bootstrap_means`."""
    return _percentile_intervals(bootstrap_means(values_RM, users_R, num_samples, seed), confidence)


@dataclass(frozen=True)
class PairedDifference:
    """How much better one recommender is than another on the same rows."""

    difference: float
    interval: Interval
    p_value: float
    """Two-sided bootstrap p-value: twice the share of resamplings on the other side of zero, at most 1."""


def compare_paired(
    values_RM: np.ndarray,
    other_values_RM: np.ndarray,
    users_R: np.ndarray,
    num_samples: int,
    confidence: float,
    seed: int,
) -> list[PairedDifference]:
    """Mean of `values - other_values` for each column, with interval and p-value from resampled users.

    Raises:
        DataError: the two do not cover the same rows.
    """
    if values_RM.shape != other_values_RM.shape:
        raise DataError(
            f"found {values_RM.shape} and {other_values_RM.shape} metric values, expected the same rows and metrics. "
            "Evaluate both recommenders on the same split, sample and ks."
        )
    differences_RM = values_RM - other_values_RM
    means_XM = bootstrap_means(differences_RM, users_R, num_samples, seed)
    below_M, above_M = (means_XM <= 0).mean(axis=0), (means_XM >= 0).mean(axis=0)
    p_values_M = np.minimum(1.0, 2 * np.minimum(below_M, above_M))
    intervals = _percentile_intervals(means_XM, confidence)
    return [
        PairedDifference(float(difference), interval, float(p_value))
        for difference, interval, p_value in zip(differences_RM.mean(axis=0), intervals, p_values_M, strict=True)
    ]


def coverage(exposures_N: np.ndarray) -> float:
    """Share of the catalogue that is recommended at least once. `exposures_N`: times each item is recommended."""
    return float(np.count_nonzero(exposures_N) / len(exposures_N))


def gini(exposures_N: np.ndarray) -> float:
    """Gini coefficient of the exposure of items: 0 where all are recommended equally often, near 1 where one is.

    With exposures e sorted ascending: sum_i (2 i - N - 1) e_i / (N sum_i e_i), i from 1. Worked example: exposures
    0, 0, 0, 4 give (4 * 2 - 4 - 1) * 4 / (4 * 4) = 3/4. Zero where nothing is recommended at all.
    """
    total = float(exposures_N.sum())
    if not total:
        return 0.0
    num_items = len(exposures_N)
    weights_N = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float((weights_N * np.sort(exposures_N)).sum() / (num_items * total))


def popularity_percentiles(counts_N: np.ndarray) -> np.ndarray:
    """Share of the catalogue less popular than each item, items as popular counted half: in (0, 1). float64 (N,).

    Worked example: counts 5, 0, 5, 1 give 3/4, 1/8, 3/4, 3/8.
    """
    ascending = np.sort(counts_N)
    below_N = np.searchsorted(ascending, counts_N, side="left")
    not_above_N = np.searchsorted(ascending, counts_N, side="right")
    return (below_N + not_above_N) / (2.0 * len(counts_N))


def count_invalid(
    items_BK: np.ndarray, num_items: int, histories: Sequence[np.ndarray], exclude_seen: bool
) -> tuple[int, int]:
    """Count filled places, and those of them that are wrong.

    A place is wrong when it holds no item of the catalogue, repeats an item further up the list, or, with
    `exclude_seen`, holds an item of the row's history.

    Returns:
        (filled, invalid) places.
    """
    filled_BK = items_BK != NO_ITEM
    outside_BK = (items_BK < 0) | (items_BK >= num_items)
    order_BK = np.argsort(items_BK, axis=1, kind="stable")
    sorted_BK = np.take_along_axis(items_BK, order_BK, axis=1)
    repeated_BK = np.zeros_like(filled_BK)
    np.put_along_axis(repeated_BK, order_BK[:, 1:], sorted_BK[:, 1:] == sorted_BK[:, :-1], axis=1)
    seen_BK = np.zeros_like(filled_BK)
    if exclude_seen:
        for row, history in enumerate(histories):
            seen_BK[row] = np.isin(items_BK[row], history)
    invalid_BK = filled_BK & (outside_BK | repeated_BK | seen_BK)
    return int(filled_BK.sum()), int(invalid_BK.sum())


def popularity_slices(
    target_counts_R: np.ndarray, counts_N: np.ndarray, hot_min_count: int, head_share: float
) -> dict[str, np.ndarray]:
    """Rows by the popularity of their target in training, as boolean masks.

    cold: the target never occurs; warm: 1 to `hot_min_count` - 1 times; hot: more often. head: the target is among the
    most popular `head_share` of the catalogue (items as popular as the last of them included); tail: the rest.
    """
    num_head_items = max(1, round(head_share * len(counts_N)))
    # An item that never occurs is no head item, even where almost no item occurs.
    head_min_count = max(1, int(np.sort(counts_N)[-num_head_items]))
    return {
        "cold": target_counts_R == 0,
        "warm": (target_counts_R > 0) & (target_counts_R < hot_min_count),
        "hot": target_counts_R >= hot_min_count,
        "head": target_counts_R >= head_min_count,
        "tail": target_counts_R < head_min_count,
    }


def _percentile_intervals(means_XM: np.ndarray, confidence: float) -> list[Interval]:
    lows_M, highs_M = np.quantile(means_XM, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Interval(float(low), float(high)) for low, high in zip(lows_M, highs_M, strict=True)]
