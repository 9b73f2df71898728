"""The FastAPI application: routes around one engine, inference in one thread, every error JSON with a reason."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from onerec.bundle import Bundle
from onerec.errors import OneRecError, OverloadedError, ServingError, UnknownUserError
from onerec.serving.access import AccessDeniedError, Keys, check_access, check_admin_access
from onerec.serving.batching import Batcher
from onerec.serving.body_limit import BodyLimit
from onerec.serving.engine import Engine, Query
from onerec.serving.histories import HistoryStore, StoredEvent
from onerec.serving.metrics import CONTENT_TYPE, Metrics
from onerec.serving.schema import (
    BundleRequest,
    ErrorResponse,
    EventsRequest,
    EventsResponse,
    Health,
    Readiness,
    RecommendBatchRequest,
    RecommendBatchResponse,
    RecommendRequest,
    RecommendResponse,
)

_MAX_NAMED_PROBLEMS = 5
_RETRY_AFTER_SECONDS = 1
_NO_KEYS = Keys()
_REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "refused: why"},
    "503": {"model": ErrorResponse, "description": "overloaded: try again after the seconds in Retry-After"},
}


class Service:
    """What the routes work with: histories, the line before the model, and the counters."""

    def __init__(self, engine: Engine, histories: HistoryStore) -> None:
        self.engine, self.histories, self.metrics = engine, histories, Metrics()
        self._batcher: Batcher | None = None
        self._swapping = asyncio.Lock()

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
        self.histories.close()

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Look up the history and stand in line.

        Raises:
            UnknownUserError, ServingError, OverloadedError: the request is refused.
        """
        assert self._batcher is not None
        stored: Sequence[str] = ()
        if request.user_id is not None:
            limit = self.engine.limits.max_history_items
            stored = await asyncio.to_thread(self.histories.newest, str(request.user_id), limit)
            if not stored:
                raise UnknownUserError(
                    f"user_id: nothing is stored of {request.user_id!r}. Post its events, or send a history."
                )
        return await self._batcher.submit(self.engine.query(request, stored))

    async def recommend_batch(self, batch: RecommendBatchRequest) -> RecommendBatchResponse:
        """All requests of a batch, which the line may answer together."""
        most = self.engine.limits.max_batch_requests
        if len(batch.requests) > most:
            raise ServingError(f"requests: found {len(batch.requests)}, expected at most {most}.")
        return RecommendBatchResponse(responses=await asyncio.gather(*map(self.recommend, batch.requests)))

    async def store(self, request: EventsRequest) -> EventsResponse:
        """Append events to histories, all or none."""
        most = self.engine.limits.max_events
        if len(request.events) > most:
            raise ServingError(f"events: found {len(request.events)}, expected at most {most}.")
        self.engine.indices("events", [event.item_id for event in request.events])
        now = time.time()
        events = [
            StoredEvent(str(event.user_id), str(event.item_id), now if event.timestamp is None else event.timestamp)
            for event in request.events
        ]
        await asyncio.to_thread(self.histories.append, events)
        self.metrics.events.inc(len(events))
        return EventsResponse(stored=len(events))

    async def swap_bundle(self, request: BundleRequest) -> Readiness:
        """Load another bundle beside the one that serves, and serve it from then on.

        Requests that are in line are still answered by the bundle that checked them.

        Raises:
            ServingError: the folder is no whole bundle, or another is being loaded; the old one serves on.
        """
        if self._swapping.locked():
            raise ServingError("bundle: another one is being loaded. Wait for it.")
        async with self._swapping:
            try:
                self.engine = await asyncio.to_thread(self._load_engine, Path(request.folder))
            except OneRecError as error:
                raise ServingError(f"bundle: {error} The old one serves on.") from error
        return self.engine.readiness()

    def _load_engine(self, folder: Path) -> Engine:
        """Takes seconds for a large catalogue, so it belongs in a thread of its own."""
        return Engine(Bundle.load(folder), self.engine.limits)

    def _answer(self, queries: Sequence[Query]) -> list[RecommendResponse]:
        self.metrics.batch_requests.observe(len(queries))
        return queries[0].engine.answer(queries)


