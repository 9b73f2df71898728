"""What the server logs by: text, or one JSON object a line for those who collect logs by machine, without keys."""

import asyncio
import json
import logging
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, TextIO

from onerec.serving.observe import REQUEST_ID
from onerec.serving.server import LogFormat

_HANDLER = "onerec.serving.logs.TurnHandler"
_REQUEST_LOGGERS = ("onerec.serving.observe", "uvicorn.access")


class JsonFormatter(logging.Formatter):
    """A record with its request's id, and the fields that it carries."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TurnHandler(logging.StreamHandler[TextIO]):
    """Writes the lines that requests leave in one turn of the event loop together, at its end; all others at once.

    A batch is answered within one turn, and to wake up whoever reads the log for every line of it would take as long
    as the rest of HTTP does. What else is logged, such as the end of the server, may have no turn after it.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._kept: list[tuple[logging.LogRecord, str]] = []
        self._due: asyncio.AbstractEventLoop | None = None  # whose turn ends with a flush

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a request's line until the turn ends; write any other, behind what is kept."""
        try:
            self._kept.append((record, self.format(record) + self.terminator))
        except Exception:
            self.handleError(record)
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
        else:
            if record.name not in _REQUEST_LOGGERS:
                self.flush()
            elif self._due is not loop:
                self._due = loop
                loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is kept."""
        with self.lock or nullcontext():
            self._due = None
            kept, self._kept = self._kept, []
            if not kept:
                return
            try:
                self.stream.write("".join(line for _, line in kept))
                self.stream.flush()
            except Exception:  # who read it has gone; the server goes on, as with any other handler
                self.handleError(kept[-1][0])


def log_config(log_format: LogFormat) -> dict[str, Any]:
    """What uvicorn is to log by.

    In JSON every request has a line of ours, with its id, in the place of uvicorn's. In text it keeps that one, less
    the colours, which take longer than all the rest of it.
    """
    if log_format == "text":
        from uvicorn.config import LOGGING_CONFIG

        formatters = {**LOGGING_CONFIG["formatters"], "access": {"format": "%(levelname)s:     %(message)s"}}
        handlers = {name: {**handler, "class": _HANDLER} for name, handler in LOGGING_CONFIG["handlers"].items()}
        return {**LOGGING_CONFIG, "formatters": formatters, "handlers": handlers}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"stderr": {"class": _HANDLER, "formatter": "json"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "uvicorn": {"level": "INFO"},
            "uvicorn.access": {"level": "WARNING"},
            "onerec": {"level": "INFO"},
        },
    }
