"""A table of users answered by two processes that share the model out, against one."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import serve
from onerec.bundle import Bundle
from onerec.errors import ConfigError
from onerec.serving.batch import BatchSettings, choose_workers, run_batch
from onerec.serving.changes import ItemChange, SqliteChanges
from onerec.serving.histories import SqliteHistories
from tests.processes import by_torchrun


def serve_quietly(command: list[str], told: Path) -> None:
    """`serve.py`, which adds what it prints to a file."""
    from contextlib import redirect_stdout

    with told.open("a") as file, redirect_stdout(file):
        assert serve.main(command) == 0


def test_two_processes_answer_as_one(small_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="no deepspeed package in this environment")
    users, state, together = tmp_path / "users.parquet", tmp_path / "state.sqlite", tmp_path / "together.parquet"
    random = np.random.default_rng(0)
    histories = [random.integers(100, 140, length).tolist() for length in random.integers(0, 13, 21)]
    pl.DataFrame({"user_id": range(21), "history": histories}).write_parquet(users)
    SqliteHistories(state).close()
    changes = SqliteChanges(state)
    best = Bundle.load(small_bundle).recommender().recommend([np.array([3])], 1, exclude_seen=True).items_BK[0, 0]
    changes.write([ItemChange(str(best + 100), removed=True)])
    changes.close()
    command = ["batch", "--bundle", str(small_bundle), "--users", str(users), "--histories", str(state)]
    command += ["--set", "users_per_part=8", "--set", "k=5", "--out", str(together)]
    by_torchrun(2, serve_quietly, command, tmp_path / "told")
    assert (tmp_path / "told").read_text() == f"{together}: 21 users answered\n"
    run_batch(small_bundle, users, tmp_path / "one.parquet", state, BatchSettings(users_per_part=8, k=5))
    found, expected = (pl.read_parquet(path) for path in (together, tmp_path / "one.parquet"))
    assert found.drop("scores").equals(expected.drop("scores"))
    assert best + 100 not in found["items"].explode().to_list()
    np.testing.assert_allclose(np.array(found["scores"].to_list()), np.array(expected["scores"].to_list()), rtol=1e-5)


def test_ray_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="found under torchrun"):
        choose_workers(2, None)
