"""What users did, kept beside the server: appended by events, read when a request names a user."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onerec.serving.database import Database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    arrival INTEGER PRIMARY KEY, user_id TEXT NOT NULL, timestamp REAL NOT NULL, item_id TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_user ON events (user_id, timestamp, arrival);
"""
_INSERT = "INSERT INTO events (user_id, timestamp, item_id) VALUES (?, ?, ?)"
_USERS = "SELECT user_id FROM events GROUP BY user_id ORDER BY max(arrival) DESC LIMIT ?"
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
        """Raise OverloadedError where what is stored cannot be reached now, or nothing more be stored."""

    def close(self) -> None:
        """Let go of files and connections."""


class SqliteHistories:
    """Histories in one SQLite file; without a path in memory, gone with the process.

    Raises:
        ServingError: the file cannot be opened, or is no such database.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.database = Database(path, _SCHEMA)

    def append(self, events: Iterable[StoredEvent]) -> None:
        """Store all of the events or none.

        Raises:
            OverloadedError: they cannot be written now, such as to a full disk.
        """
        rows = [(event.user_id, event.timestamp, event.item_id) for event in events]
        self.database.write(_INSERT, rows, f"events: could not be stored; none of {len(rows)} was")

    def newest(self, user_id: str, limit: int) -> list[StoredEvent]:
        """The newest events of a user, oldest first.

        Raises:
            OverloadedError: the file cannot be read now.
        """
        rows = self.database.read(_NEWEST, (user_id, limit), "user_id: the history cannot be read")
        return [StoredEvent(user_id, *row) for row in reversed(rows)]

    def users(self, limit: int) -> list[str]:
        """Users with events, those of the newest ones first.

        Raises:
            OverloadedError: the file cannot be read now.
        """
        return [user_id for (user_id,) in self.database.read(_USERS, (limit,), "users: cannot be read")]

    def check(self) -> None:
        """Raise OverloadedError where the file cannot be read now, or written, once a write has failed."""
        self.database.check()

    def close(self) -> None:
        """Write back the log and close the file."""
        self.database.close()
