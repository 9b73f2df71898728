"""What the evaluator asks of anything that recommends.

Shapes: B requests, K places of a list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onerec.data.histories import Histories

NO_ITEM = -1
"""Stands in a list's place that could not be filled."""


@dataclass(frozen=True)
class Ranking:
    """Ranked lists, best first; `NO_ITEM` with score -inf fills the end of a list with fewer than K items."""

    items_BK: np.ndarray
    """int32 item indices."""
    scores_BK: np.ndarray
    """float32, never increasing along a row; comparable within a row only."""


class Recommender(Protocol):
    """Anything that ranks the whole catalogue for a batch of histories."""

    @property
    def name(self) -> str:
        """How results tables call it."""

    def recommend(self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool) -> Ranking:
        """Rank the catalogue for each history and return the best `k` items.

        Args:
            histories: item indices of each request, oldest first, complete: the recommender shortens them to what
                it can read, but excludes every one of them when `exclude_seen`.
            k: places of each list.
            exclude_seen: whether items of the history may not be recommended.
        """


def requests_before(recommender: Recommender, histories: Histories, rows: np.ndarray) -> list[Any]:
    """What a recommender is handed for the events in `rows`: the items before each or, where it has a `source` of
    events (`onerec.data.pathways.EventSource`), these with what is known of them."""
    source = getattr(recommender, "source", None)
    return [(histories if source is None else source).before(int(row)) for row in rows]
