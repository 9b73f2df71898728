"""The FastAPI application: routes around one engine, inference in one thread, every error JSON with a reason."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from onerec.errors import ServingError
from onerec.serving.body_limit import BodyLimit
from onerec.serving.engine import Engine
from onerec.serving.schema import ErrorResponse, Health, Readiness, RecommendRequest, RecommendResponse

_MAX_NAMED_PROBLEMS = 5


def create_app(engine: Engine) -> FastAPI:
    """The endpoint of one bundle."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference") as executor:
            app.state.executor = executor
            yield

    # The pages of documentation that FastAPI brings load their scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="OneRec", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_body_bytes=engine.limits.max_body_bytes)
    app.add_exception_handler(ServingError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_malformed)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_failure)

    refusals: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorResponse, "description": "refused: why"}}

    @app.post("/v1/recommend", responses=refusals, response_model_exclude_none=True)
    async def recommend(request: RecommendRequest) -> RecommendResponse:
        """Recommend the items of highest probability after a history."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(app.state.executor, engine.recommend, request)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @app.get("/readyz")
    async def readyz() -> Readiness:
        """Whether the bundle is loaded, and which."""
        return engine.readiness()

    return app


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    return _error(400, str(error))


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


def _explain(problem: Any) -> str:
    if problem["type"] == "json_invalid":
        return f"body: not valid JSON at character {problem['loc'][-1]} ({problem['ctx']['error']})"
    location = ".".join(str(part) for part in problem["loc"])
    return f"{location}: {problem['msg']}"


def _error(status: int, reason: str, headers: Any = None) -> JSONResponse:
    return JSONResponse(ErrorResponse(reason=reason).model_dump(), status, headers=headers)
