"""What has changed in the catalogue since the bundle was written, kept beside the server: one row an item."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from onerec.serving.database import Database
from tokenizer.assignment import NewId

FieldValue = str | int | float | bool | None

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    arrival INTEGER PRIMARY KEY, item_id TEXT NOT NULL UNIQUE, fields TEXT NOT NULL, vector TEXT,
    removed INTEGER NOT NULL, codes TEXT, bucket_rank INTEGER, table_hash TEXT
);
"""
_COLUMNS = "item_id, fields, vector, removed, codes, bucket_rank, table_hash"
_WRITE = f"""
INSERT INTO items ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (item_id) DO UPDATE SET
    fields = excluded.fields, vector = excluded.vector, removed = excluded.removed, codes = excluded.codes,
    bucket_rank = excluded.bucket_rank, table_hash = excluded.table_hash
"""
_READ = f"SELECT {_COLUMNS} FROM items ORDER BY arrival"
_READ_ONE = f"SELECT {_COLUMNS} FROM items WHERE item_id = ?"
_UNREADABLE = "item: the changes cannot be read"


@dataclass(frozen=True)
class ItemChange:
    """All that is known of an item beyond the bundle.

    Args:
        fields: values by column that were put; those of the bundle stand where there are none.
        vector: as it was put.
        removed: it may not be returned any more; histories may still name it.
        new_id: the semantic ID it was given, where the bundle of the time had none for it.
        table_hash: content hash of the ID table beside which `new_id` was chosen.
    """

    item_id: str
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    vector: tuple[float, ...] | None = None
    removed: bool = False
    new_id: NewId | None = None
    table_hash: str | None = None


class SupersededError(Exception):
    """Another server has written since the changes that were to be stored were made."""


class ChangeStore(Protocol):
    """Changes of the catalogue, safe to call from several threads."""

    shared: bool
    """Whether other servers may write here too, so that each has to look for what they wrote."""

    def write(self, changes: Sequence[ItemChange], after: int | None = None) -> int:
        """Store all of the changes or none, each in the place of its item's last; they survive from here on.

        Args:
            after: version that they were made from; None to store them whatever it is.

        Returns:
            The version that they made.

        Raises:
            SupersededError: there is a newer version.
        """

    def version(self) -> int:
        """Number that grows with each write; stays 0 where this server alone writes."""

    def newer(self, version: int) -> list[ItemChange]:
        """What was written after a version, in the order in which items first changed."""

    def read(self) -> list[ItemChange]:
        """Everything stored, in the order in which items first changed."""

    def find(self, item_id: str) -> ItemChange | None:
        """What is stored of one item."""

    def check(self) -> None:
        """Raise OverloadedError where what is stored cannot be reached now, or nothing more be stored."""

    def close(self) -> None:
        """Let go of files and connections."""


class SqliteChanges:
    """Changes in an SQLite file of one server, which may hold histories too; without a path in memory, gone with it.

    Raises:
        ServingError: the file cannot be opened, or is no such database.
    """

    shared = False

    def __init__(self, path: Path | None = None) -> None:
        self.database = Database(path, _SCHEMA)

    def write(self, changes: Sequence[ItemChange], after: int | None = None) -> int:
        """Store all of the changes or none; nobody else writes, so that they are never superseded.

        Raises:
            OverloadedError: they cannot be written now, such as to a full disk.
        """
        rows = [to_row(change) for change in changes]
        self.database.write(_WRITE, rows, "item: the change could not be stored; nothing has changed")
        return self.version()

    def version(self) -> int:
        """Always 0: nobody else writes."""
        return 0

    def newer(self, version: int) -> list[ItemChange]:
        """Nothing: nobody else writes."""
        return []

    def read(self) -> list[ItemChange]:
        """Everything stored, in the order in which items first changed.

        Raises:
            OverloadedError: the file cannot be read now.
        """
        return [from_row(*row) for row in self.database.read(_READ, (), _UNREADABLE)]

    def find(self, item_id: str) -> ItemChange | None:
        """What is stored of one item.

        Raises:
            OverloadedError: the file cannot be read now.
        """
        rows = self.database.read(_READ_ONE, (item_id,), _UNREADABLE)
        return from_row(*rows[0]) if rows else None

    def check(self) -> None:
        """Raise OverloadedError where the file cannot be read now, or written, once a write has failed."""
        self.database.check()

    def close(self) -> None:
        """Write back the log and close the file."""
        self.database.close()


def to_row(change: ItemChange) -> tuple[str | int | None, ...]:
    """A change as the stores write it."""
    return (
        change.item_id,
        json.dumps(dict(change.fields)),
        None if change.vector is None else json.dumps(change.vector),
        int(change.removed),
        None if change.new_id is None else json.dumps(change.new_id.codes),
        None if change.new_id is None else change.new_id.bucket_rank,
        change.table_hash,
    )


def from_row(
    item_id: str, fields: str, vector: str | None, removed: int, codes: str | None, rank: int, table_hash: str | None
) -> ItemChange:
    """The change that `to_row` wrote."""
    return ItemChange(
        item_id,
        json.loads(fields),
        None if vector is None else tuple(json.loads(vector)),
        bool(removed),
        None if codes is None else NewId(tuple(json.loads(codes)), rank),
        table_hash,
    )
