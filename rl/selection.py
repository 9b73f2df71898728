"""Selection among the beams by a reward model, from which the report of OneRec has its online gain (arXiv 2506.13695).

Shapes: B requests, K places of a list.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from onerec.data.histories import Split
from onerec.evaluation.evaluator import EvaluationData, select_targets
from onerec.evaluation.metrics import mean_metrics, ranks_of_targets
from onerec.evaluation.recommender import NO_ITEM, Ranking, Recommender, requests_before
from onerec.evaluation.settings import EvaluationSettings

Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Rows of the log (B,) and items (B, K) -> rewards (B, K)."""


def rerank(ranking: Ranking, rewards_BK: np.ndarray, share: float = 1.0) -> Ranking:
    """The same items in another order: by reward, or by a mixture of reward and generator.

    Both are standardised within each list, so that the mixture has no unit. Items that come out even keep their order.

    Args:
        share: weight of the reward; 1 is by the reward alone, 0 leaves the order as it is.
    """
    filled_BK = ranking.items_BK != NO_ITEM
    mixed_BK = (1 - share) * _standardise(ranking.scores_BK, filled_BK) + share * _standardise(rewards_BK, filled_BK)
    scores_BK = np.where(filled_BK, mixed_BK, -np.inf)
    order_BK = np.argsort(-scores_BK, axis=1, kind="stable")
    return Ranking(
        items_BK=np.take_along_axis(ranking.items_BK, order_BK, axis=1),
        scores_BK=np.take_along_axis(scores_BK, order_BK, axis=1).astype(np.float32),
    )


def measure_selection(
    recommender: Recommender,
    judge: Judge,
    data: EvaluationData,
    settings: EvaluationSettings,
    num_beams: int,
    share: float,
) -> dict[str, Any]:
    """Metrics of the test targets before and after selection among `num_beams` items, seen ones excluded."""
    histories = data.histories
    targets = select_targets(histories, Split.TEST, histories.training().item_counts(data.num_items), settings)
    ranks: dict[str, list[np.ndarray]] = {"beams": [], "selected": []}
    for first in range(0, len(targets.rows_R), settings.batch_size):
        rows = targets.rows_R[first : first + settings.batch_size]
        requests = requests_before(recommender, histories, rows)
        generated = recommender.recommend(requests, num_beams, exclude_seen=True)
        selected = rerank(generated, judge(rows, generated.items_BK), share)
        wanted = targets.items_R[first : first + settings.batch_size]
        for name, ranking in (("beams", generated), ("selected", selected)):
            ranks[name].append(ranks_of_targets(ranking.items_BK, wanted))
    figures = {name: mean_metrics(np.concatenate(found), settings.ks) for name, found in ranks.items()}
    return {"protocol": "test_unseen", "candidates": num_beams, "share": share, "rows": len(targets.rows_R), **figures}


def _standardise(values_BK: np.ndarray, filled_BK: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation over the filled places of each row; 0 where all are equal but for rounding."""
    known_BK = np.where(filled_BK, values_BK, 0.0).astype(np.float64)
    counts_B1 = np.maximum(filled_BK.sum(axis=1, keepdims=True), 1)
    centred_BK = np.where(filled_BK, known_BK - known_BK.sum(axis=1, keepdims=True) / counts_B1, 0.0)
    deviations_B1 = np.sqrt(np.square(centred_BK).sum(axis=1, keepdims=True) / counts_B1)
    rounding_B1 = 1e-12 * np.abs(known_BK).max(axis=1, keepdims=True)
    return np.divide(centred_BK, deviations_B1, out=np.zeros_like(centred_BK), where=deviations_B1 > rounding_B1)
