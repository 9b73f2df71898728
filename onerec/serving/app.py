"""The FastAPI application: routes around one engine, inference in one thread, every error JSON with a reason."""

import os
import pathlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from onerec.errors import OverloadedError, ServingError, UnknownUserError
from onerec.serving.access import AccessDeniedError, Keys, check_access, check_admin_access
from onerec.serving.body_limit import BodyLimit
from onerec.serving.catalogue import CannotPlaceError
from onerec.serving.changes import ChangeStore, SqliteChanges
from onerec.serving.direct import Direct, Way
from onerec.serving.engine import Engine
from onerec.serving.histories import HistoryStore
from onerec.serving.metrics import CONTENT_TYPE, Metrics
from onerec.serving.observe import Observe
from onerec.serving.rates import Rates, TooManyRequestsError
from onerec.serving.schema import (
    BundleRequest,
    CatalogueItem,
    CatalogueItems,
    ChangedItem,
    ErrorResponse,
    EventsRequest,
    EventsResponse,
    Health,
    ItemRequest,
    Readiness,
    RecommendBatchRequest,
    RecommendBatchResponse,
    RecommendRequest,
    RecommendResponse,
    UserHistory,
    Users,
)
from onerec.serving.service import Service, UnknownItemError
from onerec.serving.traces import Traces

_MAX_NAMED_PROBLEMS = 5
_RETRY_AFTER_SECONDS = 1
_NO_KEYS, _NO_TRACES = Keys(), Traces()
_Options = dict[str, Any]
Owe = Callable[[int], None]  # counts more requests against the key of this one
_PAGE = pathlib.Path(__file__).with_name("page.html")
# The page brings its own style and script, and asks nobody but this server.
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_RECOMMEND, _RECOMMEND_BATCH = "/v1/recommend", "/v1/recommend/batch"
# FastAPI's own telemetry: spans are `onerec.serving.traces`', and to ask whether these are wanted costs every request.
_NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}
_MAX_KEY_CHARACTERS = 512
_MAX_LISTED = 200
Key = Annotated[str, Path(min_length=1, max_length=_MAX_KEY_CHARACTERS)]
Limit = Annotated[int, Query(ge=1, le=_MAX_LISTED)]
_REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "refused: why"},
    "503": {"model": ErrorResponse, "description": "overloaded: try again after the seconds in Retry-After"},
}


