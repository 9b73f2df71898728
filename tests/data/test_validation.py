import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from onerec.data.prepared import validate
from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.tables import Part, RawTables
from onerec.errors import DataError
from tokenizer.settings import build_settings

TablesMaker = Callable[..., RawTables]


def settings(**policies: str) -> DataSettings:
    return build_settings(DataSettings, {"policies": policies}, "test")


def with_event(tables: RawTables, row: int, **values: Any) -> RawTables:
    """The tables with some cells of one event replaced."""
    events = tables.events.with_columns(
        pl.when(pl.arange(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    )
    return replace(tables, events=events)


def with_items(tables: RawTables, **columns: Any) -> RawTables:
    return replace(tables, items=tables.items.with_columns(pl.Series(name, column) for name, column in columns.items()))


def test_good_tables_pass_and_say_so(tables: RawTables) -> None:
    report = validate(tables, DataSettings())
    assert report.offences == []
    assert list(report.lines())[-1] == "dropped: rows of the users table without an event: 1"


@pytest.mark.parametrize(
    ("table", "column"), [("events", "user_id"), ("events", "rating"), ("items", "item_id"), ("users", "user_id")]
)
def test_missing_column(tables: RawTables, table: str, column: str) -> None:
    broken = replace(tables, **{table: getattr(tables, table).drop(column)})
    with pytest.raises(
        DataError, match=rf"missing column: 1 in .*{table[:-1] if table != 'events' else 'first'}.*'{column}'"
    ):
        validate(broken, DataSettings())


def test_missing_moment(tables: RawTables) -> None:
    with pytest.raises(DataError, match="found neither timestamp nor position"):
        validate(replace(tables, events=tables.events.drop("timestamp")), DataSettings())


def test_several_missing_columns_and_an_empty_table_come_in_one_error(tables: RawTables) -> None:
    broken = replace(tables, events=tables.events.drop("item_id"), items=tables.items.clear())
    with pytest.raises(DataError, match=r"(?s)2 kind.*missing column.*'item_id'.*empty table: 1 in items.parquet"):
        validate(broken, DataSettings())


@pytest.mark.parametrize("table", ["events", "items", "users"])
def test_empty_table(tables: RawTables, table: str) -> None:
    with pytest.raises(DataError, match=r"empty table.*found 0 rows"):
        validate(replace(tables, **{table: getattr(tables, table).clear()}), DataSettings())


@pytest.mark.parametrize(
    ("column", "dtype", "found"),
    [
        ("user_id", pl.Float64, "Float64"),
        ("timestamp", pl.String, "String"),
        ("rating", pl.String, "String"),
        ("position", pl.Float64, "Float64"),
        ("split", pl.Int64, "Int64"),
    ],
)
def test_wrong_type(tables: RawTables, column: str, dtype: type[pl.DataType], found: str) -> None:
    column_of_type = pl.arange(10).cast(dtype).alias(column)
    with pytest.raises(DataError, match=rf"wrong type.*'{column}' \(found {found}\)"):
        validate(replace(tables, events=tables.events.with_columns(column_of_type)), DataSettings())


def test_keys_of_two_types(tables: RawTables) -> None:
    numbered = with_items(tables, item_id=list(range(5)))
    with pytest.raises(DataError, match="found String in events and Int64 in items"):
        validate(numbered, DataSettings())


def test_feedback_column_with_a_slash(tables: RawTables) -> None:
    events = tables.events.rename({"rating": "rating/5"})
    with pytest.raises(DataError, match="unusable name"):
        validate(replace(tables, events=events, feedback={"rating/5": FeedbackKind.RATING}), DataSettings())


def test_offence_names_the_file_and_the_row_within_it(tables: RawTables) -> None:
    with pytest.raises(DataError, match=r"null timestamp: 1 in second.parquet.*row 2 of second.parquet: None"):
        validate(with_event(tables, 6, timestamp=None), DataSettings())


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null timestamp"),
        (float("nan"), "NaN timestamp"),
        (time.time() + 3600, "future timestamp"),
        (float("inf"), "future timestamp"),
        (float("-inf"), "timestamp before the year 1"),
    ],
)
def test_bad_timestamps_are_refused_or_dropped_and_counted(tables: RawTables, value: Any, kind: str) -> None:
    events = tables.events.with_columns(pl.col("timestamp").cast(pl.Float64))
    broken = with_event(replace(tables, events=events), 1, timestamp=value)
    with pytest.raises(DataError, match=rf"1 kind\(s\).*\n.*{kind}: 1 .*data.policies.bad_timestamps=drop"):
        validate(broken, DataSettings())
    assert validate(broken, settings(bad_timestamps="drop")).dropped[kind] == 1


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Float64])
def test_milliseconds_taken_for_seconds_are_named(tables: RawTables, dtype: type[pl.DataType]) -> None:
    in_ms = (pl.lit(1_500_000_000_000) + pl.col("timestamp")).cast(dtype).alias("timestamp")
    events = tables.events.with_columns(in_ms)
    with pytest.raises(DataError, match=r"wrong unit: .*after the year 5000\): set data.timestamp_unit=ms or us"):
        validate(replace(tables, events=events), DataSettings())


def test_duplicate_events(tables: RawTables) -> None:
    doubled = replace(tables, events=pl.concat([tables.events, tables.events[[2, 4]]]))
    doubled = replace(doubled, parts={"events": (Part("log.parquet", 12),)})
    with pytest.raises(DataError, match=r"duplicate event: 2 in log.parquet.*row 10 of log.parquet.*row 11"):
        validate(doubled, DataSettings())
    assert validate(doubled, settings(duplicates="drop")).dropped["duplicate event"] == 2
    kept = validate(doubled, settings(duplicates="keep"))
    assert "duplicate event" not in kept.dropped
    assert "keep by policy" in str(kept.offences[0])


