"""What the routes work with: the engine, the stored state, the line before the model, and the counters."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from onerec.bundle import Bundle
from onerec.errors import OneRecError, OverloadedError, ServingError, UnknownUserError
from onerec.serving.batching import Batcher
from onerec.serving.changes import ChangeStore, ItemChange, SupersededError
from onerec.serving.engine import Engine, Query
from onerec.serving.follower import Follower
from onerec.serving.histories import HistoryStore, StoredEvent
from onerec.serving.known import known_events
from onerec.serving.metrics import Metrics
from onerec.serving.schema import (
    BundleRequest,
    CatalogueItem,
    CatalogueItems,
    ChangedItem,
    EventsRequest,
    EventsResponse,
    ItemRequest,
    Readiness,
    RecommendBatchRequest,
    RecommendBatchResponse,
    RecommendRequest,
    RecommendResponse,
    UserHistory,
    Users,
)
from onerec.serving.traces import Traces

_Kind = Literal["added", "restored", "updated", "removed"]
_Result = TypeVar("_Result")


class UnknownItemError(ServingError):
    """An item that the catalogue does not have."""


class Service:
    """Answers each route; the catalogue is what the bundle has and what is stored of its changes.

    Where the store is shared, every route that reads the catalogue looks for the changes of other servers first, so
    that a change which one of them has acknowledged holds in all of them for every request sent from then on.

    Raises:
        ServingError: what is stored does not go with the bundle.
    """

    def __init__(
        self, engine: Engine, histories: HistoryStore, changes: ChangeStore, traces: Traces, metrics: Metrics
    ) -> None:
        self.engine, self.histories, self.changes, self.metrics = engine, histories, changes, metrics
        self._traces = traces
        self._batcher: Batcher | None = None
        # One thread, so that changes of the catalogue follow each other, a swap of the bundle among them.
        self._changer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="catalogue")
        self._num_changing = 0
        self._swapping = asyncio.Lock()
        self._follower = Follower(self._look)
        self._version = self._adopt_changes(engine)  # of the stored changes that the catalogue has

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests for as long as this lasts."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference") as executor:
            self._batcher = Batcher(self._answer, executor, self.engine.limits)
            self.metrics.waiting.set_function(lambda: self._batcher.num_waiting if self._batcher else 0)
            task = asyncio.create_task(self._batcher.run())
            yield
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._changer.shutdown()
        self.histories.close()
        self.changes.close()
        self._traces.close()

    async def recommend(self, request: RecommendRequest, lone: bool = True) -> RecommendResponse:
        """Look up the history and stand in line.

        An answer with an item that was taken out meanwhile is thrown away and the search done again: once a removal is
        acknowledged, the item is in no answer.

        Args:
            lone: it came by itself and may wait for company.

        Raises:
            UnknownUserError, ServingError, OverloadedError: the request is refused.
        """
        assert self._batcher is not None
        start = time.perf_counter()
        stored: Sequence[StoredEvent] = ()
        if request.user_id is not None:
            limit = self.engine.limits.max_history_items
            stored = await asyncio.to_thread(self.histories.newest, str(request.user_id), limit)
            if not stored:
                raise UnknownUserError(
                    f"user_id: nothing is stored of {request.user_id!r}. Post its events, or send a history."
                )
        await self._follow()
        looked_up = time.perf_counter()
        note = self._traces.note_stages()
        if note is not None and request.user_id is not None:
            note({"history": (start, looked_up)})
        while True:
            catalogue = self.engine.catalogue
            response = await self._batcher.submit(self.engine.query(request, stored, note), lone)
            if self.engine.catalogue is catalogue or not self._is_outdated(response):
                break
        if (milliseconds := response.milliseconds) is not None:
            milliseconds.history = 1e3 * (looked_up - start)
            total = 1e3 * (time.perf_counter() - looked_up)
            milliseconds.wait = max(0.0, total - milliseconds.encode - milliseconds.search)
        return response

    async def recommend_batch(self, batch: RecommendBatchRequest) -> RecommendBatchResponse:
        """All requests of a batch, which the line may answer together."""
        most = self.engine.limits.max_batch_requests
        if len(batch.requests) > most:
            raise ServingError(f"requests: found {len(batch.requests)}, expected at most {most}.")
        catalogue = self.engine.catalogue
        # Those whose histories are read stand in line one after the other, as single requests do.
        lone = len(batch.requests) == 1 or any(request.user_id is not None for request in batch.requests)
        responses = list(await asyncio.gather(*(self.recommend(request, lone) for request in batch.requests)))
        while self.engine.catalogue is not catalogue:
            catalogue = self.engine.catalogue
            for place, request in enumerate(batch.requests):
                if self._is_outdated(responses[place]):
                    responses[place] = await self.recommend(request)
        return RecommendBatchResponse(responses=responses)

    async def store(self, request: EventsRequest) -> EventsResponse:
        """Append events to histories, all or none."""
        most = self.engine.limits.max_events
        if len(request.events) > most:
            raise ServingError(f"events: found {len(request.events)}, expected at most {most}.")
        await self._follow()
        self.engine.indices("events", [event.item_id for event in request.events])
        now = time.time()
        events = [
            StoredEvent(str(event.user_id), str(event.item_id), now if event.timestamp is None else event.timestamp)
            for event in request.events
        ]
        await asyncio.to_thread(self.histories.append, events)
        self.metrics.events.inc(len(events))
        return EventsResponse(stored=len(events))

    async def put_item(self, item_id: str, request: ItemRequest) -> ChangedItem:
        """Add an item, bring one back, or change what is known of it; stored when this returns.

        Raises:
            ServingError: the item cannot be placed or does not fit the catalogue.
            OverloadedError: it cannot be stored now.
        """
        changed = await self._in_turn(self._put, item_id, request)
        self.metrics.catalogue_changes.labels(changed.change).inc()
        return changed

    async def remove_item(self, item_id: str) -> ChangedItem:
        """Take an item out, so that no answer has it from now on; stored when this returns.

        Raises:
            UnknownItemError: it was never here.
            ServingError: it is the last one.
            OverloadedError: the change cannot be stored now.
        """
        changed = await self._in_turn(self._remove, item_id)
        self.metrics.catalogue_changes.labels(changed.change).inc()
        return changed

    async def item(self, item_id: str) -> CatalogueItem:
        """One item.

        Raises:
            UnknownItemError: it was never here.
        """
        await self._follow()
        return self._view(item_id)

    async def search_items(self, text: str, limit: int) -> CatalogueItems:
        """The item whose id is the text, then those whose title holds it."""
        await self._follow()
        catalogue = self.engine.catalogue
        found = await asyncio.to_thread(catalogue.search, text, limit)
        return CatalogueItems(items=[catalogue.view(index) for index in found])

    async def users(self, limit: int) -> Users:
        """Users with stored events."""
        return Users(users=await asyncio.to_thread(self.histories.users, limit))

    async def history(self, user_id: str, limit: int) -> UserHistory:
        """The newest items of a user, those passed over that the catalogue does not know; none is no error."""
        stored = await asyncio.to_thread(self.histories.newest, user_id, limit)
        await self._follow()
        catalogue = self.engine.catalogue
        items = known_events(stored, catalogue).items.tolist()
        return UserHistory(user_id=user_id, items=[catalogue.view(index) for index in items])

    async def readiness(self) -> Readiness:
        """What is being served.

        Raises:
            OverloadedError: what is stored cannot be reached, or nothing more can be stored.
        """
        for store in (self.histories, self.changes):
            await asyncio.to_thread(store.check)
        await self._follow()
        return self.engine.readiness()

    async def swap_bundle(self, request: BundleRequest) -> Readiness:
        """Load another bundle beside the one that serves, and serve it from then on.

        Requests that are in line are still answered by the bundle that checked them. Items that joined the old one are
        placed anew beside the new one's own.

        Raises:
            ServingError: the folder is no whole bundle, another is being loaded, or several processes share this one;
                the old one serves on.
        """
        if not self.engine.catalogue.recommender.is_whole:
            raise ServingError("bundle: several processes share the one that serves. Start them anew with another.")
        if self._swapping.locked():
            raise ServingError("bundle: another one is being loaded. Wait for it.")
        async with self._swapping:
            try:
                engine = await asyncio.to_thread(self._load_engine, Path(request.folder))
                await self._in_turn(self._serve, engine)
            except OneRecError as error:
                raise ServingError(f"bundle: {error} The old one serves on.") from error
        return self.engine.readiness()

    def _load_engine(self, folder: Path) -> Engine:
        """Takes seconds for a large catalogue, so it belongs in a thread of its own."""
        return Engine(Bundle.load(folder), self.engine.limits)

    def _is_outdated(self, response: RecommendResponse) -> bool:
        return any(self.engine.catalogue.is_removed(str(item.id)) for item in response.items)

    async def _in_turn(self, change: Callable[..., _Result], *arguments: Any) -> _Result:
        if self._num_changing >= self.engine.limits.max_waiting:
            raise OverloadedError(f"{self._num_changing} changes are waiting already, as many as may. Try again later.")
        self._num_changing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._changer, change, *arguments)
        finally:
            self._num_changing -= 1

    def _serve(self, engine: Engine) -> None:
        version = self._adopt_changes(engine)
        self.engine = engine
        self._version = version  # in this order: who finds it the newest answers at once

    async def _follow(self) -> None:
        """Take up what other servers had changed when this was called."""
        if self.changes.shared:
            await self._follower.caught_up()

    async def _look(self) -> None:
        """Take up what other servers have changed; while the store is away, go on with what is known.

        Raises:
            OverloadedError: the bundle cannot hold what they changed, so that answers would be wrong.
        """
        try:
            if await asyncio.to_thread(self.changes.version) != self._version:
                await asyncio.get_running_loop().run_in_executor(self._changer, self._catch_up)
        except OverloadedError:
            self.metrics.looks_failed.inc()
        except ServingError as error:
            raise OverloadedError(f"catalogue: changes of another server cannot be taken up ({error}).") from error

    def _catch_up(self) -> None:
        if self.changes.version() != self._version:
            self._version = self._adopt_changes(self.engine, self._version)

    def _adopt_changes(self, engine: Engine, since: int | None = None) -> int:
        """Give the engine what is stored, beyond the version `since` where it has the rest; the version it has then."""
        while True:
            version = self.changes.version()
            stored = self.changes.read() if since is None else self.changes.newer(since)
            catalogue, placed_anew = engine.catalogue.adopt(stored)
            with suppress(SupersededError):
                if placed_anew:
                    version = self.changes.write(placed_anew, version)
                engine.catalogue = catalogue
                return version

    def _put(self, item_id: str, request: ItemRequest) -> ChangedItem:
        def make() -> tuple[ItemChange, _Kind]:
            catalogue, stored = self.engine.catalogue, self.changes.find(item_id) or ItemChange(item_id)
            catalogue.require_fields(request.fields)
            kind: _Kind = "updated" if catalogue.find(item_id) is not None else "added"
            if catalogue.is_removed(item_id):
                kind = "restored"
            vector = stored.vector if request.vector is None else tuple(request.vector)
            change = replace(stored, fields={**stored.fields, **request.fields}, vector=vector, removed=False)
            return catalogue.place(change), kind

        return self._publish(make)

    def _remove(self, item_id: str) -> ChangedItem:
        def make() -> tuple[ItemChange, _Kind]:
            self._view(item_id)
            stored = self.changes.find(item_id) or ItemChange(item_id)
            return replace(stored, removed=True), "removed"

        return self._publish(make)

    def _publish(self, make: Callable[[], tuple[ItemChange, _Kind]]) -> ChangedItem:
        """Make the next catalogue, store what makes it so, and only then answer from it.

        Where another server changes it meanwhile, all begins anew: no two items are given one place.
        """
        while True:
            self._catch_up()
            change, kind = make()
            catalogue = self.engine.catalogue.change([change])
            with suppress(SupersededError):
                version = self.changes.write([change], self._version)
                break
        self.engine.catalogue = catalogue
        self._version = version
        index = catalogue.table.index_of(change.item_id)
        return ChangedItem(change=kind, **catalogue.view(index).model_dump())

    def _view(self, item_id: str) -> CatalogueItem:
        catalogue = self.engine.catalogue
        index = catalogue.find(item_id)
        if index is None:
            raise UnknownItemError(f"item {item_id!r}: not in the catalogue. Send an id of the catalogue.")
        return catalogue.view(index)

    def _answer(self, queries: Sequence[Query]) -> list[RecommendResponse]:
        self.metrics.batch_requests.observe(len(queries))
        engine = queries[0].engine
        num_found = engine.contexts.num_found
        answers = engine.answer(queries)
        self.metrics.contexts_found.inc(engine.contexts.num_found - num_found)
        return answers
