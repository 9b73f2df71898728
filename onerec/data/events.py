"""The event log by index: users and items as row numbers, events in each user's order of time."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from onerec.data.tables import ITEM, POSITION, TIMESTAMP, USER, RawTables
from onerec.data.validation import Report

MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class EventLog:
    """Parallel arrays over events, sorted by user and, within a user, by time.

    users, items: int32 (N,) rows of `user_ids` and of the items table.
    moments: int64 (N,) microseconds since 1970, or positions where only the order is known.
    rows: int64 (N,) rows of the raw events table.
    user_ids: (U,) every user's own key, ascending.
    """

    users: np.ndarray
    items: np.ndarray
    moments: np.ndarray
    rows: np.ndarray
    user_ids: pl.Series

    def select(self, kept: np.ndarray) -> "EventLog":
        """The events that a mask or an order of rows picks; users and items keep their numbers."""
        return EventLog(self.users[kept], self.items[kept], self.moments[kept], self.rows[kept], self.user_ids)

    def without_absent_users(self) -> "EventLog":
        """The same events, with users numbered anew so that each has an event."""
        present = np.bincount(self.users, minlength=len(self.user_ids)) > 0
        renumbered = (np.cumsum(present, dtype=np.int32) - 1).astype(np.int32)
        ids = self.user_ids.filter(pl.Series(present))
        return EventLog(renumbered[self.users], self.items, self.moments, self.rows, ids)

    @property
    def offsets(self) -> np.ndarray:
        """int64 (U+1,): user u's events are rows offsets[u]:offsets[u+1]."""
        counts = np.bincount(self.users, minlength=len(self.user_ids))
        return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def index_events(report: Report, kept: np.ndarray) -> EventLog:
    """Number users and items, drop what the policies drop, and sort.

    Args:
        report: takes unknown items and duplicates.
        kept: bool, which raw events to look at.
    """
    tables = report.tables
    item_of_event = number_ids(tables.events[ITEM], tables.items[ITEM])
    unknown = np.flatnonzero((item_of_event < 0) & kept)
    report.record("event of an unknown item", "events", ITEM, unknown, policy="unknown_items")
    rows = np.flatnonzero(kept & (item_of_event >= 0) & tables.events[USER].is_not_null().to_numpy())
    user_ids = tables.events[USER].unique().drop_nulls().sort()
    users = number_ids(tables.events[USER], user_ids)[rows]
    moments = _moments(tables, rows)
    log = EventLog(users, item_of_event[rows], moments, rows, user_ids)
    log = log.select(_time_order(tables, log))
    duplicates = find_duplicates(log, by_item=TIMESTAMP in tables.events.columns)
    column = TIMESTAMP if TIMESTAMP in tables.events.columns else POSITION
    decision = report.record("duplicate event", "events", column, np.sort(log.rows[duplicates]), policy="duplicates")
    return log.select(~duplicates) if decision == "drop" else log


def number_ids(ids: pl.Series, known: pl.Series) -> np.ndarray:
    """Position (int32) of each id in `known`; -1 where it is null or not there."""
    if ids.dtype != known.dtype:  # integers of two widths; 128 bits hold both
        ids, known = ids.cast(pl.Int128), known.cast(pl.Int128)
    numbers = pl.DataFrame({"id": known, "number": np.arange(len(known), dtype=np.int32)})
    joined = pl.DataFrame({"id": ids}).join(numbers, on="id", how="left", maintain_order="left")
    return joined["number"].fill_null(-1).to_numpy()


def find_duplicates(log: EventLog, by_item: bool) -> np.ndarray:
    """Events of one user at one moment (and, `by_item`, with one item) after the first such: bool (N,)."""
    tied = np.zeros(len(log.users), dtype=bool)
    tied[1:] = (log.users[1:] == log.users[:-1]) & (log.moments[1:] == log.moments[:-1])
    if not by_item:
        return tied
    in_run = tied.copy()
    in_run[:-1] |= tied[1:]
    candidates = np.flatnonzero(in_run)
    runs = np.cumsum(~tied)[candidates]
    pairs = pl.DataFrame({"run": runs, "item": log.items[candidates]})
    repeated = pairs.select(~pl.struct("run", "item").is_first_distinct()).to_series().to_numpy()
    duplicates = np.zeros(len(log.users), dtype=bool)
    duplicates[candidates[repeated]] = True
    return duplicates


def _moments(tables: RawTables, rows: np.ndarray) -> np.ndarray:
    """Integers that order a user's events; float seconds are rounded to microseconds."""
    if TIMESTAMP not in tables.events.columns:
        return tables.events[POSITION].cast(pl.Int64).fill_null(0).to_numpy()[rows]
    seconds = tables.events[TIMESTAMP]
    if seconds.dtype.is_integer():
        return seconds.cast(pl.Int64).fill_null(0).to_numpy()[rows] * MICROSECONDS
    return np.rint(seconds.fill_null(0).fill_nan(0).to_numpy()[rows] * MICROSECONDS).astype(np.int64)


def _time_order(tables: RawTables, log: EventLog) -> np.ndarray:
    """Row order by user, moment, position where given, and raw row."""
    keys = [log.moments, log.users]
    if {TIMESTAMP, POSITION} <= set(tables.events.columns):
        keys.insert(0, tables.events[POSITION].fill_null(0).to_numpy()[log.rows])
    return np.lexsort(keys)
