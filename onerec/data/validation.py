"""Checks of raw tables: every kind of offence with its count and the file, row and column of the first ones."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import polars as pl

from onerec.data.schema import ResolvedSchema
from onerec.data.settings import FeedbackKind, Policies
from onerec.data.tables import ITEM, POSITION, SPLIT, TIMESTAMP, USER, VECTOR, RawTables, TableName
from onerec.errors import DataError

_NUM_PLACES = 3
_YEAR_1 = -62_135_596_800  # Unix seconds; what lies before has no date
_YEAR_5000 = 95_617_584_000
_REFUSE = "refuse"


@dataclass(frozen=True)
class Offence:
    """One kind of offence in one column."""

    kind: str
    file: str
    column: str
    count: int
    places: tuple[str, ...]  # the first rows, each with the value found
    remedy: str
    policy: str  # refuse, keep or drop

    def __str__(self) -> str:
        where = f" ({'; '.join(self.places)})" if self.places else ""
        outcome = self.remedy if self.policy == _REFUSE else f"{self.policy} by policy"
        return f"{self.kind}: {self.count:,} in {self.file}, column {self.column!r}{where}: {outcome}"


@dataclass
class Report:
    """What was found in raw tables and what was done about it."""

    tables: RawTables
    policies: Policies
    offences: list[Offence] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> events (or users, items) left out

    def record(self, kind: str, table: TableName, column: str, rows: np.ndarray, policy: str | None = None) -> str:
        """Note the offending rows (raw row numbers) of one kind; `policy` names the setting that decides.

        Returns:
            what is to be done with the rows: refuse, keep or drop.
        """
        decision: str = getattr(self.policies, policy) if policy else _REFUSE
        if len(rows):
            remedy = _remedy(policy)
            values = getattr(self.tables, table)[column]
            places = [self.tables.file_and_row(table, int(row)) for row in rows[:_NUM_PLACES]]
            shown = tuple(
                f"row {row} of {file}: {_shorten(values[int(raw)])}"
                for (file, row), raw in zip(places, rows[:_NUM_PLACES], strict=True)
            )
            self.offences.append(Offence(kind, places[0][0], column, len(rows), shown, remedy, decision))
            if decision == "drop":
                self.drop(kind, len(rows))
        return decision

    def record_column(self, kind: str, table: TableName, column: str, found: str, remedy: str) -> None:
        """Note an offence of a whole column or table."""
        file = ", ".join(part.file for part in self.tables.parts.get(table, ())) or table
        self.offences.append(Offence(kind, file, column, 1, (found,), remedy, _REFUSE))

    def drop(self, reason: str, count: int) -> None:
        """Count what is left out."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def refuse(self) -> None:
        """End here if anything found is to be refused.

        Raises:
            DataError: one line for each kind of offence.
        """
        refused = [str(offence) for offence in self.offences if offence.policy == _REFUSE]
        if refused:
            raise DataError(f"{len(refused)} kind(s) of offence in the tables:\n  " + "\n  ".join(refused))

    def lines(self) -> Iterator[str]:
        """The report for the person at the terminal."""
        yield from self.notes
        yield from (str(offence) for offence in self.offences)
        yield from (f"dropped: {reason}: {count:,}" for reason, count in self.dropped.items())
        if not self.dropped:
            yield "dropped: nothing"


def check_tables(report: Report) -> None:
    """Refuse tables that cannot be read at all: missing columns, wrong types, empty tables, broken keys.

    Raises:
        DataError: all such offences at once.
    """
    tables = report.tables
    _check_columns(report, "events", tables.events, (USER, ITEM, *tables.feedback))
    _check_columns(report, "items", tables.items, (ITEM,))
    if tables.users is not None:
        _check_columns(report, "users", tables.users, (USER,))
    if not {TIMESTAMP, POSITION} & set(tables.events.columns):
        report.record_column(
            "missing column", "events", TIMESTAMP, "found neither timestamp nor position", "map one under data.columns"
        )
    report.refuse()
    _check_types(report)
    for column in tables.feedback:
        if "/" in column:
            report.record_column("unusable name", "events", column, "found a slash", "rename the column")
    report.refuse()
    _check_keys(report, "items", ITEM)
    if tables.users is not None:
        _check_keys(report, "users", USER)
    _check_vectors(report)
    report.refuse()


def check_events(report: Report, now: float | None = None) -> np.ndarray:
    """Check users, moments and feedback values of all events.

    Args:
        now: Unix seconds; moments after it lie in the future.

    Returns:
        bool (N,): which raw events stay.
    """
    events = report.tables.events
    kept = np.ones(events.height, dtype=bool)
    report.record("null user", "events", USER, _rows(events[USER].is_null()))
    if POSITION in events.columns:
        report.record("null position", "events", POSITION, _rows(events[POSITION].is_null()))
    if TIMESTAMP in events.columns:
        kept &= _check_moments(report, events[TIMESTAMP], time.time() if now is None else now)
    for column, kind in report.tables.feedback.items():
        report.record(f"value that is no {kind.value}", "events", column, _rows(_breaks(events[column], kind)))
    return kept


