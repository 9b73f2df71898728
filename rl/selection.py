"""What selection among the beams by a reward model does to the metrics of held-out targets.

Shapes: B requests, K places of a list.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from onerec.data.histories import Split
from onerec.decoding.selection import rerank
from onerec.evaluation.evaluator import EvaluationData, select_targets
from onerec.evaluation.metrics import mean_metrics, ranks_of_targets
from onerec.evaluation.recommender import Recommender, requests_before
from onerec.evaluation.settings import EvaluationSettings

Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Rows of the log (B,) and items (B, K) -> rewards (B, K)."""


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