def test_one_position_twice_is_a_duplicate_where_only_the_order_is_known(tables: RawTables) -> None:
    events = tables.events.drop("timestamp").with_columns(position=pl.Series([0, 0, 0, 1, 2, 1, 1, 2, 2, 2]))
    with pytest.raises(DataError, match=r"duplicate event: 1 .*'position'.*row 3 of second.parquet: 2"):
        validate(replace(tables, events=events), DataSettings())


@pytest.mark.parametrize("item", ["zebra", None])
def test_event_of_an_unknown_item(tables: RawTables, item: str | None) -> None:
    broken = with_event(tables, 3, item_id=item)
    with pytest.raises(
        DataError, match=rf"event of an unknown item: 1 in first.parquet.*row 3 of first.parquet: {item!r}"
    ):
        validate(broken, DataSettings())
    assert validate(broken, settings(unknown_items="drop")).dropped["event of an unknown item"] == 1


def test_null_user_is_always_refused(tables: RawTables) -> None:
    with pytest.raises(DataError, match="null user: 1"):
        validate(with_event(tables, 3, user_id=None), DataSettings())


def test_user_with_one_event(tables: RawTables) -> None:
    broken = with_event(tables, 9, user_id="eve")
    with pytest.raises(DataError, match=r"user with one event: 1 .*'eve'.*single_event_users=keep"):
        validate(broken, DataSettings())
    report = validate(broken, settings(single_event_users="keep"))
    assert report.offences[0].policy == "keep"
    core = build_settings(DataSettings, {"core": {"user_events": 2}}, "test")
    assert validate(broken, core).dropped["users without events in the core"] == 1


def test_item_without_text(tables: RawTables) -> None:
    broken = with_items(tables, title=["red lamp", None, " ", "new chair", ""], kind=["lamp", None, "", "chair", None])
    with pytest.raises(
        DataError, match=r"item without text: 3 in items.parquet, column 'title'.*row 1 .*row 2 .*row 4"
    ):
        validate(broken, DataSettings(text_columns=("title", "kind")))
    validate(
        broken, DataSettings(text_columns=("title", "kind"), policies=settings(items_without_text="keep").policies)
    )


def test_item_outside_the_core_needs_no_text(tables: RawTables) -> None:
    broken = with_items(tables, title=["red lamp", "blue lamp", "old chair", "new chair", None])
    section = {"core": {"item_events": 1}, "text_columns": ["title"]}
    assert validate(broken, build_settings(DataSettings, section, "test")).dropped["items outside the core"] == 1


@pytest.mark.parametrize("key", ["a", None])
def test_item_key_repeated_or_null(tables: RawTables, key: str | None) -> None:
    with pytest.raises(DataError, match=r"(repeated|null) item_id: 1 in items.parquet.*row 4"):
        validate(with_items(tables, item_id=["a", "b", "c", "d", key]), DataSettings())


@pytest.mark.parametrize(
    ("vector", "kind"),
    [([1.0], "vector not 2 wide"), (None, "item without vector"), ([1.0, float("inf")], "vector with NaN or infinity")],
)
def test_broken_vectors(tables: RawTables, vector: list[float] | None, kind: str) -> None:
    with pytest.raises(DataError, match=rf"{kind}: 1 in items.parquet.*row 2 of items.parquet"):
        validate(with_items(tables, vector=[[0.0, 1.0], [1.0, 1.0], vector, [0.0, 2.0], [3.0, 0.0]]), DataSettings())


def test_vectors_that_are_no_numbers(tables: RawTables) -> None:
    with pytest.raises(DataError, match=r"wrong type.*'vector'"):
        validate(with_items(tables, vector=["1,2"] * 5), DataSettings())


@pytest.mark.parametrize(
    ("kind", "value", "bad"),
    [
        ("binary", 2.0, True),
        ("binary", 1.0, False),
        ("count", 0.5, True),
        ("count", -1.0, True),
        ("seconds", -0.1, True),
        ("seconds", 2.5, False),
        ("rating", float("nan"), True),
        ("rating", -3.0, False),
        ("binary", None, False),
    ],
)
def test_feedback_values_fit_their_kind(make_tables: TablesMaker, kind: str, value: Any, bad: bool) -> None:
    values = pl.Series("rating", [1.0] * 9 + [value])
    tables = make_tables(feedback={"rating": FeedbackKind(kind)})
    tables = replace(tables, events=tables.events.with_columns(values))
    if not bad:
        assert validate(tables, DataSettings()).offences == []
        return
    with pytest.raises(DataError, match=f"value that is no {kind}: 1 in second.parquet"):
        validate(tables, DataSettings())


def test_all_kinds_of_offence_come_in_one_error(tables: RawTables) -> None:
    broken = with_event(with_event(tables, 0, timestamp=None), 3, item_id="zebra")
    broken = with_items(broken, title=[None, "x", "y", "z", ""], kind=[None, "a b", "c", "d", "e"])
    with pytest.raises(DataError) as raised:
        validate(broken, DataSettings(text_columns=("title", "kind")))
    for kind in ("null timestamp: 1", "event of an unknown item: 1", "item without text: 1"):
        assert kind in str(raised.value)


def test_rows_of_a_table_without_parts_are_its_own(tables: RawTables) -> None:
    assert replace(tables, parts={}).file_and_row("events", 7) == ("events", 7)
    assert tables.file_and_row("events", 3) == ("first.parquet", 3)
    assert tables.file_and_row("events", np.int64(4)) == ("second.parquet", 0)
