"""From item ids to recommended items: the evaluator's encode and search behind the user's own keys."""

import time
from collections.abc import Sequence

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


class Engine:
    """Answers one request at a time from one bundle; call `recommend` from a single thread."""

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

    def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Search for the `k` best items the request allows.

        Raises:
            ServingError: a request beyond the limits, or item ids that the catalogue does not have.
        """
        self.limits.check(request)
        history, excluded = self._indices("history", request.history), self._indices("exclude", request.exclude)
        if request.exclude_seen:
            excluded = np.concatenate([excluded, history])
        beams = request.beams or max(self._recommender.num_beams, request.k)
        start = time.perf_counter()
        context = self._recommender.encode([history])
        encoded = time.perf_counter()
        ranking, expansions = self._search(context, request, excluded, beams)
        searched = time.perf_counter()
        return RecommendResponse(
            items=self._items(ranking.items_BK[0], ranking.scores_BK[0]),
            bundle=self.content_hash,
            beams=beams,
            expansions=expansions,
            history_items_read=min(len(history), self.bundle.model.config.max_history_items),
            milliseconds=StageMilliseconds(encode=1e3 * (encoded - start), search=1e3 * (searched - encoded))
            if request.timings
            else None,
        )

    def _search(
        self, context: Context, request: RecommendRequest, excluded: np.ndarray, beams: int
    ) -> tuple[Ranking, int | None]:
        """The ranking and, of an exact search, the prefixes it read."""
        if not request.exact:
            return self._recommender.search(context, request.k, [excluded], beams), None
        try:
            ranking, expansions_B = self._recommender.search_exactly(context, request.k, [excluded], beams)
        except ConfigError as error:
            raise ServingError(f"exact: {error}") from error
        return ranking, int(expansions_B[0])

    def _indices(self, name: str, item_ids: Sequence[ItemId]) -> np.ndarray:
        """Item indices (int64) of the user's own keys."""
        indices, unknown = [], []
        for item_id in item_ids:
            try:
                indices.append(self.bundle.table.index_of(str(item_id)))
            except DataError:
                unknown.append(item_id)
        if unknown:
            named = ", ".join(_shown(item_id) for item_id in unknown[:_MAX_NAMED_IDS])
            more = f" and {len(unknown) - _MAX_NAMED_IDS} more" if len(unknown) > _MAX_NAMED_IDS else ""
            raise ServingError(
                f"{name}: {len(unknown)} of {len(item_ids)} item ids are not in the catalogue: {named}{more}. "
                "Send ids of the bundle's catalogue."
            )
        return np.asarray(indices, dtype=np.int64)

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
