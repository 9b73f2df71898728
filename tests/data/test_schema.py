from datetime import date, datetime

import numpy as np
import polars as pl
import pytest

from onerec.data.schema import is_identifier, rename_columns, resolve_feedback, resolve_schema, timestamps_in_seconds
from onerec.data.settings import ColumnNames, DataSettings, FeedbackKind
from onerec.data.tables import RawTables
from onerec.errors import DataError


def test_columns_are_renamed_and_a_squatter_of_a_reserved_name_goes() -> None:
    frame = pl.DataFrame({"who": [1], "what": [2], "when": [3], "position": [4], "user_id": [5], "rating": [6]})
    names = ColumnNames(user="who", item="what", timestamp="when")
    renamed = rename_columns(frame, names, "log.parquet")
    assert renamed.to_dicts() == [{"user_id": 1, "item_id": 2, "timestamp": 3, "rating": 6}]


def test_all_missing_columns_of_a_file_are_named() -> None:
    with pytest.raises(DataError, match=r"log.parquet: missing columns 'item_id', 'timestamp'; found 'user_id'"):
        rename_columns(pl.DataFrame({"user_id": [1]}), ColumnNames(), "log.parquet")


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ([1_500_000_000], "s", 1_500_000_000),
        ([1_500_000_000_250], "ms", 1_500_000_000.25),
        ([1_500_000_000_250_000], "us", 1_500_000_000.25),
        ([datetime(1970, 1, 2, 0, 0, 0, 500_000)], "s", 86_400.5),
        ([date(1970, 1, 2)], "s", 86_400),
    ],
)
def test_timestamps_become_seconds(values: list[object], unit: str, expected: float) -> None:
    frame = timestamps_in_seconds(pl.DataFrame({"timestamp": values}), unit, "log.parquet")
    assert frame["timestamp"].item() == expected


def test_text_timestamps_are_refused() -> None:
    with pytest.raises(DataError, match="'timestamp' is String, expected numbers or dates"):
        timestamps_in_seconds(pl.DataFrame({"timestamp": ["yesterday"]}), "s", "log.parquet")


def test_feedback_kinds_are_guessed_and_told() -> None:
    events = pl.DataFrame(
        {
            "user_id": [1, 2],
            "rating": [1, 0],
            "is_click": pl.Series([0, 1], dtype=pl.Int8),
            "long_view": [1, None],
            "shown": [True, False],
            "play_time_ms": [1500, 250],
            "watch_seconds": [1.0, 2.0],
            "tab": [3, 1],
            "city": ["x", "y"],
        }
    )
    resolved, kinds, notes = resolve_feedback(events, "auto", "log.parquet")
    assert kinds == {
        "rating": FeedbackKind.RATING,
        "is_click": FeedbackKind.BINARY,
        "long_view": FeedbackKind.BINARY,
        "shown": FeedbackKind.BINARY,
        "play_time_s": FeedbackKind.SECONDS,
        "watch_seconds": FeedbackKind.SECONDS,
    }
    np.testing.assert_allclose(resolved["play_time_s"].to_numpy(), [1.5, 0.25])
    assert set(resolved.columns) == {"user_id", *kinds}
    assert "event columns not used: tab, city" in notes


def test_declared_feedback_must_be_there() -> None:
    with pytest.raises(DataError, match="missing column 'likes'"):
        resolve_feedback(pl.DataFrame({"user_id": [1]}), {"likes": FeedbackKind.COUNT}, "log.parquet")


@pytest.mark.parametrize(
    ("values", "expected"),
    [(["B01", "B02", None], True), (["B01", "B01"], False), (["B01", "red lamp"], False)],
)
def test_identifiers_are_distinct_and_without_blanks(values: list[str | None], expected: bool) -> None:
    assert is_identifier(pl.Series(values)) is expected


def test_auto_text_and_categories(tables: RawTables) -> None:
    items = tables.items.with_columns(asin=pl.Series([f"B{k}" for k in range(5)]), empty=pl.lit(None, pl.String))
    tables = RawTables(tables.events, items, tables.users, tables.provenance, tables.feedback)
    schema, notes = resolve_schema(tables, DataSettings())
    assert schema.text_columns == ("title", "kind")
    assert schema.category_columns == ()  # five items of three kinds: not two of each on average
    assert schema.user_category_columns == ("age",)
    assert schema.has_time
    assert schema.vector_width is None
    assert "text columns: title, kind" in notes


def test_declared_columns_keep_their_order(tables: RawTables) -> None:
    settings = DataSettings(text_columns=("kind", "title"), category_columns=("kind",))
    schema, _ = resolve_schema(tables, settings)
    assert schema.text_columns == ("kind", "title")
    assert schema.category_columns == ("kind",)


def test_declared_text_column_must_be_a_string_that_is_there(tables: RawTables) -> None:
    numbered = RawTables(tables.events, tables.items.with_columns(year=2000), None, tables.provenance)
    with pytest.raises(DataError, match="text column 'year' is Int32, expected String"):
        resolve_schema(numbered, DataSettings(text_columns=("year",)))
    with pytest.raises(DataError, match="missing column 'titel'"):
        resolve_schema(tables, DataSettings(text_columns=("titel",)))
