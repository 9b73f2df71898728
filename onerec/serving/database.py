"""The SQLite file in which the server keeps what must outlive it."""

import sqlite3
from pathlib import Path

from onerec.errors import ServingError


def open_database(path: Path | None, schema: str) -> sqlite3.Connection:
    """A connection for several threads, which must take turns; without a path to a database in memory.

    Args:
        schema: statements that make what is not there yet.

    Raises:
        ServingError: the file cannot be opened, or is no such database.
    """
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path or ":memory:", check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # acknowledged is on disk, power cut or not
        connection.executescript(schema)
    except (sqlite3.Error, OSError) as error:
        raise ServingError(f"{path}: cannot keep histories there ({error}). Choose another --histories.") from error
    return connection
