"""Around every request: an id that its answer and the log carry, the counters, a trace, and a reasoned 500.

The id is the caller's own `X-Request-Id` where that is a short printable word, and a random one otherwise.
"""

import logging
import os
import re
import time
from contextvars import ContextVar

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onerec.serving.metrics import Metrics
from onerec.serving.schema import ErrorResponse
from onerec.serving.traces import Traces

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
_HEADER = b"x-request-id"
_FIT_ID = re.compile(rb"[!-~]{1,128}")
_NUM_ID_BYTES = 16
_NOBODY = "none"  # the status of a request whose client had gone before it was read
_FAILURE = "the server failed on this request; its log has the details"

logger = logging.getLogger(__name__)


class Observe:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces) -> None:
        self.app, self._metrics, self._traces = app, metrics, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and tell of its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _HEADER), b"")
        request_id = given if _FIT_ID.fullmatch(given) else os.urandom(_NUM_ID_BYTES).hex().encode()
        REQUEST_ID.set(request_id.decode())
        answer = _Answer(send, request_id)
        begin_s = time.perf_counter()
        with self._traces.request(scope) as span:
            try:
                await self.app(scope, receive, answer.send)
            except Exception:
                logger.exception("the request failed")
                if answer.status is not None:  # half of it is sent: the connection must break off
                    raise
                await JSONResponse(ErrorResponse(reason=_FAILURE).model_dump(), 500)(scope, receive, answer.send)
            finally:
                route = getattr(scope.get("route"), "path", "unknown")
                self._tell(scope, route, answer.status, time.perf_counter() - begin_s)
                span.end(route, answer.status)

    def _tell(self, scope: Scope, route: str, status: int | None, seconds: float) -> None:
        self._metrics.answered(route, str(status or _NOBODY), seconds)
        if not logger.isEnabledFor(logging.INFO):
            return
        fields = {"method": scope["method"], "route": route, "status": status, "ms": round(1e3 * seconds, 2)}
        logger.info("%s %s", scope["method"], scope["path"], extra={"fields": fields})


class _Answer:
    """What goes back: with the id on it, its status noted."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send, self._request_id = send, request_id
        self.status: int | None = None  # None: nobody was left to answer

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], (_HEADER, self._request_id)]}
        await self._send(message)
