"""From item ids to recommended items: the evaluator's encode and search behind the user's own keys.

Shapes: B queries of a batch, K places of a list.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onerec.bundle import Bundle
from onerec.data.pathways import History, UserEvents
from onerec.decoding.recommender import OneRecRecommender
from onerec.decoding.selection import Selector
from onerec.errors import ConfigError, DataError, ServingError
from onerec.evaluation.recommender import NO_ITEM, Ranking
from onerec.model.context import Context
from onerec.model.preference.signals import CHOSEN
from onerec.serving.catalogue import Catalogue
from onerec.serving.context_cache import ContextCache
from onerec.serving.explain import search_explained
from onerec.serving.filters import Filter
from onerec.serving.histories import StoredEvent
from onerec.serving.known import known_events, known_history
from onerec.serving.limits import Limits
from onerec.serving.schema import (
    BeamLevel,
    ItemFilter,
    ItemId,
    Readiness,
    RecommendedItem,
    RecommendRequest,
    RecommendResponse,
    StageMilliseconds,
)
from onerec.serving.traces import Stages

_MAX_NAMED_IDS = 20
_MAX_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Query:
    """A checked request in item indices (int64) of the engine that checked it, which is to answer it."""

    engine: "Engine"
    history: History
    num_unknown: int  # stored items that the catalogue does not have
    excluded: np.ndarray
    k: int
    beams: int
    exact: bool
    timings: bool
    explain: bool = False
    select: bool = False
    reward_weights: tuple[tuple[str, float], ...] = ()  # of the selection; the bundle's own where there are none
    filter: Filter | None = None
    note: Callable[[Stages], None] | None = None  # is told when each stage of the answer began and ended

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """Queries of one kind can be searched as one batch: of one length where places of a list are kept."""
        length = self.k if self.engine.keeps_places else 0
        way = (self.exact, self.explain, self.select, self.reward_weights)
        return self.engine.content_hash, self.beams, way, self.filter, length


@dataclass(frozen=True)
class _Found:
    """What a search of B queries found, and what it tells of itself where it was asked to."""

    ranking: Ranking
    expansions_B: np.ndarray | None = None
    levels_B: list[list[BeamLevel]] | None = None


class Engine:
    """Checks requests and answers batches of them from one bundle; call `answer` from a single thread.

    `catalogue` may be replaced by its successor at any time: item indices keep their meaning, and a batch is answered
    by the one that it began with.
    """

    def __init__(self, bundle: Bundle, limits: Limits) -> None:
        self.limits = limits
        self.content_hash = bundle.manifest.content_hash
        self.contexts = ContextCache(limits.context_cache_mb * 2**20)
        self.keeps_places = bundle.new_items is not None  # of each list, for new items
        self.catalogue = Catalogue.of(bundle, limits.precision)
        self.bundle = self.catalogue.bundle
        pathways = bundle.model.encoder.pathways
        self._spec = None if pathways is None else pathways.spec
        signals = () if bundle.selector is None else bundle.selector.judge.model.signals
        self._judged = {signal.name for signal in signals if signal.name != CHOSEN}

    def readiness(self) -> Readiness:
        """What is being served."""
        return Readiness(
            run=self.bundle.manifest.details["run"], bundle=self.content_hash, num_items=self.catalogue.num_available
        )

    def query(
        self,
        request: RecommendRequest,
        stored: Sequence[StoredEvent] = (),
        note: Callable[[Stages], None] | None = None,
    ) -> Query:
        """Check a request and look up its items.

        Args:
            stored: the history of its `user_id`, oldest first.
            note: is told when each stage of the answer began and ended.

        Raises:
            ServingError: a request beyond the limits, or item ids or columns that the catalogue does not have.
        """
        self._check(request)
        if request.history is None:
            events = known_events(stored, self.catalogue)
        else:
            events = UserEvents(self.indices("history", request.history))
        excluded = self.indices("exclude", request.exclude)
        if request.exclude_seen:
            excluded = np.concatenate([excluded, events.items]) if len(excluded) else events.items
        return Query(
            engine=self,
            history=known_history(events, request, self._spec, self._judged),
            num_unknown=0 if request.history is not None else len(stored) - len(events),
            excluded=excluded,
            k=request.k,
            beams=request.beams or max(self.catalogue.recommender.num_beams, request.k),
            exact=request.exact,
            timings=request.timings,
            explain=request.explain,
            select=request.select,
            reward_weights=tuple(sorted(request.reward_weights.items())),
            filter=None if request.filter is None else self._filter(request.filter),
            note=note,
        )

    def answer(self, queries: Sequence[Query]) -> list[RecommendResponse]:
        """Search for the best items that each query allows; all are of one kind.

        Raises:
            ServingError: an exact search that would have to read too much.
        """
        start = time.perf_counter()
        catalogue = self.catalogue
        recommender = catalogue.recommender_for(queries[0].filter)
        if recommender is None:
            milliseconds = StageMilliseconds(encode=0.0, search=1e3 * (time.perf_counter() - start))
            return [self._respond(query, [], milliseconds) for query in queries]
        context = self.contexts.encode(recommender, [query.history for query in queries])
        encoded = time.perf_counter()
        found = self._search(recommender, context, queries)
        searched = time.perf_counter()
        milliseconds = StageMilliseconds(encode=1e3 * (encoded - start), search=1e3 * (searched - encoded))
        responses = []
        for row, (query, items) in enumerate(zip(queries, _items(catalogue, found.ranking, queries), strict=True)):
            response = self._respond(query, items, milliseconds)
            response.expansions = None if found.expansions_B is None else int(found.expansions_B[row])
            response.levels = None if found.levels_B is None else found.levels_B[row]
            responses.append(response)
        stages = {"encode": (start, encoded), "search": (encoded, searched), "answer": (searched, time.perf_counter())}
        for note in [query.note for query in queries if query.note is not None]:
            note(stages)
        return responses

    def indices(self, name: str, item_ids: Sequence[ItemId]) -> np.ndarray:
        """Item indices (int64) of the user's own keys.

        Raises:
            ServingError: some are not in the catalogue; `name` says whose they are.
        """
        try:
            return self.catalogue.table.indices_of(list(map(str, item_ids)))
        except DataError:  # says one; the caller wants to know them all
            find = self.catalogue.find
            unknown = [item_id for item_id in item_ids if find(str(item_id)) is None]
            named = ", ".join(_shown(item_id) for item_id in unknown[:_MAX_NAMED_IDS])
            more = f" and {len(unknown) - _MAX_NAMED_IDS} more" if len(unknown) > _MAX_NAMED_IDS else ""
            raise ServingError(
                f"{name}: {len(unknown)} of {len(item_ids)} item ids are not in the catalogue: {named}{more}. "
                "Send ids of the bundle's catalogue."
            ) from None

    def _check(self, request: RecommendRequest) -> None:
        self.limits.check(request)
        if request.select and self.bundle.selector is None:
            raise ServingError(
                "select: found a bundle without a reward model, by which to select. Leave select out, or write the "
                "bundle again from a run whose --stage reward is done."
            )
        if request.reward_weights:
            self._selector(request.reward_weights)

    def _selector(self, weights: Mapping[str, float]) -> Selector:
        """The bundle's own, or by other weights.

        Raises:
            ServingError: a weight of nothing that the reward model knows.
        """
        selector = self.bundle.selector
        assert selector is not None
        try:
            return selector.weighing(weights, "reward_weights") if weights else selector
        except ConfigError as error:
            raise ServingError(str(error)) from error

    def _filter(self, chosen: ItemFilter) -> Filter:
        """The same for all requests that let the same items through by the same words."""
        columns = {name: tuple(sorted({_as_text(value) for value in chosen.columns[name]})) for name in chosen.columns}
        self.catalogue.require_columns("filter.columns", columns)
        if chosen.items is None:
            return Filter(columns=tuple(sorted(columns.items())))
        items = np.unique(self.indices("filter.items", chosen.items)).tolist()
        return Filter(tuple(items), tuple(sorted(columns.items())))

    def _search(self, recommender: OneRecRecommender, context: Context, queries: Sequence[Query]) -> _Found:
        beams, excluded = queries[0].beams, [query.excluded for query in queries]
        k = max(query.k for query in queries)
        if queries[0].explain:
            ranking, levels_B = search_explained(recommender, context, k, excluded, beams)
            return _Found(ranking, levels_B=levels_B)
        if queries[0].select:
            selector = self._selector(dict(queries[0].reward_weights))
            ranking = recommender.search(context, beams, excluded, beams)
            return _Found(selector.select([query.history for query in queries], ranking))
        if not queries[0].exact:
            return _Found(recommender.search(context, k, excluded, beams))
        try:
            return _Found(*recommender.search_exactly(context, k, excluded, beams))
        except ConfigError as error:
            raise ServingError(f"exact: {error}") from error

    def _respond(
        self, query: Query, items: list[RecommendedItem], milliseconds: StageMilliseconds
    ) -> RecommendResponse:
        return RecommendResponse(
            items=items,
            bundle=self.content_hash,
            beams=query.beams,
            history_items_read=min(len(query.history), self.bundle.model.config.max_history_items),
            history_items_unknown=query.num_unknown or None,
            milliseconds=milliseconds.model_copy() if query.timings else None,
        )


def _items(catalogue: Catalogue, ranking: Ranking, queries: Sequence[Query]) -> Iterator[list[RecommendedItem]]:
    """The first k of each query; fewer where fewer were found."""
    ids, titles = catalogue.ids, catalogue.titles
    codes_BKL = catalogue.table.codes_NL[ranking.items_BK].tolist()  # of the last item where there is none
    rows = zip(queries, ranking.items_BK.tolist(), ranking.scores_BK.tolist(), codes_BKL, strict=True)
    for query, items_K, scores_K, codes_KL in rows:
        places = list(zip(items_K, scores_K, codes_KL, strict=True))[: query.k]
        yield [
            RecommendedItem(ids[item], score, codes_L, titles[item])
            for item, score, codes_L in places
            if item != NO_ITEM
        ]


def _as_text(value: str | int | bool) -> str:
    """As the column's value reads when it is written as text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(item_id: ItemId) -> str:
    text = repr(item_id)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[:_MAX_SHOWN_CHARACTERS] + "…"
