"""How often the lists of a beam search are the provably best ones, by the number of beams.

Shapes: B requests of a batch, K places of a list.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from onerec.data.histories import Histories
from onerec.errors import ConfigError
from onerec.evaluation.recommender import Ranking, Recommender, requests_before

BEAMS = (10, 50, 128)
LIST_LENGTH = 10
_MAX_REQUESTS = 200
_BATCH_REQUESTS = 16


class ExactRecommender(Recommender, Protocol):
    """A recommender that searches by beams and can tell what a search should have found."""

    def encode(self, histories: Sequence[Any]) -> Any:
        """A batch of histories, to be searched after."""

    def search(
        self, context: Any, k: int, excluded: Sequence[np.ndarray] | None = None, num_beams: int | None = None
    ) -> Ranking:
        """The `k` best items that so many beams find."""

    def search_exactly(
        self, context: Any, k: int, excluded: Sequence[np.ndarray] | None = None, num_beams: int | None = None
    ) -> tuple[Ranking, np.ndarray]:
        """The `k` best items, and how many prefixes were read for each request."""


def shares_equal_to_exact(recommender: ExactRecommender, histories: Histories, rows: np.ndarray) -> dict[str, float]:
    """Beams -> share of requests whose ten items are the exact search's, in its order; seen items are excluded.

    Numbers of beams for which the exact search would have to read too much are left out: the model prefers too little.

    Args:
        rows: of the events before which requests are made; a sample of them is taken, the same each time.
    """
    sample = np.sort(np.random.default_rng(0).permutation(rows)[:_MAX_REQUESTS])
    shares = {}
    for num_beams in BEAMS:
        try:
            equal = [
                _equal(recommender, histories, sample[first : first + _BATCH_REQUESTS], num_beams)
                for first in range(0, len(sample), _BATCH_REQUESTS)
            ]
        except ConfigError:
            continue
        shares[str(num_beams)] = float(np.concatenate(equal).mean())
    return shares


def _equal(recommender: ExactRecommender, histories: Histories, rows: np.ndarray, num_beams: int) -> np.ndarray:
    """Which of the requests get the exact list, bool (B,)."""
    context = recommender.encode(requests_before(recommender, histories, rows))
    seen = [histories.before(int(row)) for row in rows]
    found = recommender.search(context, LIST_LENGTH, seen, num_beams)
    exact, _ = recommender.search_exactly(context, LIST_LENGTH, seen, num_beams)
    return (found.items_BK == exact.items_BK).all(axis=1)