def _check_moments(report: Report, moments: pl.Series, now: float) -> np.ndarray:
    """Which timestamps are moments of the past: bool (N,)."""
    kinds = {
        "null timestamp": moments.is_null(),
        "future timestamp": (moments > now).fill_null(False),
        "timestamp before the year 1": (moments < _YEAR_1).fill_null(False),
    }
    if moments.dtype.is_float():
        kinds["NaN timestamp"] = moments.is_nan().fill_null(False)
        kinds["future timestamp"] &= ~kinds["NaN timestamp"]  # polars puts NaN after every number
    if kinds["future timestamp"].all() and (earliest := moments.min()) > _YEAR_5000:  # type: ignore[operator]
        found = f"found {earliest!r} as the earliest second, after the year 5000"
        report.record_column("wrong unit", "events", TIMESTAMP, found, "set data.timestamp_unit=ms or us")
    kept = np.ones(len(moments), dtype=bool)
    for kind, mask in kinds.items():
        report.record(kind, "events", TIMESTAMP, _rows(mask), policy="bad_timestamps")
        kept &= ~mask.to_numpy()
    return kept


def check_text(report: Report, schema: ResolvedSchema, item_rows: np.ndarray) -> None:
    """Find items, among those that stay, whose text columns are all empty."""
    if not schema.text_columns:
        report.notes.append("no text columns: item vectors must come from elsewhere")
        return
    filled = pl.any_horizontal(pl.col(name).str.contains(r"\S").fill_null(False) for name in schema.text_columns)
    empty = report.tables.items.select(~filled).to_series().to_numpy()
    rows = item_rows[empty[item_rows]]
    report.record("item without text", "items", schema.text_columns[0], rows, policy="items_without_text")


def _check_columns(report: Report, table: TableName, frame: pl.DataFrame, expected: tuple[str, ...]) -> None:
    for name in expected:
        if name not in frame.columns:
            found = f"found {', '.join(frame.columns) or 'no column'}"
            report.record_column("missing column", table, name, found, "map it under data.columns")
    if frame.is_empty():
        report.record_column("empty table", table, "*", "found 0 rows", "give a table with rows")


def _check_types(report: Report) -> None:
    tables = report.tables
    events = tables.events.schema
    keys: list[tuple[TableName, str]] = [("events", USER), ("events", ITEM), ("items", ITEM)]
    if tables.users is not None:
        keys.append(("users", USER))
    for table, column in keys:
        dtype = getattr(tables, table).schema[column]
        if not (dtype == pl.String or dtype.is_integer()):
            report.record_column("wrong type", table, column, f"found {dtype}", "store keys as strings or integers")
        elif dtype.is_integer() != events[column].is_integer():
            found = f"found {events[column]} in events and {dtype} in {table}"
            report.record_column("wrong type", table, column, found, "use one type for the same key")
    expected = {
        TIMESTAMP: (lambda dtype: dtype.is_integer() or dtype.is_float(), "store Unix seconds as a number"),
        POSITION: (lambda dtype: dtype.is_integer(), "store positions as integers"),
        SPLIT: (lambda dtype: dtype == pl.String, "store split labels as strings"),
    }
    number_or_flag = (lambda dtype: dtype.is_numeric() or dtype == pl.Boolean, "store feedback as numbers")
    expected |= dict.fromkeys(tables.feedback, number_or_flag)
    for column, (fits, remedy) in expected.items():
        if column in events and not fits(events[column]):
            report.record_column("wrong type", "events", column, f"found {events[column]}", remedy)


def _check_keys(report: Report, table: TableName, column: str) -> None:
    """Keys of a table of things: there, and each once."""
    keys = getattr(report.tables, table)[column]
    report.record(f"null {column}", table, column, _rows(keys.is_null()))
    report.record(f"repeated {column}", table, column, _rows(~keys.is_first_distinct() & keys.is_not_null()))


def _check_vectors(report: Report) -> None:
    items = report.tables.items
    if VECTOR not in items.columns:
        return
    vectors = items[VECTOR]
    if vectors.dtype not in (pl.List, pl.Array) or not vectors.dtype.inner.is_numeric():  # type: ignore[attr-defined]
        report.record_column("wrong type", "items", VECTOR, f"found {vectors.dtype}", "store a list of floats a row")
        return
    vectors = vectors.cast(pl.List(pl.Float32))
    widths = vectors.list.len()
    expected = int(widths.drop_nulls().mode().max())  # type: ignore[arg-type]  # the table is not empty
    report.record("item without vector", "items", VECTOR, _rows(vectors.is_null()))
    report.record(f"vector not {expected} wide", "items", VECTOR, _rows((widths != expected).fill_null(False)))
    finite = vectors.list.eval(pl.element().is_finite()).list.all().fill_null(True)
    report.record("vector with NaN or infinity", "items", VECTOR, _rows(~finite))


def _breaks(column: pl.Series, kind: FeedbackKind) -> pl.Series:
    """Where a value cannot be of its kind; null means not recorded and is allowed."""
    values = column.cast(pl.Float64)
    wrong = ~values.is_finite()
    if kind is FeedbackKind.BINARY:
        wrong |= (values != 0) & (values != 1)
    elif kind is FeedbackKind.COUNT:
        wrong |= (values < 0) | (values != values.floor())
    elif kind is FeedbackKind.SECONDS:
        wrong |= values < 0
    return wrong.fill_null(False)


def _remedy(policy: str | None) -> str:
    if policy is None:
        return "mend the table"
    choices = [choice for choice in get_args(Policies.model_fields[policy].annotation) if choice != _REFUSE]
    return f"mend the table, or set data.policies.{policy}={' or '.join(choices)}"


def _rows(mask: pl.Series) -> np.ndarray:
    return mask.arg_true().to_numpy()


def _shorten(value: object) -> str:
    text = str(value.to_list()) if isinstance(value, pl.Series) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
