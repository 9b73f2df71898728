"""One's own three Parquet tables, their columns mapped in the config."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from onerec.data.schema import rename_columns, require_columns, resolve_feedback, timestamps_in_seconds
from onerec.data.settings import DataSettings
from onerec.data.tables import ITEM, USER, VECTOR, Part, Provenance, RawTables, Source, TableName, read_parquet
from onerec.errors import ConfigError, DataError
from tokenizer.artifacts import hash_file

OWN_TERMS = "as the owner of the data says"


def load(settings: DataSettings) -> RawTables:
    """Read `data.files` within `data.path`.

    Raises:
        ConfigError: no `data.path`.
        DataError: a missing or truncated file, a missing column, vectors that do not fit the items.
    """
    if settings.path is None:
        raise ConfigError("data.path: found nothing, expected the folder of your tables. Set it or give --from PATH.")
    folder = settings.path
    event_files = sorted(folder.glob(settings.files.events))
    if not event_files:
        raise DataError(f"{folder}: found no file {settings.files.events!r}. Check data.path and data.files.events.")
    users_file = folder / settings.files.users
    return assemble(
        [(file.name, read_parquet(file)) for file in event_files],
        read_items(folder / settings.files.items, settings.columns.item, settings.vectors),
        read_users(users_file, settings.columns.user) if users_file.is_file() else None,
        settings,
        Provenance(
            source=folder.name,
            licence=OWN_TERMS,
            citation="",
            files=hash_files([*event_files, folder / settings.files.items, users_file, settings.vectors]),
        ),
    )


def assemble(
    logs: list[tuple[str, pl.DataFrame]],
    items: pl.DataFrame,
    users: pl.DataFrame | None,
    settings: DataSettings,
    provenance: Provenance,
) -> RawTables:
    """Raw tables from event files (name and frame, in order) and tables whose keys are already named."""
    names = settings.columns
    renamed = [rename_columns(_plain_strings(frame), names, file) for file, frame in logs]
    file = ", ".join(name for name, _ in logs)
    try:
        events = pl.concat(renamed, how="vertical")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{file}: the event files differ in their columns or types ({error}).") from None
    events = timestamps_in_seconds(events, settings.timestamp_unit, file)
    events, feedback, notes = resolve_feedback(events, settings.feedback, file)
    parts: dict[TableName, tuple[Part, ...]] = {
        "events": tuple(Part(name, frame.height) for name, frame in logs),
        "items": (Part("items.parquet", items.height),),
    }
    if users is not None:
        parts["users"] = (Part("users.parquet", users.height),)
    return RawTables(events, items, users, provenance, feedback, parts, tuple(notes))


def read_items(file: Path, key: str, vectors: Path | None) -> pl.DataFrame:
    """The items table with its key named `item_id`, and ready vectors as its `vector` column.

    Raises:
        DataError: the key is missing, or the vectors are not one row an item.
    """
    items = _plain_strings(read_parquet(file))
    require_columns(file.name, items.columns, [key])
    items = items.rename({key: ITEM})
    return items if vectors is None else items.with_columns(read_vectors(vectors, items.height))


def read_users(file: Path, key: str) -> pl.DataFrame:
    """The users table with its key named `user_id`."""
    users = _plain_strings(read_parquet(file))
    require_columns(file.name, users.columns, [key])
    return users.rename({key: USER})


def read_vectors(file: Path, num_items: int) -> pl.Series:
    """A `.npy` file of vectors (items, width) as a column of float32 arrays.

    Raises:
        DataError: unreadable, not a table of numbers, or not one row an item.
    """
    try:
        vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: cannot be read as .npy ({error}). Write it with numpy.save.") from None
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise DataError(f"{file}: found {vectors.dtype} of shape {vectors.shape}, expected numbers (items, width).")
    if len(vectors) != num_items:
        raise DataError(f"{file}: found {len(vectors):,} vectors, expected one for each of {num_items:,} items.")
    return pl.Series(VECTOR, vectors.astype(np.float32), dtype=pl.Array(pl.Float32, vectors.shape[1]))


def hash_files(files: Sequence[Path | None]) -> dict[str, str]:
    """SHA-256 by file name, of those that are there."""
    return {file.name: hash_file(file) for file in files if file is not None and file.is_file()}


def _plain_strings(frame: pl.DataFrame) -> pl.DataFrame:
    dictionaries = [name for name, dtype in frame.schema.items() if dtype in (pl.Categorical, pl.Enum)]
    return frame.with_columns(pl.col(dictionaries).cast(pl.String))


SOURCES = (
    Source(
        name="parquet",
        description="your own events, items and users tables in Parquet, columns mapped under data.columns",
        licence=OWN_TERMS,
        citation="",
        load=load,
    ),
)
