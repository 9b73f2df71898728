"""The three tables on disk, the command that writes them, and the source that reads them."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from onerec.data.settings import DataSettings, FeedbackKind
from onerec.data.sources import find_source
from onerec.errors import ArtifactError
from onerec.world.__main__ import main
from onerec.world.settings import WorldSettings
from onerec.world.tables import open_world, write_world
from onerec.world.world import EVENT_COLUMNS, World

SETTINGS = WorldSettings(num_users=50, num_items=110, num_events=1_234, seed=6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_world(SETTINGS, tmp_path / "world")
    return tmp_path / "world"


def test_tables_hold_the_log_in_the_stated_schema(folder: Path) -> None:
    events = pl.read_parquet(folder / "events.parquet")
    assert events.columns == list(EVENT_COLUMNS)
    assert sum(events.null_count().row(0)) == 0
    (block,) = World(SETTINGS).log()
    for name in EVENT_COLUMNS:
        np.testing.assert_array_equal(events[name].to_numpy(), block[name], strict=True)
    items, users = pl.read_parquet(folder / "items.parquet"), pl.read_parquet(folder / "users.parquet")
    assert items.columns == ["item_id", "title", "topic_group", "topic", "duration_seconds", "vector"]
    assert items["item_id"].to_list() == list(range(110))
    assert items["vector"].dtype == pl.Array(pl.Float32, SETTINGS.vector_width)
    assert users["user_id"].to_list() == list(range(50))


def test_the_command_gives_the_same_content_twice_and_in_smaller_blocks(tmp_path: Path, folder: Path) -> None:
    sizes = ["--users", "50", "--items", "110", "--events", "1234", "--seed", "6"]
    for name, more in {"again": [], "blocks": ["--set", "block_events=100"]}.items():
        assert main([*sizes, *more, "--out", str(tmp_path / name)]) == 0
    for table in ("events", "items", "users"):
        expected = pl.read_parquet(folder / f"{table}.parquet")
        for name in ("again", "blocks"):
            assert pl.read_parquet(tmp_path / name / f"{table}.parquet").equals(expected)
        assert (tmp_path / "again" / f"{table}.parquet").read_bytes() == (folder / f"{table}.parquet").read_bytes()


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--users", "50", "--events", "10", "--out", str(tmp_path / "world")]) == 2
    assert "at least one a user" in capsys.readouterr().err
    assert not (tmp_path / "world").exists()
    (tmp_path / "file").write_text("")
    assert main(["--events", "2000", "--out", str(tmp_path / "file" / "world")]) == 2
    assert "cannot write here" in capsys.readouterr().err
    assert main(["--events", "2000", "--out", str(tmp_path)]) == 2
    assert "would be lost" in capsys.readouterr().err
    assert (tmp_path / "file").exists()


def test_ctrl_c_leaves_the_last_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--users", "50", "--items", "110", "--events", "1234", "--out", str(tmp_path / "world")]
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "world").iterdir()}

    def interrupt(_: World) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(World, "log", interrupt)
    assert main(command) == 130
    assert "is as it was before" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "world").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_a_world_opened_again_goes_on_from_its_log(folder: Path) -> None:
    world = open_world(folder)
    assert world.settings == SETTINGS
    np.testing.assert_array_equal(world.users_at(np.array([3])).requests_B, -(-world.num_events_U[3:4] // 5))
    with pytest.raises(ArtifactError, match="expected a finished 'world'"):
        open_world(folder.parent)


def test_the_source_reads_what_it_would_simulate(folder: Path) -> None:
    load = find_source("world").load
    simulated = load(DataSettings(source="world", world=SETTINGS))
    stored = load(DataSettings(source="world", path=folder))
    assert stored.events.equals(simulated.events)
    assert stored.items.equals(simulated.items)
    assert stored.users is not None
    assert stored.users.equals(simulated.users)
    assert stored.feedback["click"] is FeedbackKind.BINARY
    assert stored.feedback["watch_seconds"] is FeedbackKind.SECONDS
    assert set(stored.feedback) < set(EVENT_COLUMNS)
    assert set(stored.provenance.files) == {"events.parquet", "items.parquet", "users.parquet"}
