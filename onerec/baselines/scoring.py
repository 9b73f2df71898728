"""The one way from a matrix of scores to ranked lists, shared by every baseline that scores the whole catalogue.

Shapes: B requests, N items, K places of a list.
"""

from collections.abc import Sequence

import numpy as np

from onerec.errors import DataError
from onerec.evaluation.recommender import NO_ITEM, Ranking

_INDEX_BITS = 32
_INDEX_MASK = (1 << _INDEX_BITS) - 1


def rank_scores(scores_BN: np.ndarray, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> Ranking:
    """Return the `k` best items of each row: higher score first, of equal scores the lower item index.

    Args:
        scores_BN: one score an item, compared in float32; -inf marks an item that may not be recommended.
        histories: item indices of each row, left out of its list when `exclude_seen`.
        k: places of each list; those that no item can fill hold `NO_ITEM`.
        exclude_seen: whether the items of a row's history are left out.

    Raises:
        DataError: a score is NaN.
    """
    # Adding zero makes a copy that may be written to, and one zero of the two.
    scores_BN = np.asarray(scores_BN, dtype=np.float32) + np.float32(0.0)
    if np.isnan(scores_BN).any():
        row, item = np.argwhere(np.isnan(scores_BN))[0]
        raise DataError(f"the score of item {item} in row {row} is NaN, expected a number. Did training diverge?")
    if exclude_seen:
        _leave_out(scores_BN, histories)
    num_rows, num_items = scores_BN.shape
    num_ranked = min(k, num_items)
    keys_BN = _unique_keys(scores_BN)
    keys_BK = -np.sort(-np.partition(keys_BN, num_items - num_ranked, axis=1)[:, num_items - num_ranked :], axis=1)
    ranked_BK = (num_items - 1 - (keys_BK & _INDEX_MASK)).astype(np.int64)

    items_BK = np.full((num_rows, k), NO_ITEM, dtype=np.int32)
    ranked_scores_BK = np.full((num_rows, k), -np.inf, dtype=np.float32)
    ranked_scores_BK[:, :num_ranked] = np.take_along_axis(scores_BN, ranked_BK, axis=1)
    items_BK[:, :num_ranked] = ranked_BK
    items_BK[np.isneginf(ranked_scores_BK)] = NO_ITEM
    return Ranking(items_BK=items_BK, scores_BK=ranked_scores_BK)


def _leave_out(scores_BN: np.ndarray, histories: Sequence[np.ndarray]) -> None:
    lengths = [len(history) for history in histories]
    if sum(lengths):
        rows = np.repeat(np.arange(len(histories)), lengths)
        scores_BN[rows, np.concatenate(histories)] = -np.inf


def _unique_keys(scores_BN: np.ndarray) -> np.ndarray:
    """Integers in the order of (score, -item index): no two are equal, so a partition by them is deterministic."""
    bits_BN = scores_BN.view(np.int32)
    # IEEE floats order like signed integers once the magnitude bits of the negative ones are flipped.
    ordered_BN = np.where(bits_BN < 0, bits_BN ^ np.int32(0x7FFFFFFF), bits_BN).astype(np.int64)
    return (ordered_BN << _INDEX_BITS) | np.arange(scores_BN.shape[1] - 1, -1, -1)
