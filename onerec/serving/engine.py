"""From item ids to recommended items: the evaluator's encode and search behind the user's own keys.

Shapes: B queries of a batch, K places of a list.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onerec.bundle import Bundle
from onerec.errors import ConfigError, DataError, ServingError
from onerec.evaluation.recommender import NO_ITEM, Ranking
from onerec.model.context import Context
from onerec.serving.limits import Limits
from onerec.serving.schema import (
    ItemId,
    Readiness,
    RecommendedItem,
    RecommendRequest,
    RecommendResponse,
    StageMilliseconds,
)

_MAX_NAMED_IDS = 20
_MAX_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Query:
    """A checked request in item indices (int64) of the engine that checked it, which is to answer it."""

    engine: "Engine"
    history: np.ndarray
    num_unknown: int  # stored items that the catalogue does not have
    excluded: np.ndarray
    k: int
    beams: int
    exact: bool
    timings: bool

    @property
    def kind(self) -> tuple[str, int, bool]:
        """Queries of one kind can be searched as one batch."""
        return self.engine.content_hash, self.beams, self.exact


class Engine:
    """Checks requests and answers batches of them from one bundle; call `answer` from a single thread."""

    def __init__(self, bundle: Bundle, limits: Limits) -> None:
        self.bundle = bundle
        self.limits = limits
        self.content_hash = bundle.manifest.content_hash
        self._recommender = bundle.recommender()
        self._ids: list[str | int] = bundle.items["item_id"].to_list()
        self._titles = bundle.titles

    def readiness(self) -> Readiness:
        """What is being served."""
        return Readiness(
            run=self.bundle.manifest.details["run"], bundle=self.content_hash, num_items=self.bundle.table.num_items
        )

    def query(self, request: RecommendRequest, stored: Sequence[str] = ()) -> Query:
        """Check a request and look up its items; `stored` is the history of its `user_id`, oldest first.

        Raises:
            ServingError: a request beyond the limits, or item ids that the catalogue does not have.
        """
        self.limits.check(request)
        if request.history is None:
            history, unknown = self._find(stored)
        else:
            history, unknown = self.indices("history", request.history), []
        excluded = self.indices("exclude", request.exclude)
        if request.exclude_seen:
            excluded = np.concatenate([excluded, history])
        beams = request.beams or max(self._recommender.num_beams, request.k)
        return Query(self, history, len(unknown), excluded, request.k, beams, request.exact, request.timings)

    def answer(self, queries: Sequence[Query]) -> list[RecommendResponse]:
        """Search for the best items that each query allows; all are of one kind.

        Raises:
            ServingError: an exact search that would have to read too much.
        """
        start = time.perf_counter()
        context = self._recommender.encode([query.history for query in queries])
        encoded = time.perf_counter()
        ranking, expansions_B = self._search(context, queries)
        searched = time.perf_counter()
        milliseconds = StageMilliseconds(encode=1e3 * (encoded - start), search=1e3 * (searched - encoded))
        return [
            RecommendResponse(
                items=self._items(ranking.items_BK[row, : query.k], ranking.scores_BK[row, : query.k]),
                bundle=self.content_hash,
                beams=query.beams,
                expansions=None if expansions_B is None else int(expansions_B[row]),
                history_items_read=min(len(query.history), self.bundle.model.config.max_history_items),
                history_items_unknown=query.num_unknown or None,
                milliseconds=milliseconds if query.timings else None,
            )
            for row, query in enumerate(queries)
        ]

    def indices(self, name: str, item_ids: Sequence[ItemId]) -> np.ndarray:
        """Item indices (int64) of the user's own keys.

        Raises:
            ServingError: some are not in the catalogue; `name` says whose they are.
        """
        found, unknown = self._find(item_ids)
        if unknown:
            named = ", ".join(_shown(item_id) for item_id in unknown[:_MAX_NAMED_IDS])
            more = f" and {len(unknown) - _MAX_NAMED_IDS} more" if len(unknown) > _MAX_NAMED_IDS else ""
            raise ServingError(
                f"{name}: {len(unknown)} of {len(item_ids)} item ids are not in the catalogue: {named}{more}. "
                "Send ids of the bundle's catalogue."
            )
        return found

    def _find(self, item_ids: Sequence[ItemId]) -> tuple[np.ndarray, list[ItemId]]:
        """Indices of those that the catalogue has, and the rest."""
        indices, unknown = [], []
        for item_id in item_ids:
            try:
                indices.append(self.bundle.table.index_of(str(item_id)))
            except DataError:
                unknown.append(item_id)
        return np.asarray(indices, dtype=np.int64), unknown

    def _search(self, context: Context, queries: Sequence[Query]) -> tuple[Ranking, np.ndarray | None]:
        """The rankings and, of an exact search, the prefixes read for each."""
        beams, exact = queries[0].beams, queries[0].exact
        k, excluded = max(query.k for query in queries), [query.excluded for query in queries]
        if not exact:
            return self._recommender.search(context, k, excluded, beams), None
        try:
            return self._recommender.search_exactly(context, k, excluded, beams)
        except ConfigError as error:
            raise ServingError(f"exact: {error}") from error

    def _items(self, items_K: np.ndarray, scores_K: np.ndarray) -> list[RecommendedItem]:
        return [
            RecommendedItem(
                id=self._ids[item],
                score=score,
                semantic_id=self.bundle.table.codes_NL[item].tolist(),
                title=self._titles[item],
            )
            for item, score in zip(items_K.tolist(), scores_K.tolist(), strict=True)
            if item != NO_ITEM
        ]


def _shown(item_id: ItemId) -> str:
    text = repr(item_id)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[:_MAX_SHOWN_CHARACTERS] + "…"
