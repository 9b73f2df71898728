"""The way of recommendations around FastAPI's own: the same question, answer and refusals, in less time.

FastAPI reads JSON into Python's objects, validates these, solves the route's dependencies and validates the answer,
which may take as long as a small model does. A well-formed question on one of these routes is validated here straight
from its bytes and answered straight to bytes, by the same models. Whatever else comes, a malformed one among it, goes
on to FastAPI, which says what is wrong with it; its routes stay what the OpenAPI document tells.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from onerec.serving.body_limit import replay

Handlers = Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]
_JSON, _KIND = "application/json", b"content-type"


@dataclass(frozen=True)
class Way:
    """A route that is answered here.

    Args:
        route: what FastAPI calls it; requests that go by are told to be of it.
        question: what a body is read as.
        answer: answers one, and raises what the handlers turn into refusals.
        kind: what an answer is written as.
    """

    route: Any
    question: type[BaseModel]
    answer: Callable[[Request, Any], Awaitable[Any]]
    kind: type[Any]


class Direct:
    """ASGI middleware below the one that limits bodies, which hands them on whole."""

    def __init__(self, app: ASGIApp, ways: Sequence[Way], handlers: Handlers) -> None:
        self.app, self._handlers, self._kinds = app, handlers, tuple(handlers)
        self._ways = {way.route.path: way for way in ways}
        self._writers = {way.route.path: TypeAdapter(way.kind).serializer for way in ways}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        way = self._ways.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if way is None or not _is_json(scope):
            await self.app(scope, receive, send)
            return
        body = (await receive())["body"]
        asked = _validate(way.question, body)
        if asked is None:
            await self.app(scope, replay(body, receive), send)
            return
        scope["route"] = way.route
        response = await self._respond(way, Request(scope), asked)
        await response(scope, receive, send)

    async def _respond(self, way: Way, request: Request, asked: BaseModel) -> Response:
        try:
            answer = await way.answer(request, asked)
        except self._kinds as error:
            return await next(self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers)(
                request, error
            )
        written = self._writers[way.route.path].to_json(answer, exclude_none=True)
        return Response(written, media_type=_JSON)


def _is_json(scope: Scope) -> bool:
    """Whether a request calls its body JSON; the first of several headers counts, as for FastAPI."""
    kind: bytes = next((value for name, value in scope["headers"] if name == _KIND), b"")
    return kind.partition(b";")[0] == _JSON.encode()


def _validate(question: type[BaseModel], body: bytes) -> BaseModel | None:
    """The question, where it is well formed."""
    try:
        return question.model_validate_json(body)
    except ValidationError:
        return None
