"""API keys: where the server has some, a request must carry one."""

import hmac
import os
from collections.abc import Sequence

from fastapi import Request

from onerec.errors import ConfigError

KEYS_VARIABLE = "ONEREC_API_KEYS"
_MIN_CHARACTERS = 16


class AccessDeniedError(Exception):
    """A request without one of the server's keys."""


def keys_from_environment() -> tuple[str, ...]:
    """The keys in the environment variable ONEREC_API_KEYS, separated by commas; none leaves the server open.

    Raises:
        ConfigError: a key that is too short to keep anybody out.
    """
    keys = tuple(key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip())
    if short := sum(len(key) < _MIN_CHARACTERS for key in keys):
        raise ConfigError(
            f"{KEYS_VARIABLE}: {short} of {len(keys)} keys are shorter than {_MIN_CHARACTERS} characters. "
            "Use longer ones."
        )
    return keys


def check_access(request: Request, keys: Sequence[str]) -> None:
    """Refuse a request whose `Authorization: Bearer` is none of the keys; the time it takes tells nothing of them.

    Raises:
        AccessDeniedError: no key, or a wrong one.
    """
    if not keys:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    matches = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        raise AccessDeniedError
