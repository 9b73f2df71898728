"""Popularity: the same list for everyone, by the number of training events."""

from collections.abc import Sequence
from typing import Self

import numpy as np

from onerec.baselines.scoring import rank_scores
from onerec.data.histories import Histories
from onerec.evaluation.recommender import Ranking


class Popularity:
    """Ranks items by how often they occur in training, of equally popular ones the lower index first."""

    name = "popularity"

    def __init__(self, counts_N: np.ndarray) -> None:
        self.counts_N = counts_N.astype(np.float32)

    @classmethod
    def fit(cls, histories: Histories, num_items: int) -> Self:
        """Count the training events of each item."""
        return cls(histories.training().item_counts(num_items))

    @property
    def num_parameters(self) -> int:
        return self.counts_N.size

    def recommend(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> Ranking:
        scores_BN = np.broadcast_to(self.counts_N, (len(histories), len(self.counts_N)))
        return rank_scores(scores_BN, histories, k, exclude_seen)
