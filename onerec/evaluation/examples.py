"""Some users' histories beside what they are recommended, to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onerec.evaluation import metrics
from onerec.evaluation.evaluator import Evaluation, EvaluationData
from onerec.evaluation.recommender import NO_ITEM, Recommender, requests_before


@dataclass(frozen=True)
class RecommendedItem:
    """One place of a list."""

    title: str
    is_target: bool


@dataclass(frozen=True)
class UserExample:
    """A user's latest items, what was recommended, and what they chose."""

    user: str
    history: list[str]
    """Titles, oldest first."""
    num_earlier: int
    """Items of the history before those."""
    recommended: list[RecommendedItem]
    target: str


def choose_examples(
    recommender: Recommender,
    data: EvaluationData,
    evaluation: Evaluation,
    titles: Sequence[str],
    num_hits: int = 3,
    num_misses: int = 3,
    k: int = 10,
    max_shown_items: int = 10,
    seed: int = 0,
) -> list[UserExample]:
    """Draw users whose target is among the best `k` and users whose is not, and recommend to them again.

    Args:
        evaluation: of the same recommender; its protocol decides whether seen items are excluded.
        titles: what to call each item, by item index.
    """
    hit_R = (evaluation.ranks_R != metrics.NOT_RANKED) & (evaluation.ranks_R <= k)
    chosen = _draw(hit_R, num_hits, num_misses, seed)
    if not len(chosen):
        return []
    targets = evaluation.targets
    histories = [data.histories.before(int(row)) for row in targets.rows_R[chosen]]
    requests = requests_before(recommender, data.histories, targets.rows_R[chosen])
    ranking = recommender.recommend(requests, k, exclude_seen=evaluation.protocol.endswith("_unseen"))
    examples = []
    for history, items, row in zip(histories, ranking.items_BK.tolist(), chosen, strict=True):
        target = int(targets.items_R[row])
        examples.append(
            UserExample(
                user=str(targets.users_R[row]),
                history=[titles[item] for item in history[-max_shown_items:]],
                num_earlier=max(0, len(history) - max_shown_items),
                recommended=[RecommendedItem(titles[item], item == target) for item in items if item != NO_ITEM],
                target=titles[target],
            )
        )
    return examples


def _draw(hit_R: np.ndarray, num_hits: int, num_misses: int, seed: int) -> np.ndarray:
    """So many rows of either kind, hits first; fewer where there are no more."""
    rng = np.random.default_rng(seed)
    hits, misses = (rng.permutation(np.flatnonzero(rows_R)) for rows_R in (hit_R, ~hit_R))
    return np.concatenate([hits[:num_hits], misses[:num_misses]])
