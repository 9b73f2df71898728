"""The log as one JSON object a line, for those who collect logs by machine; keys never stand in it."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from onerec.serving.observe import REQUEST_ID
from onerec.serving.server import LogFormat


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


def log_config(log_format: LogFormat) -> dict[str, Any]:
    """What uvicorn is to log by.

    In JSON every request has a line of ours, with its id, in the place of uvicorn's. In text it keeps that one, less
    the colours, which take longer than all the rest of it.
    """
    if log_format == "text":
        from uvicorn.config import LOGGING_CONFIG

        formatters = {**LOGGING_CONFIG["formatters"], "access": {"format": "%(levelname)s:     %(message)s"}}
        return {**LOGGING_CONFIG, "formatters": formatters}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "uvicorn": {"level": "INFO"},
            "uvicorn.access": {"level": "WARNING"},
            "onerec": {"level": "INFO"},
        },
    }
