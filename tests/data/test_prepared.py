import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onerec.data import prepared
from onerec.data.histories import Histories, Split
from onerec.data.prepared import PreparedData, prepare_tables
from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.tables import RawTables
from onerec.errors import ArtifactError, ConfigError, DataError
from tokenizer.artifacts import hash_settings
from tokenizer.settings import build_settings

TablesMaker = Callable[..., RawTables]


def settings(**section: Any) -> DataSettings:
    return build_settings(DataSettings, section, "test")


def test_artefact_by_hand(tables: RawTables, tmp_path: Path) -> None:
    data = prepare_tables(tables, DataSettings(), tmp_path / "data")
    assert (data.num_users, data.num_items, data.histories.num_events) == (3, 5, 10)
    assert data.items["item_id"].to_list() == ["a", "b", "c", "d", "e"]
    assert data.users.to_dicts() == [
        {"user_id": "ann", "age": 20},
        {"user_id": "bob", "age": 30},
        {"user_id": "cy", "age": 30},
    ]
    histories = data.histories
    np.testing.assert_array_equal(histories.offsets, [0, 4, 7, 10])
    np.testing.assert_array_equal(histories.items, [0, 2, 1, 3, 1, 2, 0, 0, 3, 1])
    np.testing.assert_array_equal(histories.timestamps, [100, 102, 104, 109, 101, 103, 108, 105, 106, 107])
    np.testing.assert_array_equal(histories.splits, [0, 0, 1, 2, 0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(histories.feedback["rating"], [4, 1, 2, 3, 3, 5, 2, 5, 4, 1])
    assert data.schema.text_columns == ("title", "kind")


def test_manifest_tells_where_data_come_from_and_what_was_dropped(tables: RawTables, tmp_path: Path) -> None:
    data = prepare_tables(tables, DataSettings(), tmp_path / "data")
    manifest = data.manifest
    assert manifest.inputs == {"events.parquet": "0"}
    assert manifest.config_hash == hash_settings(DataSettings())
    assert manifest.details["licence"] == "free"
    assert manifest.details["dropped"] == {"rows of the users table without an event": 1}
    assert "split: 4 train, 3 validation, 3 test" in manifest.details["report"]
    assert json.loads((tmp_path / "data" / "schema.json").read_text())["feedback"] == {"rating": "rating"}


def test_integer_ids_without_a_users_table(tables: RawTables, tmp_path: Path) -> None:
    numbers = {"ann": 70, "bob": 8, "cy": 9, "a": 5, "b": 4, "c": 3, "d": 2, "e": 1}
    numbered = replace(
        tables,
        events=tables.events.with_columns(pl.col("user_id", "item_id").replace_strict(numbers, return_dtype=pl.Int32)),
        items=tables.items.with_columns(pl.col("item_id").replace_strict(numbers, return_dtype=pl.Int64)),
        users=None,
    )
    data = prepare_tables(numbered, DataSettings(), tmp_path / "data")
    assert data.users["user_id"].to_list() == [8, 9, 70]
    assert data.items["item_id"].to_list() == [5, 4, 3, 2, 1]
    np.testing.assert_array_equal(data.histories.before(int(data.histories.offsets[3]) - 1), [0, 2, 1])


def test_core_renumbers_users_and_items(tables: RawTables, tmp_path: Path) -> None:
    # Only ann has 4 events; of her items a, c, b, d each has one event left, e none.
    data = prepare_tables(tables, settings(core={"user_events": 4, "item_events": 1}), tmp_path / "data")
    assert data.users["user_id"].to_list() == ["ann"]
    assert data.items["item_id"].to_list() == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(data.histories.items, [0, 2, 1, 3])
    assert data.manifest.details["dropped"] == {
        "events outside the core": 6,
        "users without events in the core": 2,
        "items outside the core": 1,
        "rows of the users table without an event": 3,
    }


def test_items_are_renumbered_where_the_first_one_goes(tables: RawTables, tmp_path: Path) -> None:
    events = tables.events.filter(pl.col("item_id") != "a")
    relaxed = settings(core={"item_events": 1})
    data = prepare_tables(replace(tables, events=events, parts={}), relaxed, tmp_path / "data")
    assert data.items["item_id"].to_list() == ["b", "c", "d"]
    np.testing.assert_array_equal(data.histories.items, [1, 0, 2, 0, 1, 2, 0])


def test_nothing_left_is_an_error(tables: RawTables, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no event is left of 10"):
        prepare_tables(tables, settings(core={"user_events": 5}), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_min_feedback_drops_and_counts(tables: RawTables, tmp_path: Path) -> None:
    liked = settings(min_feedback={"rating": 2}, policies={"single_event_users": "keep"})
    data = prepare_tables(tables, liked, tmp_path / "data")
    assert data.manifest.details["dropped"]["events with rating below 2"] == 2
    assert data.histories.feedback["rating"].min() == 2
    with pytest.raises(DataError, match=r"found 'likes', expected a feedback column \(rating\)"):
        prepare_tables(tables, settings(min_feedback={"likes": 1}), tmp_path / "data")


def test_feedback_not_recorded_is_nan(tables: RawTables, tmp_path: Path) -> None:
    events = tables.events.with_columns(like=pl.Series([None, 1, 0, 1, 0, 1, 0, 1, 0, 1], dtype=pl.Int8))
    feedback = {"like": FeedbackKind.BINARY}
    data = prepare_tables(replace(tables, events=events, feedback=feedback), DataSettings(), tmp_path / "data")
    np.testing.assert_array_equal(data.histories.feedback["like"], [1, 0, 1, 1, 0, 1, 0, np.nan, 0, 1])


def test_vectors_are_stored_as_float32_arrays(tables: RawTables, tmp_path: Path) -> None:
    items = tables.items.with_columns(vector=pl.Series([[0.5, 1.0]] * 5))
    data = prepare_tables(replace(tables, items=items), DataSettings(), tmp_path / "data")
    assert data.schema.vector_width == 2
    assert data.items["vector"].to_numpy().shape == (5, 2)
    assert data.items["vector"].to_numpy().dtype == np.float32


def test_order_only_events_keep_their_positions(tables: RawTables, tmp_path: Path) -> None:
    events = tables.events.drop("timestamp").with_columns(position=pl.Series([0, 0, 0, 2, 1, 1, 1, 3, 2, 2]))
    data = prepare_tables(replace(tables, events=events), DataSettings(), tmp_path / "data")
    assert not data.schema.has_time
    np.testing.assert_array_equal(data.histories.timestamps, [0, 1, 2, 3, 0, 1, 2, 0, 1, 2])
    with pytest.raises(ConfigError, match="order only"):
        prepare_tables(replace(tables, events=events), settings(split={"kind": "global_time"}), tmp_path / "data")


def test_split_column(tables: RawTables, tmp_path: Path) -> None:
    labels = pl.Series(["train", "train", "train", "valid", "train", "valid", "test", "test", "test", "test"])
    events = tables.events.with_columns(split=labels)
    by_column = settings(split={"kind": "column"})
    data = prepare_tables(replace(tables, events=events), by_column, tmp_path / "data")
    np.testing.assert_array_equal(data.histories.splits, [0, 0, 1, 2, 0, 1, 2, 0, 2, 2])
    backwards = tables.events.with_columns(split=labels.reverse())
    with pytest.raises(DataError, match="decrease within a user"):
        prepare_tables(replace(tables, events=backwards), by_column, tmp_path / "data")


def test_split_without_training_or_test_events(tables: RawTables, tmp_path: Path) -> None:
    for year, part in ((1969, "train"), (2020, "test")):
        dates = {"kind": "global_time", "validation_from": f"{year}-01-01", "test_from": f"{year}-02-01"}
        with pytest.raises(DataError, match=f"leaves no {part} event"):
            prepare_tables(tables, settings(split=dates), tmp_path / "data")


@pytest.mark.parametrize(
    "split",
    [{"kind": "leave_one_out"}, {"kind": "global_time", "validation_fraction": 0.2, "test_fraction": 0.3}],
)
def test_a_marker_in_the_test_period_changes_nothing_that_training_sees(
    tables: RawTables, tmp_path: Path, split: dict[str, Any]
) -> None:
    clean = prepare_tables(tables, settings(split=split), tmp_path / "clean")
    later = clean.histories.splits != Split.TRAIN
    users = clean.users["user_id"].gather(clean.histories.users_of(np.flatnonzero(later)))
    held_out = set(zip(users, clean.histories.timestamps[later], strict=True))
    is_later = pl.Series(
        [key in held_out for key in zip(tables.events["user_id"], tables.events["timestamp"], strict=True)]
    )
    marked_events = tables.events.with_columns(
        item_id=pl.when(is_later).then(pl.lit("e")).otherwise("item_id"),
        rating=pl.when(is_later).then(99.0).otherwise("rating"),
    )
    assert is_later.sum() == later.sum() > 0
    marked = prepare_tables(replace(tables, events=marked_events), settings(split=split), tmp_path / "marked")
    assert (marked.histories.items[later] == 4).all()  # the marker did arrive
    before, after = clean.histories.training(), marked.histories.training()
    for name in ("offsets", "items", "timestamps", "splits"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    np.testing.assert_array_equal(before.feedback["rating"], after.feedback["rating"])
    np.testing.assert_array_equal(before.item_counts(5), after.item_counts(5))
    assert clean.schema == marked.schema


def test_failure_leaves_the_last_good_artefact(
    tables: RawTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    prepare_tables(tables, DataSettings(), folder)

    def fill_the_disk(histories: Histories, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared.Histories, "save", fill_the_disk)
    with pytest.raises(ArtifactError, match="disk is full"):
        prepare_tables(tables, settings(core={"user_events": 4}), folder)
    assert PreparedData.load(folder).num_users == 3
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_unwritable_place(tables: RawTables, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write here"):
        prepare_tables(tables, DataSettings(), tmp_path / "file" / "data")


def test_loading_refuses_a_changed_or_missing_file(tables: RawTables, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with pytest.raises(ArtifactError, match=r"found no manifest.json"):
        PreparedData.load(folder)
    prepare_tables(tables, DataSettings(), folder)
    np.save(folder / "events" / "items.npy", np.zeros(10, dtype=np.int32))
    with pytest.raises(ArtifactError, match="changed or damaged"):
        PreparedData.load(folder)
