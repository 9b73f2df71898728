"""The SQLite file in which the server keeps what must outlive it."""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onerec.errors import OverloadedError, ServingError

_TRY = "PRAGMA user_version = 1"  # which nobody reads: the least that can be written


class Database:
    """A connection for several threads, which take turns; without a path to a database in memory.

    Args:
        schema: statements that make what is not there yet.

    Raises:
        ServingError: the file cannot be opened, or is no such database.
    """

    def __init__(self, path: Path | None, schema: str) -> None:
        self._lock = threading.Lock()
        self._writable = True
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path or ":memory:", check_same_thread=False)
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=FULL")  # acknowledged is on disk, power cut or not
            self.connection.executescript(schema)
        except (sqlite3.Error, OSError) as error:
            raise ServingError(f"{path}: cannot keep histories there ({error}). Choose another --histories.") from error

    def write(self, statement: str, rows: Iterable[tuple[Any, ...]], failure: str) -> None:
        """Run the statement for all of the rows or for none.

        Raises:
            OverloadedError: they cannot be written now, such as to a full disk; begins with `failure`.
        """
        with self._writing(failure):
            self.connection.executemany(statement, rows)

    def read(self, statement: str, values: tuple[Any, ...], failure: str) -> list[Any]:
        """All rows that a query gives.

        Raises:
            OverloadedError: the file cannot be read now; begins with `failure`.
        """
        with self._explained(failure), self._lock:
            return self.connection.execute(statement, values).fetchall()

    def check(self) -> None:
        """Raise OverloadedError where the file cannot be read now, or written, once a write has failed.

        As long as writes succeed nothing is written to learn that they would.
        """
        self.read("SELECT count(*) FROM sqlite_schema", (), "what is stored cannot be read")
        if not self._writable:
            with self._writing("nothing can be stored"):
                self.connection.execute(_TRY)

    def close(self) -> None:
        """Write back the log and close the file."""
        with self._lock:
            self.connection.close()

    @contextmanager
    def _writing(self, failure: str) -> Iterator[None]:
        with self._explained(failure), self._lock:
            self._writable = False
            with self.connection:
                yield
            self._writable = True

    @staticmethod
    @contextmanager
    def _explained(failure: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OverloadedError(f"{failure} ({error}).") from error
