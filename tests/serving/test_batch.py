"""A table of users: the evaluator's answers, the same whether a run was broken off or not."""

import re
import signal
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import serve
from onerec.bundle import Bundle
from onerec.errors import ConfigError, DataError
from onerec.serving.batch import Batch, BatchSettings, Workers, run_batch
from onerec.serving.changes import ItemChange, SqliteChanges
from onerec.serving.histories import SqliteHistories, StoredEvent
from tests.processes import started


def write_users(path: Path, num_users: int = 21) -> list[list[int]]:
    """Users u0, u1, … with histories of 0 to 12 items; the histories."""
    random = np.random.default_rng(0)
    histories = [random.integers(100, 140, random.integers(0, 13)).tolist() for _ in range(num_users)]
    users = [f"u{number}" for number in range(num_users)]
    schema = {"user_id": pl.String, "history": pl.List(pl.Int64)}
    pl.DataFrame({"user_id": users, "history": histories}, schema=schema).write_parquet(path)
    return histories


@pytest.fixture
def users(tmp_path: Path) -> Path:
    write_users(tmp_path / "users.parquet")
    return tmp_path / "users.parquet"


def test_the_answers_are_the_evaluators(small_bundle: Path, tmp_path: Path) -> None:
    histories = write_users(tmp_path / "users.parquet", 9)
    out = tmp_path / "out.parquet"
    assert run_batch(small_bundle, tmp_path / "users.parquet", out, None, BatchSettings(k=5)) == 9
    recs = pl.read_parquet(out)
    indices = [np.array(history, dtype=np.int64) - 100 for history in histories]
    expected = Bundle.load(small_bundle).recommender().recommend(indices, 5, exclude_seen=True)
    assert recs["user_id"].to_list() == [f"u{number}" for number in range(9)]
    assert recs["items"].to_list() == (expected.items_BK + 100).tolist()
    np.testing.assert_array_equal(np.array(recs["scores"].to_list(), dtype=np.float32), expected.scores_BK)
    assert recs["history_items_unknown"].to_list() == [0] * 9
    assert recs.schema["items"] == pl.List(pl.Int64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "users.parquet"]


@pytest.mark.slow
def test_compiled_programs_answer_alike(small_bundle: Path, users: Path, tmp_path: Path) -> None:
    answers = []
    for compiled in (False, True):
        out = tmp_path / f"{compiled}.parquet"
        run_batch(small_bundle, users, out, None, BatchSettings(k=5, compile=compiled))
        answers.append(pl.read_parquet(out))
    eager, program = answers
    assert program.drop("scores").equals(eager.drop("scores"))
    scores = [np.array(recs["scores"].to_list()) for recs in answers]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4)


def test_a_killed_run_goes_on_and_gives_what_an_unbroken_one_gives(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = tmp_path / "users.parquet"
    write_users(users, 400)
    settings = ["--set", "users_per_part=8", "--set", "k=3"]
    broken, parts = tmp_path / "broken.parquet", tmp_path / "broken.parquet.parts"
    command = ["batch", "--bundle", str(small_bundle), "--users", str(users), "--out", str(broken), *settings]
    with started(serve.main, command) as process:
        while process.is_alive() and len(list(parts.glob("0*.parquet"))) < 3:
            time.sleep(0.002)
    assert process.exitcode == -signal.SIGKILL
    made = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}
    assert 3 <= len(made) < 50
    assert not broken.exists()

    assert serve.main(command) == 0
    assert capsys.readouterr().out == f"{broken}: 400 users answered\n"
    unbroken = tmp_path / "unbroken.parquet"
    run_batch(small_bundle, users, unbroken, None, BatchSettings(users_per_part=8, k=3))
    assert pl.read_parquet(broken).equals(pl.read_parquet(unbroken))
    assert not parts.exists()


