"""What users did, kept beside the server: appended by events, read when a request names a user."""

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onerec.errors import OverloadedError
from onerec.serving.database import open_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    arrival INTEGER PRIMARY KEY, user_id TEXT NOT NULL, timestamp REAL NOT NULL, item_id TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_user ON events (user_id, timestamp, arrival);
"""
_INSERT = "INSERT INTO events (user_id, timestamp, item_id) VALUES (?, ?, ?)"
_USERS = "SELECT user_id FROM events GROUP BY user_id ORDER BY max(arrival) DESC LIMIT ?"
_CHECK = "SELECT count(*) FROM (SELECT 1 FROM events LIMIT 1)"
_NEWEST = "SELECT item_id, timestamp FROM events WHERE user_id = ? ORDER BY timestamp DESC, arrival DESC LIMIT ?"


@dataclass(frozen=True)
class StoredEvent:
    """One item of one user; equal timestamps keep the order of arrival."""

    user_id: str
    item_id: str
    timestamp: float  # Unix seconds


class HistoryStore(Protocol):
    """Users' events, safe to call from several threads."""

    def append(self, events: Iterable[StoredEvent]) -> None:
        """Store all of the events or none; they survive the process from here on."""

    def newest(self, user_id: str, limit: int) -> list[StoredEvent]:
        """The newest events of a user, oldest first; none for a user without events."""

    def users(self, limit: int) -> list[str]:
        """Users with events, those of the newest ones first."""

    def check(self) -> None:
        """Raise OverloadedError where what is stored cannot be reached now."""

    def close(self) -> None:
        """Let go of files and connections."""


class SqliteHistories:
    """Histories in one SQLite file; without a path in memory, gone with the process.

    Raises:
        ServingError: the file cannot be opened, or is no such database.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._connection = open_database(path, _SCHEMA)

    def append(self, events: Iterable[StoredEvent]) -> None:
        """Store all of the events or none.

        Raises:
            OverloadedError: they cannot be written now, such as to a full disk.
        """
        rows = [(event.user_id, event.timestamp, event.item_id) for event in events]
        try:
            with self._lock, self._connection:
                self._connection.executemany(_INSERT, rows)
        except sqlite3.Error as error:
            raise OverloadedError(f"events: could not be stored ({error}); none of {len(rows)} was.") from error

    def newest(self, user_id: str, limit: int) -> list[StoredEvent]:
        """The newest events of a user, oldest first."""
        with self._lock:
            rows: Sequence[tuple[str, float]] = self._connection.execute(_NEWEST, (user_id, limit)).fetchall()
        return [StoredEvent(user_id, *row) for row in reversed(rows)]

    def users(self, limit: int) -> list[str]:
        """Users with events, those of the newest ones first."""
        with self._lock:
            rows: Sequence[tuple[str]] = self._connection.execute(_USERS, (limit,)).fetchall()
        return [user_id for (user_id,) in rows]

    def check(self) -> None:
        """Raise OverloadedError where the file cannot be read now."""
        try:
            with self._lock:
                self._connection.execute(_CHECK).fetchone()
        except sqlite3.Error as error:
            raise OverloadedError(f"histories: cannot be read ({error}).") from error

    def close(self) -> None:
        """Write back the log and close the file."""
        with self._lock:
            self._connection.close()
