"""Raw tables -> validated -> filtered -> indexed -> split -> the data artefact, written whole or not at all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from onerec.data.events import MICROSECONDS, EventLog, index_events, number_ids
from onerec.data.filters import find_core
from onerec.data.histories import Histories, Split
from onerec.data.schema import ResolvedSchema, resolve_schema
from onerec.data.settings import DataSettings
from onerec.data.sources import find_source
from onerec.data.splits import assert_order, split_events
from onerec.data.tables import SPLIT, USER, VECTOR, RawTables
from onerec.data.validation import Report, check_events, check_tables, check_text
from onerec.errors import ArtifactError, DataError
from tokenizer.artifacts import Manifest, atomic_folder, hash_settings, read_manifest, write_json, write_manifest

KIND = "data"


@dataclass(frozen=True)
class PreparedData:
    """A data artefact: item k and user u are row k and row u of their tables."""

    items: pl.DataFrame
    users: pl.DataFrame
    histories: Histories
    schema: ResolvedSchema
    manifest: Manifest

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return self.items.height

    @property
    def num_users(self) -> int:
        """Number of users with events."""
        return self.users.height

    @classmethod
    def load(cls, folder: Path) -> "PreparedData":
        """Open what `prepare` wrote; the events are memory-mapped.

        Raises:
            ArtifactError: no such artefact, a damaged file, or parts that do not belong together.
        """
        manifest = read_manifest(folder, KIND)
        items, users = pl.read_parquet(folder / "items.parquet"), pl.read_parquet(folder / "users.parquet")
        histories = Histories.load(folder / "events")
        if histories.num_users != users.height or histories.items.max() >= items.height:
            raise ArtifactError(
                f"{folder}: found events of {histories.num_users} users and items up to {histories.items.max()}, "
                f"expected {users.height} users and {items.height} items. Prepare the data again."
            )
        schema = ResolvedSchema.model_validate_json((folder / "schema.json").read_text(encoding="utf-8"))
        return cls(items, users, histories, schema, manifest)


@dataclass(frozen=True)
class _ValidTables:
    """Raw tables that passed every check, as arrays over the events, users and items that stay."""

    items: pl.DataFrame
    users: pl.DataFrame
    histories: Histories
    schema: ResolvedSchema


def prepare(settings: DataSettings, folder: Path) -> PreparedData:
    """Read the source that the settings name and write the data artefact to `folder`.

    Raises:
        ConfigError: settings that do not fit the source.
        DataError: tables that break their schema, one line for each kind of offence.
        ArtifactError: the folder cannot be written.
    """
    return prepare_tables(find_source(settings.source).load(settings), settings, folder)


def prepare_tables(tables: RawTables, settings: DataSettings, folder: Path) -> PreparedData:
    """The same for tables at hand."""
    report = Report(tables, settings.policies)
    valid = _build(report, settings)
    with atomic_folder(folder) as temporary:
        valid.items.write_parquet(temporary / "items.parquet")
        valid.users.write_parquet(temporary / "users.parquet")
        valid.histories.save(temporary / "events")
        write_json(temporary / "schema.json", valid.schema.model_dump(mode="json"))
        details = _details(report, valid)
        write_manifest(temporary, KIND, tables.provenance.files, hash_settings(settings), details)
    return PreparedData.load(folder)


def validate(tables: RawTables, settings: DataSettings) -> Report:
    """Everything `prepare_tables` does except writing.

    Raises:
        ConfigError, DataError: as `prepare`.
    """
    report = Report(tables, settings.policies)
    _build(report, settings)
    return report


def _build(report: Report, settings: DataSettings) -> _ValidTables:
    tables = report.tables
    with tqdm(total=3, desc="checking tables", unit="stage", disable=None) as progress:
        check_tables(report)
        schema, notes = resolve_schema(tables, settings)
        report.notes.extend([*tables.notes, *notes])
        kept = _enough_feedback(report, settings) & check_events(report)
        _advance(progress, "sorting events")
        log = index_events(report, kept)
        _advance(progress, "filtering and splitting")
        log, item_rows = _apply_core(report, log, settings)
        check_text(report, schema, item_rows)
        _check_single_events(report, log)
        report.refuse()
        if not len(log.users):
            raise DataError(
                f"no event is left of {tables.events.height:,}. Loosen data.core, min_feedback or policies."
            )
        renumbered = np.full(tables.items.height, -1, dtype=np.int32)
        renumbered[item_rows] = np.arange(len(item_rows), dtype=np.int32)
        histories = _split(report, log, renumbered[log.items], schema, settings)
        progress.update()
    items = tables.items[item_rows]
    if schema.vector_width is not None:
        items = items.with_columns(pl.col(VECTOR).cast(pl.Array(pl.Float32, schema.vector_width)))
    return _ValidTables(items, _user_table(report, log), histories, schema)


def _advance(progress: tqdm, stage: str) -> None:
    progress.update()
    progress.set_description(stage)


def _enough_feedback(report: Report, settings: DataSettings) -> np.ndarray:
    """Which raw events reach `min_feedback`; a value that was not recorded does not."""
    events = report.tables.events
    kept = np.ones(events.height, dtype=bool)
    for column, least in settings.min_feedback.items():
        if column not in report.tables.feedback:
            known = ", ".join(report.tables.feedback) or "none"
            raise DataError(f"data.min_feedback: found {column!r}, expected a feedback column ({known}).")
        enough = (events[column].cast(pl.Float64) >= least).fill_null(False).to_numpy()
        report.drop(f"events with {column} below {least:g}", int((kept & ~enough).sum()))
        kept &= enough
    return kept


def _apply_core(report: Report, log: EventLog, settings: DataSettings) -> tuple[EventLog, np.ndarray]:
    """The events in the core and the rows of the items table that stay."""
    core = find_core(log.users, log.items, report.tables.items.height, settings.core)
    filtered = log.select(core.events).without_absent_users()
    report.drop("events outside the core", len(log.users) - len(filtered.users))
    report.drop("users without events in the core", len(log.user_ids) - len(filtered.user_ids))
    report.drop("items outside the core", int((~core.items).sum()))
    if core.num_rounds:
        report.notes.append(f"core filter: {core.num_rounds} rounds")
    return filtered, np.flatnonzero(core.items)


def _check_single_events(report: Report, log: EventLog) -> None:
    lonely = np.diff(log.offsets) == 1
    report.record("user with one event", "events", USER, np.sort(log.rows[lonely[log.users]]), "single_event_users")


def _split(
    report: Report, log: EventLog, items: np.ndarray, schema: ResolvedSchema, settings: DataSettings
) -> Histories:
    events = report.tables.events
    offsets = log.offsets
    assert_order(offsets, log.moments)
    timestamps = log.moments // MICROSECONDS if schema.has_time else log.moments
    column = events[SPLIT][log.rows] if SPLIT in events.columns else None
    labels, notes = split_events(offsets, timestamps if schema.has_time else None, column, settings.split)
    report.notes.extend(notes)
    feedback = {name: _feedback_values(events[name])[log.rows] for name in schema.feedback}
    histories = Histories(offsets, items, timestamps, labels, feedback)
    histories.check()
    for split in (Split.TRAIN, Split.TEST):
        if not len(histories.targets(split)):
            raise DataError(f"the split leaves no {split.name.lower()} event. Change data.split.")
    report.notes.extend(_describe_split(histories))
    return histories


def _feedback_values(column: pl.Series) -> np.ndarray:
    return column.cast(pl.Float32).fill_null(float("nan")).to_numpy()


def _describe_split(histories: Histories) -> list[str]:
    counts = np.bincount(histories.splits, minlength=len(Split))
    trained = np.zeros(int(histories.items.max()) + 1, dtype=bool)
    trained[histories.items[histories.splits == Split.TRAIN]] = True
    later = histories.splits != Split.TRAIN
    starts = np.zeros(histories.num_events, dtype=bool)
    starts[histories.offsets[:-1]] = True
    return [
        "split: " + ", ".join(f"{count:,} {split.name.lower()}" for split, count in zip(Split, counts, strict=True)),
        f"split: {int((later & ~trained[histories.items]).sum()):,} later events of items without a training event, "
        f"{int((later & starts).sum()):,} that are their user's first event",
    ]


def _user_table(report: Report, log: EventLog) -> pl.DataFrame:
    """One row a user with events, in index order, with static columns where the users table has them."""
    table = pl.DataFrame({USER: log.user_ids})
    users = report.tables.users
    if users is None:
        return table
    rows = number_ids(log.user_ids, users[USER])
    num_unknown = int((rows < 0).sum())
    if num_unknown:
        report.notes.append(f"{num_unknown:,} users with events are not in the users table (static columns null)")
    report.drop("rows of the users table without an event", users.height - (len(rows) - num_unknown))
    places = pl.Series(rows).replace(-1, None)
    return table.with_columns(users[name].gather(places) for name in users.columns if name != USER)


def _details(report: Report, valid: _ValidTables) -> dict[str, Any]:
    provenance = report.tables.provenance
    return {
        "source": provenance.source,
        "licence": provenance.licence,
        "citation": provenance.citation,
        "num_users": valid.users.height,
        "num_items": valid.items.height,
        "num_events": valid.histories.num_events,
        "report": list(report.lines()),
        "dropped": report.dropped,
    }
