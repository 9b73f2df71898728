"""Bodies beyond the limit are refused before they are held in memory."""

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onerec.serving.schema import ErrorResponse

_MAX_DISCARDED_BYTES = 64 * 2**20


class BodyLimit:
    """ASGI middleware that answers 413 to a body of more than `max_body_bytes`, declared or not."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body read, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(receive)
        except ClientDisconnect:
            return  # nobody is left to answer
        if body is None:
            error = ErrorResponse(reason=f"body: expected at most {self.max_body_bytes} bytes, found more.")
            # Some of the body may be unread still, so the connection cannot carry another request.
            await JSONResponse(error.model_dump(), 413, headers={"connection": "close"})(scope, receive, send)
        else:
            await self.app(scope, replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None where it is too long.

        What is too long is read on for a while and thrown away: a connection closed on a client that still writes is
        reset, and the answer lost with it.
        """
        body, num_bytes, more = bytearray(), 0, True
        while more and num_bytes <= self.max_body_bytes + _MAX_DISCARDED_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk, more = message.get("body", b""), message.get("more_body", False)
            num_bytes += len(chunk)
            if num_bytes <= self.max_body_bytes:
                body += chunk
        return bytes(body) if num_bytes <= self.max_body_bytes else None


def replay(body: bytes, receive: Receive) -> Receive:
    """Receives a body that has been read, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
