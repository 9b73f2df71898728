"""The way of a recommendation around FastAPI's own: the same question, answer and refusals, in less time.

FastAPI reads JSON into Python's objects, validates these, solves the route's dependencies and validates the answer,
which may take as long as a small model does. A well-formed `POST /v1/recommend` is validated here straight from its
bytes and answered straight to bytes, by the same models. Whatever else comes, a malformed one among it, goes on to
FastAPI, which says what is wrong with it; its routes stay what the OpenAPI document tells.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request, Response
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from onerec.serving.body_limit import replay
from onerec.serving.schema import RecommendRequest, RecommendResponse

Handlers = Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]
_JSON = "application/json"


class Direct:
    """ASGI middleware below the one that limits bodies, which hands them on whole.

    Args:
        route: what FastAPI calls the route; requests that go by are told to be of it.
        answer: answers a request, and raises what `handlers` turn into refusals.
    """

    def __init__(
        self,
        app: ASGIApp,
        route: Any,
        answer: Callable[[Request, RecommendRequest], Awaitable[RecommendResponse]],
        handlers: Handlers,
    ) -> None:
        self.app, self._route, self._answer, self._handlers = app, route, answer, handlers
        self._kinds = tuple(handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or scope["path"] != self._route.path or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        request, body = Request(scope), (await receive())["body"]
        asked = _validate(request, body)
        if asked is None:
            await self.app(scope, replay(body, receive), send)
            return
        scope["route"] = self._route
        response = await self._respond(request, asked)
        await response(scope, receive, send)

    async def _respond(self, request: Request, asked: RecommendRequest) -> Response:
        try:
            answer = await self._answer(request, asked)
        except self._kinds as error:
            return await next(self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers)(
                request, error
            )
        return Response(RecommendResponse.__pydantic_serializer__.to_json(answer, exclude_none=True), media_type=_JSON)


def _validate(request: Request, body: bytes) -> RecommendRequest | None:
    """The question, where the body is JSON by its header and well formed."""
    if request.headers.get("content-type", "").partition(";")[0] != _JSON:
        return None
    try:
        return RecommendRequest.model_validate_json(body)
    except ValidationError:
        return None
