"""From a table's own columns to the project's: names, units, feedback kinds, text and category columns."""

from collections.abc import Sequence

import polars as pl
from pydantic import BaseModel

from onerec.data.settings import ColumnNames, DataSettings, FeedbackKind
from onerec.data.tables import ITEM, POSITION, SPLIT, TIMESTAMP, USER, VECTOR, RawTables
from onerec.errors import DataError

RESERVED = (USER, ITEM, TIMESTAMP, POSITION, SPLIT)
_UNITS_PER_SECOND = {"ms": 1_000, "us": 1_000_000}
_SECONDS_SUFFIXES = ("_s", "_seconds", "_ms")


class ResolvedSchema(BaseModel):
    """The columns of a prepared data set, with every `auto` decided."""

    text_columns: tuple[str, ...]
    category_columns: tuple[str, ...]
    user_category_columns: tuple[str, ...]
    feedback: dict[str, FeedbackKind]
    has_time: bool  # False: timestamps are positions within the user
    vector_width: int | None  # width of the items' `vector` column, None without one


def require_columns(file: str, found: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        DataError: names the file, the missing columns and those that are there.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise DataError(
            f"{file}: missing column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}; found "
            f"{', '.join(map(repr, found))}. Map your own names under data.columns."
        )


def rename_columns(frame: pl.DataFrame, names: ColumnNames, file: str) -> pl.DataFrame:
    """An event table under the project's column names.

    Raises:
        DataError: a mapped column is missing, or another column already has the name it maps to.
    """
    mapping = {
        mapped: own
        for own, mapped in (
            (USER, names.user),
            (ITEM, names.item),
            (TIMESTAMP, names.timestamp),
            (POSITION, names.position),
            (SPLIT, names.split),
        )
        if mapped is not None
    }
    require_columns(file, frame.columns, list(mapping))
    kept = [name for name in frame.columns if name in mapping or name not in RESERVED]
    return frame.select(kept).rename(mapping)


def timestamps_in_seconds(events: pl.DataFrame, unit: str, file: str) -> pl.DataFrame:
    """The timestamp column in Unix seconds: integers stay integers where they are exact, others become floats.

    Raises:
        DataError: the column is neither a number nor a date.
    """
    if TIMESTAMP not in events.columns:
        return events
    dtype = events.schema[TIMESTAMP]
    if dtype.is_temporal() and dtype in (pl.Date, pl.Datetime):
        moments = pl.col(TIMESTAMP).cast(pl.Datetime("us")).cast(pl.Int64)
        return events.with_columns(moments / 1_000_000)
    if not dtype.is_numeric():
        raise DataError(f"{file}: column {TIMESTAMP!r} is {dtype}, expected numbers or dates. Convert it first.")
    if unit == "s":
        return events
    return events.with_columns(pl.col(TIMESTAMP) / _UNITS_PER_SECOND[unit])


def resolve_feedback(
    events: pl.DataFrame, declared: dict[str, FeedbackKind] | str, file: str
) -> tuple[pl.DataFrame, dict[str, FeedbackKind], list[str]]:
    """Decide which event columns are feedback, and turn milliseconds (`*_ms`) into seconds (`*_s`).

    With `auto`: booleans, `is_*` and 0/1 integers are binary, `rating` is a rating, `*_s`, `*_seconds` and `*_ms`
    are seconds; what is left over is named in a note.

    Returns:
        the events without unused columns, column -> kind, and notes for the report.
    """
    notes = []
    if isinstance(declared, str):
        others = [name for name in events.columns if name not in RESERVED]
        kinds = {name: kind for name in others if (kind := _guess_kind(events[name])) is not None}
        unused = [name for name in others if name not in kinds]
        notes.append("feedback columns: " + (", ".join(f"{n} ({k})" for n, k in kinds.items()) or "none"))
        if unused:
            notes.append(f"event columns not used: {', '.join(unused)}")
    else:
        require_columns(file, events.columns, list(declared))
        kinds = dict(declared)
    converted = [name for name, kind in kinds.items() if kind is FeedbackKind.SECONDS and name.endswith("_ms")]
    if converted:
        notes.append(f"milliseconds read as seconds: {', '.join(converted)} (now ending in _s)")
    events = events.with_columns((pl.col(name) / 1000).cast(pl.Float32).alias(_in_seconds(name)) for name in converted)
    kinds = {_in_seconds(name) if name in converted else name: kind for name, kind in kinds.items()}
    return events.select([name for name in events.columns if name in (*RESERVED, *kinds)]), kinds, notes


def resolve_schema(tables: RawTables, settings: DataSettings) -> tuple[ResolvedSchema, list[str]]:
    """Decide the text and category columns; the notes say what `auto` chose.

    Raises:
        DataError: a named column is missing, or a text column is not a string.
    """
    text = _text_columns(tables.items, settings.text_columns)
    categories = _category_columns("items", tables.items, settings.category_columns)
    of_users = () if tables.users is None else _category_columns("users", tables.users, settings.user_category_columns)
    vectors = tables.items[VECTOR] if VECTOR in tables.items.columns else None
    schema = ResolvedSchema(
        text_columns=text,
        category_columns=categories,
        user_category_columns=of_users,
        feedback=tables.feedback,
        has_time=TIMESTAMP in tables.events.columns,
        vector_width=None if vectors is None else _first_width(vectors),
    )
    notes = [
        f"text columns: {', '.join(text) or 'none'}",
        f"category columns: {', '.join(categories) or 'none'}",
        f"user category columns: {', '.join(of_users) or 'none'}",
    ]
    return schema, notes


def is_identifier(column: pl.Series) -> bool:
    """Whether a string column looks like a key: all values distinct and none containing a blank."""
    values = column.drop_nulls()
    return values.n_unique() == values.len() and not values.str.contains(r"\s").any()


def _guess_kind(column: pl.Series) -> FeedbackKind | None:
    if column.dtype == pl.Boolean or (column.dtype.is_numeric() and column.name.startswith("is_")):
        return FeedbackKind.BINARY
    if not column.dtype.is_numeric():
        return None
    if column.name == "rating":
        return FeedbackKind.RATING
    if column.name.endswith(_SECONDS_SUFFIXES):
        return FeedbackKind.SECONDS
    if column.dtype.is_integer() and column.is_in([0, 1]).all():
        return FeedbackKind.BINARY
    return None


def _in_seconds(name: str) -> str:
    return name.removesuffix("_ms") + "_s" if name.endswith("_ms") else name


def _text_columns(items: pl.DataFrame, declared: tuple[str, ...] | str) -> tuple[str, ...]:
    if isinstance(declared, str):
        strings = [name for name, dtype in items.schema.items() if dtype == pl.String and name != ITEM]
        return tuple(name for name in strings if items[name].count() and not is_identifier(items[name]))
    require_columns("items", items.columns, declared)
    wrong = {name: items.schema[name] for name in declared if items.schema[name] != pl.String}
    if wrong:
        found = ", ".join(f"{name!r} is {dtype}" for name, dtype in wrong.items())
        raise DataError(f"items: text column {found}, expected String. Cast it, or take it out of data.text_columns.")
    return declared


def _category_columns(table: str, frame: pl.DataFrame, declared: tuple[str, ...] | str) -> tuple[str, ...]:
    if not isinstance(declared, str):
        require_columns(table, frame.columns, declared)
        return declared
    return tuple(column.name for column in frame if column.name not in (ITEM, USER) and _repeats(column))


def _repeats(column: pl.Series) -> bool:
    """Whether values stand for categories: at least two of them, each twice on average."""
    dtype = column.dtype
    if not (dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum) or dtype.is_integer()):
        return False
    values = column.drop_nulls()
    return 2 <= values.n_unique() <= values.len() // 2


def _first_width(vectors: pl.Series) -> int | None:
    known = vectors.drop_nulls()
    return len(known[0]) if known.len() and known.dtype in (pl.List, pl.Array) else None
