from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onerec.data.histories import Split
from onerec.data.prepared import PreparedData, prepare
from onerec.data.settings import DataSettings
from onerec.data.sources.folder import data_root, find_folder, load
from onerec.errors import ConfigError, DataError
from tokenizer.settings import build_settings

# Name -> users with events, catalogue, events, and settings the set cannot do without.
# The statistics that each set was published with.
PUBLISHED: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "amazon14_beauty": (22_363, 12_101, 198_502, {}),
    "amazon14_sports": (35_598, 18_357, 296_337, {}),
    "amazon18_games": (50_546, 16_859, 452_989, {"policies": {"items_without_text": "keep"}}),
    "amazon18_scientific": (8_442, 4_385, 59_427, {}),
    "amazon18_industrial": (7_286, 3_686, 49_015, {"split": {"kind": "column"}}),
    "microlens_50k": (49_887, 19_217, 359_048, {"split": {"kind": "column"}}),
    "movielens_100k": (943, 1_682, 100_000, {}),
    "movielens_latest_small": (671, 9_066, 100_004, {}),
    "kuairand_pure": (25_156, 7_583, 222_459, {"policies": {"duplicates": "keep", "single_event_users": "keep"}}),
    "trivago_sessions": (
        6_593,
        107_603,
        100_003,
        {"policies": {"unknown_items": "drop", "duplicates": "keep", "single_event_users": "keep"}},
    ),
}


def prepare_set(name: str, folder: Path, **section: Any) -> PreparedData:
    """Prepare one set from the shared data, or skip the test."""
    if not (data_root() / name).is_dir():
        pytest.skip(f"{name} is not under $ONEREC_DATA or ../shared/data")
    return prepare(build_settings(DataSettings, {"path": name} | section, name), folder)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "trivago_sessions"])
def test_published_statistics(name: str, tmp_path: Path) -> None:
    num_users, num_items, num_events, section = PUBLISHED[name]
    data = prepare_set(name, tmp_path / "data", **section)
    assert (data.num_users, data.num_items, data.histories.num_events) == (num_users, num_items, num_events)
    assert not any("event" in reason and "users table" not in reason for reason in data.manifest.details["dropped"])
    assert data.manifest.details["licence"] != "as the owner of the data says"


def test_trivago_actions_without_a_hotel_are_counted(tmp_path: Path) -> None:
    _, num_items, num_events, section = PUBLISHED["trivago_sessions"]
    data = prepare_set("trivago_sessions", tmp_path / "data", **section)
    assert data.num_items == num_items
    assert data.manifest.details["dropped"] == {"event of an unknown item": num_events - data.histories.num_events}
    assert len(np.unique(data.histories.items)) <= 13_949


def test_beauty_keeps_order_and_numbers(tmp_path: Path) -> None:
    data = prepare_set("amazon14_beauty", tmp_path / "data")
    given = pl.read_parquet(data_root() / "amazon14_beauty" / "interactions.parquet")
    np.testing.assert_array_equal(data.histories.items, given["item"])
    np.testing.assert_array_equal(data.histories.timestamps, given["position"])
    np.testing.assert_array_equal(data.histories.users_of(np.arange(given.height)), given["user"])
    np.testing.assert_array_equal(data.items["item_id"], np.arange(12_101))
    for split in (Split.VALIDATION, Split.TEST):
        assert len(data.histories.targets(split)) == 22_363
    assert data.schema.text_columns == ("title", "brand", "categories")


def test_beauty_is_a_5_core_already(tmp_path: Path) -> None:
    data = prepare_set("amazon14_beauty", tmp_path / "data", core={"user_events": 5, "item_events": 5})
    assert (data.num_users, data.num_items, data.histories.num_events) == (22_363, 12_101, 198_502)
    assert data.manifest.details["dropped"] == {}


def test_movielens_comes_down_to_the_published_5_core(tmp_path: Path) -> None:
    # The statistics that papers print for the 5-core of MovieLens 100K; every user has 20 ratings or more.
    data = prepare_set("movielens_100k", tmp_path / "data", core={"user_events": 5, "item_events": 5})
    assert (data.num_users, data.num_items, data.histories.num_events) == (943, 1_349, 99_287)
    assert data.manifest.details["dropped"] == {"events outside the core": 713, "items outside the core": 333}