def create_app(engine: Engine, histories: HistoryStore, keys: Keys = _NO_KEYS) -> FastAPI:
    """The endpoint of one bundle; with keys, the routes under /v1 want one of them."""
    service = Service(engine, histories)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    # The pages of documentation that FastAPI brings load their scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="OneRec", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_body_bytes=engine.limits.max_body_bytes)
    app.middleware("http")(_count_responses(service.metrics))
    for error, handler in _HANDLERS.items():
        app.add_exception_handler(error, handler)
    _add_routes(app, service, keys)
    return app


def _add_routes(app: FastAPI, service: Service, keys: Keys) -> None:
    def needs_key(request: Request) -> None:
        check_access(request, keys.api)

    def needs_admin_key(request: Request) -> None:
        check_admin_access(request, keys.admin)

    v1: dict[str, Any] = {"responses": _REFUSALS, "dependencies": [Depends(needs_key)]}

    @app.post("/v1/recommend", response_model_exclude_none=True, **v1)
    async def recommend(request: RecommendRequest) -> RecommendResponse:
        """Recommend the items of highest probability after a history."""
        return await service.recommend(request)

    @app.post("/v1/recommend/batch", response_model_exclude_none=True, **v1)
    async def recommend_batch(request: RecommendBatchRequest) -> RecommendBatchResponse:
        """Answer several requests; where one is refused, all are."""
        return await service.recommend_batch(request)

    @app.post("/v1/events", **v1)
    async def store_events(request: EventsRequest) -> EventsResponse:
        """Append events to users' histories, all or none."""
        return await service.store(request)

    @app.post("/v1/admin/bundle", responses=_REFUSALS, dependencies=[Depends(needs_admin_key)])
    async def swap_bundle(request: BundleRequest) -> Readiness:
        """Serve another bundle from now on, without a pause; wants the admin key."""
        return await service.swap_bundle(request)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @app.get("/readyz")
    async def readyz() -> Readiness:
        """Whether the bundle is loaded, and which."""
        return service.engine.readiness()

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE)


def _count_responses(metrics: Metrics) -> Callable[..., Awaitable[Response]]:
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "unknown")
        metrics.responses.labels(route, response.status_code).inc()
        metrics.latency_s.labels(route).observe(time.perf_counter() - start)
        return response

    return count


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    return _error(400, str(error))


async def _refuse_unknown(_: Request, error: Exception) -> JSONResponse:
    return _error(404, str(error))


async def _refuse_overload(_: Request, error: Exception) -> JSONResponse:
    return _error(503, str(error), {"retry-after": str(_RETRY_AFTER_SECONDS)})


async def _refuse_access(_: Request, __: Exception) -> JSONResponse:
    return _error(401, "the request carries no key of this server", {"www-authenticate": "Bearer"})


async def _refuse_malformed(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems: Sequence[Any] = error.errors()
    reasons = dict.fromkeys(_explain(problem) for problem in problems)
    more = f"; and {len(reasons) - _MAX_NAMED_PROBLEMS} more" if len(reasons) > _MAX_NAMED_PROBLEMS else ""
    return _error(400, "; ".join(list(reasons)[:_MAX_NAMED_PROBLEMS]) + more)


async def _answer_http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail), error.headers)


async def _answer_failure(_: Request, __: Exception) -> JSONResponse:
    return _error(500, "the server failed on this request; its log has the details")


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
    UnknownUserError: _refuse_unknown,
    OverloadedError: _refuse_overload,
    ServingError: _refuse,
    AccessDeniedError: _refuse_access,
    RequestValidationError: _refuse_malformed,
    HTTPException: _answer_http_error,
    Exception: _answer_failure,
}


def _explain(problem: Any) -> str:
    if problem["type"] == "json_invalid":
        return f"body: not valid JSON at character {problem['loc'][-1]} ({problem['ctx']['error']})"
    location = ".".join(str(part) for part in problem["loc"])
    return f"{location}: {problem['msg']}"


def _error(status: int, reason: str, headers: Any = None) -> JSONResponse:
    return JSONResponse(ErrorResponse(reason=reason).model_dump(), status, headers=headers)
