"""A log cut by time, by hand, and partitions read beside the catalogue that is known."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from onerec.data.settings import DataSettings
from onerec.data.tables import Provenance, RawTables
from onerec.errors import ConfigError, DataError
from onerec.streaming.partitions import base_settings, cut_log, find_partitions
from onerec.streaming.settings import StreamSettings

DAY = 86_400
START = datetime(1970, 1, 11, tzinfo=UTC)  # day 10


def tables(days: list[float], items: list[str]) -> RawTables:
    """One user's events on these days, with a click now and then."""
    events = {"user_id": [1] * len(days), "item_id": items, "timestamp": [int(day * DAY) for day in days]}
    events |= {"click": [int(item != "e") for item in items]}
    catalogue = pl.DataFrame({"item_id": ["a", "b", "c", "d", "e"], "title": list("ABCDE")})
    return RawTables(pl.DataFrame(events), catalogue, None, Provenance("small", "", "", {}), {"click": "binary"})


LOG = tables([1, 9.99, 10, 10.5, 12.5, 13, 15], ["a", "b", "a", "c", "b", "d", "e"])
TWO_DAYS = StreamSettings(start=START, partition_days=2)


def test_events_and_items_lie_where_they_first_came(tmp_path: Path) -> None:
    data = DataSettings(source="embedded", min_feedback={"click": 1}, core={"user_events": 2})
    cut_log(LOG, data, TWO_DAYS, tmp_path / "cut")
    base = base_settings(data, tmp_path / "cut")
    assert (base.source, base.core.user_events, base.feedback) == ("parquet", 2, {"click": "binary"})
    assert pl.read_parquet(base.path / "events.parquet")["item_id"].to_list() == ["a", "b"]
    assert pl.read_parquet(base.path / "items.parquet")["item_id"].to_list() == ["a", "b"]
    partitions = find_partitions(tmp_path / "cut")  # day 15 holds no click
    assert [partition.name for partition in partitions] == ["1970-01-11", "1970-01-13"]
    first = partitions[0].load(pl.read_parquet(base.path / "items.parquet"), base)
    assert first.events["item_id"].to_list() == ["a", "c"]
    assert first.items["item_id"].to_list() == ["a", "b", "c"]
    second = partitions[1].load(first.items, base)
    assert second.events["timestamp"].to_list() == [12.5 * DAY, 13 * DAY]
    assert second.items["item_id"].to_list() == ["a", "b", "c", "d"]
    assert partitions[0].content_hash != partitions[1].content_hash


def test_items_without_an_event_are_of_the_base_and_a_known_item_stays_as_it_is(tmp_path: Path) -> None:
    data = DataSettings(source="embedded")
    cut_log(tables([1, 11], ["a", "b"]), data, TWO_DAYS, tmp_path / "cut")
    base = base_settings(data, tmp_path / "cut")
    known = pl.read_parquet(base.path / "items.parquet")
    assert known["item_id"].to_list() == ["a", "c", "d", "e"]
    (partition,) = find_partitions(tmp_path / "cut")
    pl.DataFrame({"item_id": ["a", "b"], "title": ["renamed", "B"]}).write_parquet(partition.folder / "items.parquet")
    assert partition.load(known, base).items["title"].to_list() == ["A", "C", "D", "E", "B"]
    pl.DataFrame({"item_id": ["b"]}).write_parquet(partition.folder / "items.parquet")
    with pytest.raises(DataError, match="no column 'title'"):
        partition.load(known, base)


def test_the_share_of_the_base_ends_at_a_midnight(tmp_path: Path) -> None:
    cut_log(LOG, DataSettings(), StreamSettings(base_share=0.5), tmp_path / "cut")
    # The median lies at 10.5 days, the midnight before it at 10; a day without events is no partition.
    names = [partition.name for partition in find_partitions(tmp_path / "cut")]
    assert names == ["1970-01-11", "1970-01-13", "1970-01-14", "1970-01-16"]


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    late = StreamSettings(start=datetime(1999, 1, 1, tzinfo=UTC))
    with pytest.raises(DataError, match="7 events before 1999-01-01 and 0 after it"):
        cut_log(LOG, DataSettings(), late, tmp_path / "cut")
    ordered = LOG.events.rename({"timestamp": "position"})
    with pytest.raises(ConfigError, match="order only, no time"):
        cut_log(
            RawTables(ordered, LOG.items, None, LOG.provenance, LOG.feedback),
            DataSettings(),
            TWO_DAYS,
            tmp_path / "cut",
        )
    with pytest.raises(ConfigError, match="no folder with events"):
        find_partitions(tmp_path)