def test_a_split_by_time_gives_kuairand_the_published_windows(tmp_path: Path) -> None:
    # The windows are days in Beijing. A split needs a validation part too, here the last day of the first window.
    midnight = datetime.fromisoformat("2022-05-01T00:00+08:00")
    split = {"kind": "global_time", "validation_from": midnight - timedelta(days=1), "test_from": midnight}
    policies = {"duplicates": "keep", "single_event_users": "keep"}
    histories = prepare_set("kuairand_pure", tmp_path / "data", split=split, policies=policies).histories
    columns = ["user", "timestamp_ms", "split"]
    given = pl.read_parquet(data_root() / "kuairand_pure" / "interactions.parquet", columns=columns)
    later = given.sort("user", "timestamp_ms", maintain_order=True)["split"].to_numpy() == "may01_may08"
    assert later.sum() == 130_647
    is_test = histories.splits == Split.TEST
    assert not (is_test & ~later).any()
    # The publisher's day begins up to an hour before that of its times: the two windows overlap there.
    assert (later & ~is_test).sum() == 186
    assert histories.timestamps[later & ~is_test].min() >= midnight.timestamp() - 3600
    assert (histories.splits == Split.VALIDATION).any()


@pytest.mark.parametrize(
    ("name", "counts"),
    [("microlens_50k", [287_768, 35_970, 35_310]), ("amazon18_industrial", [39_950, 4_532, 4_533])],
)
def test_published_splits(name: str, counts: list[int], tmp_path: Path) -> None:
    data = prepare_set(name, tmp_path / "data", split={"kind": "column"})
    np.testing.assert_array_equal(np.bincount(data.histories.splits), counts)


def test_kuairand_with_its_history(tmp_path: Path) -> None:
    labels = {"train": "train", "apr25_apr30": "train", "may01_may08": "test"}
    data = prepare_set(
        "kuairand_pure",
        tmp_path / "data",
        include_history=True,
        split={"kind": "column", "labels": labels},
        policies={"single_event_users": "keep"},
    )
    np.testing.assert_array_equal(np.bincount(data.histories.splits), [817_187 + 91_812, 0, 130_647])
    assert not data.schema.has_time
    assert set(data.histories.feedback) == {"is_like", "long_view"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two users with times in milliseconds, and earlier events of one of them without times."""
    pl.DataFrame(
        {
            "user": [0, 0, 1],
            "item": [1, 0, 1],
            "timestamp_ms": [2_000, 1_500, 900],
            "is_like": [1, 0, 1],
            "tab": [1, 5, 1],
        }
    ).write_parquet(tmp_path / "interactions.parquet")
    pl.DataFrame({"user": [0, 0], "item": [2, 1], "position": [4, 5], "is_like": [0, 1]}).write_parquet(
        tmp_path / "history.parquet"
    )
    pl.DataFrame({"item": [0, 1, 2], "title": ["a b", "c d", "e f"]}).write_parquet(tmp_path / "items.parquet")
    return tmp_path


def test_milliseconds_and_feedback_are_recognised(folder: Path) -> None:
    tables = load(DataSettings(path=folder))
    assert tables.events["timestamp"].to_list() == [2.0, 1.5, 0.9]
    assert tables.feedback == {"is_like": "binary"}
    assert "event columns not used: tab" in tables.notes
    assert tables.users is None


def test_history_goes_first(folder: Path) -> None:
    tables = load(DataSettings(path=folder, include_history=True))
    assert tables.events.sort("user_id", "position")["item_id"].to_list() == [2, 1, 0, 1, 1]
    assert tables.events.columns == ["user_id", "item_id", "position", "is_like"]
    assert tables.file_and_row("events", 2) == ("interactions.parquet", 0)
    assert set(tables.provenance.files) == {"history.parquet", "interactions.parquet", "items.parquet"}


def test_a_name_is_looked_up_under_the_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEREC_DATA", str(folder.parent))
    assert find_folder(Path(folder.name)) == folder
    assert find_folder(folder) == folder
    with pytest.raises(DataError, match=f"found no interactions.parquet there or under .*names there: {folder.name}"):
        find_folder(Path("amazon99"))
    with pytest.raises(ConfigError, match=r"data.path: found nothing"):
        find_folder(None)


def test_event_beyond_the_items_table(folder: Path) -> None:
    pl.DataFrame({"item": [0, 1], "title": ["a b", "c d"]}).write_parquet(folder / "items.parquet")
    with pytest.raises(DataError, match=r"event of an unknown item: 1 in history.parquet.*row 0 of history.parquet: 2"):
        prepare(
            build_settings(
                DataSettings,
                {"path": folder, "include_history": True, "policies": {"single_event_users": "keep"}},
                "test",
            ),
            folder / "run",
        )
