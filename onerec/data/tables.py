"""What every source returns: the three raw tables under fixed column names, and where they come from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.errors import DataError

USER = "user_id"
ITEM = "item_id"
TIMESTAMP = "timestamp"
POSITION = "position"
SPLIT = "split"
VECTOR = "vector"

TableName = Literal["events", "items", "users"]


@dataclass(frozen=True)
class Provenance:
    """Where tables come from, for the manifest and the model card."""

    source: str  # a name that means something to a reader, such as "MovieLens 100K"
    licence: str
    citation: str
    files: dict[str, str]  # name of a file read -> its SHA-256


@dataclass(frozen=True)
class Part:
    """One file's share of a table: so many consecutive rows, in the file's order."""

    file: str
    num_rows: int


@dataclass(frozen=True)
class RawTables:
    """The three tables as a source read them: nothing dropped, nothing filtered, rows in file order.

    events: `user_id`, `item_id` (strings or integers), `timestamp` (Unix seconds, integer or float) and/or
        `position` (integer place within the user), optionally `split` (a string label), and the feedback
        columns; strings are String, not Categorical. Order within a user is by timestamp, position, then row.
    items: `item_id`, then any text, category and number columns, and optionally `vector` (list or array of floats).
    users: `user_id` and static columns, or None.
    feedback: which event columns are feedback, and of which kind.
    parts: for each table the files its rows came from, so that an offence can name file and row.
    notes: what the source did that a reader should know (columns ignored, values converted), one sentence each.
    """

    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame | None
    provenance: Provenance
    feedback: dict[str, FeedbackKind] = field(default_factory=dict)
    parts: dict[TableName, tuple[Part, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def file_and_row(self, table: TableName, row: int) -> tuple[str, int]:
        """The file that row `row` of a table came from and its row number there, both counted from 0."""
        for part in self.parts.get(table, ()):
            if row < part.num_rows:
                return part.file, row
            row -= part.num_rows
        return table, row


@dataclass(frozen=True)
class Source:
    """A data set this project can read. A module in `onerec/data/sources/` lists its own in a tuple `SOURCES`."""

    name: str  # value of `data.source`
    description: str
    licence: str
    citation: str
    load: Callable[[DataSettings], RawTables]
    fetch: Callable[[DataSettings], list[Path]] | None = None  # download into settings.cache; paths of what is there
    variants: tuple[str, ...] = ()  # values of `data.variant`


def read_parquet(path: Path) -> pl.DataFrame:
    """One Parquet file.

    Raises:
        DataError: no such file, or one that is truncated or not Parquet.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file, expected a Parquet table. Check data.path and data.files.")
    try:
        return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read as Parquet ({reason}). It may be truncated: write it again.") from None