def test_finished_parts_are_not_made_again(
    small_bundle: Path, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "out.parquet", BatchSettings(users_per_part=8)
    break_off(monkeypatch, small_bundle, users, out, settings)
    parts = sorted((tmp_path / "out.parquet.parts").glob("0*.parquet"))
    assert [part.name for part in parts] == [f"{start:012d}.parquet" for start in (0, 8)]
    marked = pl.read_parquet(parts[0]).with_columns(user_id=pl.lit("kept"))
    marked.write_parquet(parts[0])
    run_batch(small_bundle, users, out, None, settings)
    assert pl.read_parquet(out)["user_id"].to_list() == ["kept"] * 8 + [f"u{number}" for number in range(8, 21)]


def break_off(monkeypatch: pytest.MonkeyPatch, bundle: Path, users: Path, out: Path, settings: BatchSettings) -> None:
    """Run up to the third part and no further."""
    make_part = Batch.part

    def interrupted(batch: Batch, start: int) -> pl.DataFrame:
        if start >= 2 * settings.users_per_part:
            raise KeyboardInterrupt
        return make_part(batch, start)

    with monkeypatch.context() as patched:
        patched.setattr(Batch, "part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_batch(bundle, users, out, None, settings)


def test_parts_of_another_run_are_refused(
    small_bundle: Path, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, settings = tmp_path / "out.parquet", BatchSettings(users_per_part=8)
    break_off(monkeypatch, small_bundle, users, out, settings)
    with pytest.raises(ConfigError, match="found parts of another run"):
        run_batch(small_bundle, users, out, None, settings.model_copy(update={"k": 9}))


def test_the_servers_state_gives_histories_and_the_catalogue(small_bundle: Path, tmp_path: Path) -> None:
    users, state = tmp_path / "users.parquet", tmp_path / "state.sqlite"
    pl.DataFrame({"user_id": [7, 8]}).write_parquet(users)
    histories, changes = SqliteHistories(state), SqliteChanges(state)
    histories.append([StoredEvent("7", "103", 1.0), StoredEvent("7", "gone", 2.0), StoredEvent("7", "117", 3.0)])
    recommender = Bundle.load(small_bundle).recommender()
    known, nobody = np.array([3, 17]), np.array([], dtype=np.int64)
    expected = recommender.recommend([known, nobody], 11, exclude_seen=True).items_BK + 100
    best = int(expected[0, 0])
    changes.write([ItemChange(str(best), removed=True)])
    histories.close()
    changes.close()
    run_batch(small_bundle, users, tmp_path / "out.parquet", state, BatchSettings(beams=40))
    recs = pl.read_parquet(tmp_path / "out.parquet")
    assert recs["user_id"].to_list() == [7, 8]
    assert recs["history_items_unknown"].to_list() == [1, 0]
    exact = Bundle.load(small_bundle).recommender(40).recommend([known, nobody], 11, exclude_seen=True).items_BK + 100
    assert recs["items"].to_list() == [[item for item in row.tolist() if item != best][:10] for row in exact]


def test_fewer_items_where_fewer_are_left(small_bundle: Path, tmp_path: Path) -> None:
    users = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": ["a"], "history": [list(range(100, 138))]}).write_parquet(users)
    run_batch(small_bundle, users, tmp_path / "out.parquet", None, BatchSettings(k=5))
    assert sorted(pl.read_parquet(tmp_path / "out.parquet")["items"][0]) == [138, 139]


@pytest.mark.parametrize(
    ("table", "settings", "reason"),
    [
        ({"user": [1]}, BatchSettings(), "found the columns user, expected 'user_id'"),
        ({"user_id": [1]}, BatchSettings(), "found no 'history', expected a column 'history' with lists"),
        ({"user_id": [1], "history": ["103"]}, BatchSettings(), "found 'history' of type String"),
        ({"user_id": [], "history": pl.Series([], dtype=pl.List(pl.Int64))}, BatchSettings(), "found no user"),
        ({"user_id": [1], "history": [[103]]}, BatchSettings(k=5, beams=4), "beams: found 4 for k = 5"),
    ],
)
def test_a_bad_table_is_refused(
    small_bundle: Path, tmp_path: Path, table: dict[str, list[object]], settings: BatchSettings, reason: str
) -> None:
    pl.DataFrame(table).write_parquet(tmp_path / "users.parquet")
    with pytest.raises((DataError, ConfigError), match=re.escape(reason)):
        run_batch(small_bundle, tmp_path / "users.parquet", tmp_path / "out.parquet", None, settings)
    assert not (tmp_path / "out.parquet").exists()


def test_workers_that_cannot_be_had_are_refused(small_bundle: Path, users: Path, tmp_path: Path) -> None:
    SqliteHistories(tmp_path / "state.sqlite").close()
    where = (small_bundle, users, tmp_path / "out.parquet", tmp_path / "state.sqlite", BatchSettings())
    with pytest.raises(ConfigError, match="workers: found 0, expected at least 1"):
        run_batch(*where, Workers(0))
    with pytest.raises(ConfigError, match=r"found the SQLite file .*state\.sqlite, expected the address of a Redis"):
        run_batch(*where, Workers(2, "auto"))


def test_files_that_cannot_be_read_are_refused(small_bundle: Path, users: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with pytest.raises(DataError, match="found no such file, expected the server's SQLite file"):
        run_batch(small_bundle, users, out, tmp_path / "none.sqlite", BatchSettings())
    users.write_bytes(b"no table")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        run_batch(small_bundle, users, out, None, BatchSettings())
    with pytest.raises(DataError, match="not a readable Parquet file"):
        run_batch(small_bundle, tmp_path / "none.parquet", out, None, BatchSettings())
