from pathlib import Path

import polars as pl
import pytest

from onerec.data.__main__ import main
from onerec.data.histories import Histories
from onerec.data.prepared import PreparedData
from onerec.data.tables import RawTables


@pytest.fixture
def folder(tables: RawTables, tmp_path: Path) -> Path:
    tables.events.write_parquet(tmp_path / "events.parquet")
    tables.items.write_parquet(tmp_path / "items.parquet")
    return tmp_path


def test_validate_prints_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--source", "parquet", "--from", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "text columns: title, kind" in printed
    assert printed.endswith("dropped: nothing\n")


def test_validate_refuses_with_counts_on_standard_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = pl.read_parquet(folder / "events.parquet")
    pl.concat([events, events[:2]]).write_parquet(folder / "events.parquet")
    assert main(["validate", "--source", "parquet", "--from", str(folder)]) == 1
    assert "duplicate event: 2 in events.parquet" in capsys.readouterr().err


def test_prepare_reads_the_data_section_of_a_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "run.yaml"
    config.write_text(f"data:\n  source: parquet\n  path: {folder}\n  core: {{user_events: 3}}\nmodel: {{width: 8}}\n")
    out = folder / "run" / "data"
    assert main(["prepare", "--config", str(config), "--set", "data.core.user_events=4", "--out", str(out)]) == 0
    assert PreparedData.load(out).num_users == 1
    assert "1 users, 5 items, 4 events" in capsys.readouterr().out


def test_misspelt_key_names_the_nearest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--source", "parquet", "--set", "data.core.user_event=4"]) == 1
    assert "Did you mean 'user_events'?" in capsys.readouterr().err


def test_a_source_that_is_no_name_is_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--source", str(folder)]) == 1
    assert "found no interactions.parquet there" in capsys.readouterr().err


def test_sources_are_listed_with_their_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources"]) == 0
    assert "parquet: your own events, items and users tables" in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Histories, "save", interrupt)
    out = folder / "run" / "data"
    assert main(["prepare", "--source", "parquet", "--from", str(folder), "--out", str(out)]) == 130
    assert "The same command goes on from here" in capsys.readouterr().err
    assert not list(out.parent.iterdir())


def test_own_tables_have_nothing_to_fetch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--source", "parquet"]) == 1
    assert "nothing to fetch" in capsys.readouterr().err