def create_app(
    engine: Engine,
    histories: HistoryStore,
    keys: Keys = _NO_KEYS,
    changes: ChangeStore | None = None,
    traces: Traces = _NO_TRACES,
    alone: bool = True,
) -> FastAPI:
    """The endpoint of one bundle; with keys, the routes under /v1 want one of them.

    Args:
        changes: what is stored of the catalogue's changes; None for nothing, and changes last as long as the process.
        traces: where requests' spans go.
        alone: no other process answers the same address; where others do, a bundle is refused that would reach this
            one only.

    Raises:
        ServingError: what is stored does not go with the bundle.
    """
    metrics = Metrics(None if alone else f"{socket.gethostname()}:{os.getpid()}")
    service = Service(engine, histories, SqliteChanges() if changes is None else changes, traces, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    # The pages of documentation that FastAPI brings load their scripts from elsewhere; /openapi.json stays.
    app = FastAPI(
        title="OneRec", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, telemetry=_NO_TELEMETRY
    )
    for error, handler in _HANDLERS.items():
        app.add_exception_handler(error, handler)
    rates = Rates(engine.limits.max_requests_per_s)
    _add_routes(app, service, keys, rates, alone)

    # The last one is the outermost.
    app.add_middleware(Direct, ways=_direct_ways(app, service, keys, rates), handlers=_HANDLERS)
    app.add_middleware(BodyLimit, max_body_bytes=engine.limits.max_body_bytes)
    app.add_middleware(Observe, metrics=service.metrics, traces=traces)
    return app


def _direct_ways(app: FastAPI, service: Service, keys: Keys, rates: Rates) -> list[Way]:
    async def recommend(request: Request, asked: RecommendRequest) -> RecommendResponse:
        rates.take(check_access(request, keys.api))
        return await service.recommend(asked)

    async def recommend_batch(request: Request, asked: RecommendBatchRequest) -> RecommendBatchResponse:
        rates.take(key := check_access(request, keys.api))
        rates.owe(key, len(asked.requests) - 1)
        return await service.recommend_batch(asked)

    routes = {getattr(route, "path", None): route for route in app.routes}
    return [
        Way(routes[_RECOMMEND], RecommendRequest, recommend, RecommendResponse),
        Way(routes[_RECOMMEND_BATCH], RecommendBatchRequest, recommend_batch, RecommendBatchResponse),
    ]


def _add_routes(app: FastAPI, service: Service, keys: Keys, rates: Rates, alone: bool) -> None:

    # Coroutines, though they wait for nothing: FastAPI would send plain functions through a thread for each request.
    async def needs_key(request: Request) -> str:
        key = check_access(request, keys.api)
        rates.take(key)
        return key

    async def needs_admin_key(request: Request) -> None:
        check_admin_access(request, keys.admin)

    v1: _Options = {"responses": _REFUSALS, "dependencies": [Depends(needs_key)]}
    admin: _Options = {"responses": _REFUSALS, "dependencies": [Depends(needs_admin_key)]}

    async def account(key: Annotated[str, Depends(needs_key)]) -> Owe:
        return partial(rates.owe, key)

    _add_user_routes(app, service, v1, account)
    _add_item_routes(app, service, v1, admin)
    _add_operation_routes(app, service, admin, alone)


def _add_user_routes(app: FastAPI, service: Service, v1: _Options, account: Callable[..., Awaitable[Owe]]) -> None:
    @app.post(_RECOMMEND, response_model_exclude_none=True, **v1)
    async def recommend(request: RecommendRequest) -> RecommendResponse:
        """Recommend the items of highest probability after a history."""
        return await service.recommend(request)

    @app.post(_RECOMMEND_BATCH, response_model_exclude_none=True, **v1)
    async def recommend_batch(
        request: RecommendBatchRequest, owe: Annotated[Owe, Depends(account)]
    ) -> RecommendBatchResponse:
        """Answer several requests; where one is refused, all are."""
        owe(len(request.requests) - 1)
        return await service.recommend_batch(request)

    @app.post("/v1/events", **v1)
    async def store_events(request: EventsRequest) -> EventsResponse:
        """Append events to users' histories, all or none."""
        return await service.store(request)

    @app.get("/v1/users", **v1)
    async def users(limit: Limit = 50) -> Users:
        """Users with stored events, those of the newest first."""
        return await service.users(limit)

    @app.get("/v1/users/{user_id:path}/history", **v1)
    async def history(user_id: Key, limit: Limit = 50) -> UserHistory:
        """The newest items of one user; none of a user of whom nothing is stored."""
        return await service.history(user_id, limit)


def _add_item_routes(app: FastAPI, service: Service, v1: _Options, admin: _Options) -> None:
    @app.get("/v1/items", **v1)
    async def search_items(text: str = "", limit: Limit = 20) -> CatalogueItems:
        """Items by id, or by a part of their title."""
        return await service.search_items(text, limit)

    @app.get("/v1/items/{item_id:path}", **v1)
    async def item(item_id: Key) -> CatalogueItem:
        """One item."""
        return await service.item(item_id)

    @app.put("/v1/items/{item_id:path}", **admin)
    async def put_item(item_id: Key, request: ItemRequest) -> ChangedItem:
        """Add an item, bring one back, or change its fields; wants the admin key.

        A new item gets its semantic ID from the tokenizer's frozen codebooks; an item that has one keeps it.
        """
        return await service.put_item(item_id, request)

    @app.delete("/v1/items/{item_id:path}", **admin)
    async def remove_item(item_id: Key) -> ChangedItem:
        """Return an item no more; histories may still name it. Wants the admin key."""
        return await service.remove_item(item_id)


def _add_operation_routes(app: FastAPI, service: Service, admin: _Options, alone: bool) -> None:
    @app.post("/v1/admin/bundle", **admin)
    async def swap_bundle(request: BundleRequest) -> Readiness:
        """Serve another bundle from now on, without a pause; wants the admin key."""
        if not alone:
            raise ServingError(
                "bundle: found one replica of several, of which only this one would change. Deploy the bundle to all: "
                "python serve.py ray --bundle FOLDER, with the other options as they were."
            )
        return await service.swap_bundle(request)

    page = _PAGE.read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> HTMLResponse:
        """A page to look at the answers."""
        return HTMLResponse(page, headers={"content-security-policy": _PAGE_POLICY})

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @app.get("/readyz", responses=_REFUSALS)
    async def readyz() -> Readiness:
        """Whether requests are answered from what is stored, and by which bundle."""
        return await service.readiness()

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE)


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    return _error(400, str(error))


async def _refuse_unknown(_: Request, error: Exception) -> JSONResponse:
    return _error(404, str(error))


async def _refuse_conflict(_: Request, error: Exception) -> JSONResponse:
    return _error(409, str(error))


async def _refuse_overload(_: Request, error: Exception) -> JSONResponse:
    return _error(503, str(error), {"retry-after": str(_RETRY_AFTER_SECONDS)})


async def _refuse_haste(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TooManyRequestsError)
    return _error(429, str(error), {"retry-after": str(error.retry_after_s)})


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


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
    UnknownUserError: _refuse_unknown,
    UnknownItemError: _refuse_unknown,
    CannotPlaceError: _refuse_conflict,
    OverloadedError: _refuse_overload,
    ServingError: _refuse,
    AccessDeniedError: _refuse_access,
    TooManyRequestsError: _refuse_haste,
    RequestValidationError: _refuse_malformed,
    HTTPException: _answer_http_error,
}


def _explain(problem: Any) -> str:
    if problem["type"] == "json_invalid":
        return f"body: not valid JSON at character {problem['loc'][-1]} ({problem['ctx']['error']})"
    location = ".".join(str(part) for part in problem["loc"])
    return f"{location}: {problem['msg']}"


def _error(status: int, reason: str, headers: Any = None) -> JSONResponse:
    return JSONResponse(ErrorResponse(reason=reason).model_dump(), status, headers=headers)
