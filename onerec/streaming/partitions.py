"""Partitions of the log by time: a base, then folders of the same tables with what is new in each.

    partitions/  base/{events,items,users}.parquet  1997-12-01/{events,items}.parquet  ...  manifest.json

An item belongs to the partition of its first event, to the base where it has none: nobody knows when it came.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from onerec.data.settings import ColumnNames, DataSettings
from onerec.data.sources.parquet import assemble, hash_files, read_items
from onerec.data.tables import ITEM, POSITION, SPLIT, TIMESTAMP, Provenance, RawTables, read_parquet
from onerec.errors import ConfigError, DataError
from onerec.streaming.settings import StreamSettings
from tokenizer.artifacts import atomic_folder, hash_settings, hash_text, read_manifest, write_manifest

KIND = "stream-partitions"
BASE = "base"
_EVENTS, _ITEMS = "events.parquet", "items.parquet"
_DAY_SECONDS = 86_400
_CUT = {"start", "base_share", "partition_days"}  # settings that say where the log is cut


@dataclass(frozen=True)
class Partition:
    """One folder of tables."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name, which gives partitions their order."""
        return self.folder.name

    @cached_property
    def content_hash(self) -> str:
        """Identity of the tables."""
        return hash_text(str(sorted(hash_files([self.folder / _EVENTS, self.folder / _ITEMS]).items())))

    def load(self, known: pl.DataFrame, settings: DataSettings) -> RawTables:
        """Its events beside the whole catalogue: the items known so far, then those that it brings.

        Raises:
            DataError: a missing or truncated file, or new items without a column of the catalogue.
        """
        events = [(f"{self.name}/{_EVENTS}", read_parquet(self.folder / _EVENTS))]
        file = self.folder / _ITEMS
        items = known
        if file.is_file():
            new = read_items(file, settings.columns.item, None)
            missing = [name for name in known.columns if name not in new.columns]
            if missing:
                raise DataError(f"{file}: found no column {missing[0]!r}, expected those of the catalogue. Add it.")
            new = new.select(pl.col(name).cast(dtype) for name, dtype in known.schema.items())
            items = pl.concat([known, new.filter(~pl.col(ITEM).is_in(known[ITEM].implode()))])
        tables = assemble(events, items, None, settings, Provenance(self.name, "", "", {}))
        return RawTables(
            _with_feedback(tables.events, settings), items, None, tables.provenance, tables.feedback, tables.parts
        )


def find_partitions(folder: Path) -> list[Partition]:
    """The partitions in a folder in the order of their names.

    Raises:
        ConfigError: there is none.
    """
    files = sorted(folder.glob(f"[!.]*/{_EVENTS}"))
    found = [Partition(file.parent) for file in files if file.parent.name != BASE]
    if not found:
        raise ConfigError(f"stream.partitions: found no folder with {_EVENTS} in {folder}, expected one a partition.")
    return found


def cut_log(tables: RawTables, data: DataSettings, settings: StreamSettings, folder: Path) -> None:
    """Write the tables' base and partitions to `folder`.

    Raises:
        ConfigError: events without times.
        DataError: no event before the start of the stream, or none after it.
    """
    if TIMESTAMP not in tables.events.columns:
        raise ConfigError("stream: these events have an order only, no time; expected timestamps to cut the log by.")
    start, events = _find_start(tables.events[TIMESTAMP], settings), tables.events
    numbers = ((pl.col(TIMESTAMP) - start) / (settings.partition_days * _DAY_SECONDS)).floor().fill_nan(-1)
    events = events.with_columns(_partition=numbers.fill_null(-1).clip(lower_bound=-1).cast(pl.Int64))
    streamed = _with_feedback(events.filter(pl.col("_partition") >= 0), data)
    chosen = streamed["_partition"].unique().sort()
    base = events.filter(pl.col("_partition") < 0)
    if base.is_empty() or not len(chosen):
        raise DataError(
            f"stream: found {base.height:,} events before {_moment_name(start)} and {streamed.height:,} after it, "
            "expected some of each. Change stream.start or stream.base_share."
        )
    firsts = events.group_by(ITEM).agg(pl.col("_partition").min())
    items = tables.items.join(firsts, on=ITEM, how="left", maintain_order="left").with_columns(
        pl.col("_partition").fill_null(-1)
    )
    with atomic_folder(folder) as temporary:
        _write(temporary / BASE, base, items.filter(pl.col("_partition") < 0))
        if tables.users is not None:
            tables.users.write_parquet(temporary / BASE / "users.parquet")
        for number in chosen:
            name = _moment_name(start + number * settings.partition_days * _DAY_SECONDS)
            of_partition = pl.col("_partition") == number
            _write(temporary / name, streamed.filter(of_partition), items.filter(of_partition))
        terms = {name: getattr(tables.provenance, name) for name in ("source", "licence", "citation")}
        details = {"data": _own_tables(tables), "terms": terms}
        write_manifest(temporary, KIND, tables.provenance.files, cut_hash(data, settings), details)


def cut_hash(data: DataSettings, settings: StreamSettings) -> str:
    """What a cut depends on."""
    return hash_settings([data, StreamSettings(**settings.model_dump(include=_CUT))])


def base_settings(data: DataSettings, folder: Path) -> DataSettings:
    """The data section that reads the base, with filters and split as in the run's own.

    A cut leaves users with one event, which the log itself may not have: they are kept.
    """
    found: dict[str, Any] = read_manifest(folder, KIND, verify_files=False).details["data"]
    kept = data.model_dump(include={"text_columns", "category_columns", "user_category_columns", "min_feedback"})
    kept |= data.model_dump(include={"policies", "core", "split"})
    kept["policies"]["single_event_users"] = "keep"
    return DataSettings.model_validate({**kept, **found, "source": "parquet", "path": folder / BASE})


def _own_tables(tables: RawTables) -> dict[str, Any]:
    """How the tables written are read again: nothing is left to guess."""
    names = ColumnNames(
        position=POSITION if POSITION in tables.events.columns else None,
        split=SPLIT if SPLIT in tables.events.columns else None,
    )
    return {"columns": names.model_dump(), "feedback": {name: str(kind) for name, kind in tables.feedback.items()}}


def _write(folder: Path, events: pl.DataFrame, items: pl.DataFrame) -> None:
    folder.mkdir()
    events.drop("_partition").write_parquet(folder / _EVENTS)
    if items.height:
        items.drop("_partition").write_parquet(folder / _ITEMS)


def _find_start(seconds: pl.Series, settings: StreamSettings) -> float:
    """Unix seconds at which the stream begins."""
    if settings.start is not None:
        return settings.start.timestamp()
    known = seconds.cast(pl.Float64).drop_nulls().drop_nans().to_numpy()
    cut = np.quantile(known, settings.base_share) if len(known) else 0.0
    return float(cut // _DAY_SECONDS * _DAY_SECONDS)


def _moment_name(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%d}" if seconds % _DAY_SECONDS == 0 else f"{moment:%Y-%m-%dT%H%M%S}"


def _with_feedback(events: pl.DataFrame, settings: DataSettings) -> pl.DataFrame:
    """Those events that reach `min_feedback`."""
    least = [pl.col(name).cast(pl.Float64) >= value for name, value in settings.min_feedback.items()]
    return events.filter(*least) if least else events
