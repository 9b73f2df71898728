"""Keys that requests must carry."""

import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import Request

from onerec.errors import ConfigError

KEYS_VARIABLE, ADMIN_VARIABLE = "ONEREC_API_KEYS", "ONEREC_ADMIN_KEY"
_MIN_CHARACTERS = 16


class AccessDeniedError(Exception):
    """A request without one of the server's keys."""


@dataclass(frozen=True)
class Keys:
    """Who may do what: without API keys everybody may ask, without an admin key nobody may change what is served.

    No log that writes the object shows a key.
    """

    api: tuple[str, ...] = field(default=(), repr=False)
    admin: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def from_environment(cls) -> "Keys":
        """The keys in ONEREC_API_KEYS, commas between them, and the one in ONEREC_ADMIN_KEY.

        Raises:
            ConfigError: a key that is too short to keep anybody out.
        """
        return cls(_read(KEYS_VARIABLE), _read(ADMIN_VARIABLE))


def check_access(request: Request, keys: Sequence[str]) -> str:
    """The key that a request carries; empty where there are none, and everybody may ask.

    Raises:
        AccessDeniedError: no key, or a wrong one.
    """
    if not keys:
        return ""
    key = _carried(request, keys)
    if key is None:
        raise AccessDeniedError
    return key


def check_admin_access(request: Request, keys: Sequence[str]) -> None:
    """Refuse a request without the admin key, and every one where there is none.

    Raises:
        AccessDeniedError: no key, or a wrong one.
    """
    if _carried(request, keys) is None:
        raise AccessDeniedError


def _carried(request: Request, keys: Sequence[str]) -> str | None:
    """Which of the keys the request has; the time it takes tells nothing of them."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    matches = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        return None
    return keys[matches.index(True)]


def _read(variable: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in os.environ.get(variable, "").split(",") if key.strip())
    if short := sum(len(key) < _MIN_CHARACTERS for key in keys):
        raise ConfigError(
            f"{variable}: {short} of {len(keys)} keys are shorter than {_MIN_CHARACTERS} characters. Use longer ones."
        )
    return keys
