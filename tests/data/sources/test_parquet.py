from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onerec.data.prepared import prepare, validate
from onerec.data.settings import DataSettings
from onerec.data.sources.parquet import load
from onerec.data.tables import RawTables
from onerec.errors import ConfigError, DataError
from tokenizer.settings import build_settings


@pytest.fixture
def folder(tables: RawTables, tmp_path: Path) -> Path:
    """Own tables under their own column names, the log in two files."""
    own = {"user_id": "who", "item_id": "what", "timestamp": "when_ms", "rating": "stars"}
    events = tables.events.with_columns(pl.col("timestamp") * 1000).rename(own)
    events[:4].write_parquet(tmp_path / "log-1.parquet")
    events[4:].write_parquet(tmp_path / "log-2.parquet")
    tables.items.rename({"item_id": "what"}).with_columns(pl.col("kind").cast(pl.Categorical)).write_parquet(
        tmp_path / "items.parquet"
    )
    assert tables.users is not None
    tables.users.rename({"user_id": "who"}).write_parquet(tmp_path / "users.parquet")
    return tmp_path


def settings(folder: Path, **section: Any) -> DataSettings:
    columns = {"user": "who", "item": "what", "timestamp": "when_ms"}
    default: dict[str, Any] = {
        "source": "parquet",
        "path": folder,
        "columns": columns,
        "files": {"events": "log-*.parquet"},
        "timestamp_unit": "ms",
        "feedback": {"stars": "rating"},
    }
    return build_settings(DataSettings, default | section, "test")


def test_own_tables_come_under_the_projects_names(folder: Path) -> None:
    tables = load(settings(folder))
    assert tables.events.columns == ["user_id", "item_id", "timestamp", "stars"]
    assert tables.events["timestamp"].to_list() == [105, 100, 101, 104, 102, 103, 106, 109, 108, 107]
    assert tables.items.schema == {"item_id": pl.String, "title": pl.String, "kind": pl.String}
    assert tables.file_and_row("events", 5) == ("log-2.parquet", 1)
    assert set(tables.provenance.files) == {"log-1.parquet", "log-2.parquet", "items.parquet", "users.parquet"}
    assert all(len(digest) == 64 for digest in tables.provenance.files.values())


def test_own_tables_prepare(folder: Path) -> None:
    data = prepare(settings(folder), folder / "run")
    np.testing.assert_array_equal(data.histories.items, [0, 2, 1, 3, 1, 2, 0, 0, 3, 1])
    np.testing.assert_array_equal(data.histories.feedback["stars"], [4, 1, 2, 3, 3, 5, 2, 5, 4, 1])
    assert data.users["age"].to_list() == [20, 30, 30]


def test_users_table_may_be_absent(folder: Path) -> None:
    (folder / "users.parquet").unlink()
    assert load(settings(folder)).users is None


def test_truncated_file(folder: Path) -> None:
    whole = (folder / "log-2.parquet").read_bytes()
    (folder / "log-2.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"log-2.parquet: cannot be read as Parquet .*truncated: write it again"):
        load(settings(folder))


def test_missing_files(folder: Path) -> None:
    with pytest.raises(DataError, match=r"found no file 'clicks.parquet'"):
        load(settings(folder, files={"events": "clicks.parquet"}))
    (folder / "items.parquet").unlink()
    with pytest.raises(DataError, match="no such file, expected a Parquet table"):
        load(settings(folder))
    with pytest.raises(ConfigError, match=r"data.path: found nothing"):
        load(DataSettings(source="parquet"))


def test_missing_columns_name_the_file(folder: Path) -> None:
    with pytest.raises(DataError, match=r"log-1.parquet: missing column 'when'; found 'who', 'what', 'when_ms'"):
        load(settings(folder, columns={"user": "who", "item": "what", "timestamp": "when"}))
    pl.read_parquet(folder / "items.parquet").rename({"what": "sku"}).write_parquet(folder / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet: missing column 'what'; found 'sku'"):
        load(settings(folder))


def test_files_of_one_log_must_agree(folder: Path) -> None:
    pl.DataFrame({"who": [1], "what": [2], "when_ms": [3], "stars": ["four"]}).write_parquet(folder / "log-3.parquet")
    with pytest.raises(DataError, match=r"log-1.parquet, log-2.parquet, log-3.parquet: the event files differ"):
        load(settings(folder))


def test_vectors_beside_the_items(folder: Path) -> None:
    vectors = np.arange(15, dtype=np.float64).reshape(5, 3)
    np.save(folder / "vectors.npy", vectors)
    with_vectors = settings(folder, vectors=folder / "vectors.npy")
    data = prepare(with_vectors, folder / "run")
    np.testing.assert_array_equal(data.items["vector"].to_numpy(), vectors.astype(np.float32))
    vectors[2, 1] = np.nan
    np.save(folder / "vectors.npy", vectors)
    with pytest.raises(DataError, match=r"vector with NaN or infinity: 1 in items.parquet"):
        validate(load(with_vectors), with_vectors)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((4, 3)), "found 4 vectors, expected one for each of 5 items"),
        (np.zeros(5), r"found float64 of shape \(5,\)"),
        (np.array([["a"]] * 5), "expected numbers"),
        (b"not an array", "cannot be read as .npy"),
    ],
)
def test_vectors_that_do_not_fit(folder: Path, vectors: Any, message: str) -> None:
    file = folder / "vectors.npy"
    if isinstance(vectors, bytes):
        file.write_bytes(vectors)
    else:
        np.save(file, vectors)
    with pytest.raises(DataError, match=message):
        load(settings(folder, vectors=file))
