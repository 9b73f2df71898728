"""The training door: where the data of a config cannot be had, a fallback is run and named."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from onerec.config import RunConfig
from onerec.data.prepared import PreparedData
from onerec.data.sources import recbole_wheel
from onerec.evaluation.runs import load_run
from onerec.pipeline import Pipeline
from tests.tiny_run import write_config
from tokenizer.settings import load_settings

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No package index answers and nothing is cached."""
    monkeypatch.setenv("ONEREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")


def train_data_only(runs: Path, *more: str) -> int:
    config = str(CONFIGS / "demo.yaml")
    return train.main(["--config", config, "--stage", "data", "--runs", str(runs), *more])


@pytest.mark.usefixtures("offline")
def test_demo_without_an_index_runs_the_world_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--set",
        "data.world.num_users=50",
        "--set",
        "data.world.num_items=100",
        "--set",
        "data.world.num_events=3000",
    ]
    assert train_data_only(tmp_path, "--fallback", str(CONFIGS / "demo-world.yaml"), *small) == 0
    assert "demo-world.yaml in its place" in capsys.readouterr().err
    assert PreparedData.load(tmp_path / "demo-world" / "data").num_items <= 100


@pytest.mark.usefixtures("offline")
def test_without_a_fallback_it_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_data_only(tmp_path) == 1
    assert f"recbole=={recbole_wheel.VERSION}: the package index does not give it" in capsys.readouterr().err


@pytest.mark.usefixtures("offline")
def test_two_processes_fall_back_and_evaluate_together(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    configs = ["--config", str(CONFIGS / "demo.yaml"), "--fallback", str(write_config(tmp_path))]
    command = [sys.executable, *launch, *configs, "--runs", str(tmp_path), "--set", "evaluation.batch_size=16"]
    run = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("tiny.yaml in its place") == 2
    assert (tmp_path / "tiny" / "report" / "metrics.json").is_file()
    assert_one_process_evaluates_alike(tmp_path / "tiny")


def assert_one_process_evaluates_alike(run: Path) -> None:
    by_two = (run / "evaluations").rename(run / "evaluations-by-two")
    pipeline = Pipeline.open(load_settings(RunConfig, run / "config.yaml"), run.parent)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of two processes has
    pipeline.run("evaluate")
    torch.set_num_threads(num_threads)
    assert {folder.name for folder in by_two.iterdir()} == {folder.name for folder in (run / "evaluations").iterdir()}
    together, alone = (load_run(folder / "onerec").evaluations for folder in (by_two, run / "evaluations"))
    for protocol, evaluation in alone.items():
        np.testing.assert_array_equal(together[protocol].ranks_R, evaluation.ranks_R)
        timeless = [each.to_dict() | {"seconds": 0} for each in (together[protocol], evaluation)]
        assert timeless[0] == timeless[1]


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid(config: Path) -> None:
    load_settings(train.TrainConfig, config)


@pytest.mark.parametrize("config", sorted((CONFIGS / "tables").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_table_changes_how_it_is_read_and_nothing_of_the_recipe(config: Path) -> None:
    recipe, table = (load_settings(train.TrainConfig, path) for path in (CONFIGS / "recipe.yaml", config))
    assert str(table.data.path) == config.stem
    assert table.training == recipe.training
    assert table.decoding == recipe.decoding
    latest_items = {"max_history_items": table.model.max_history_items}
    assert table.model == recipe.model.model_copy(update=latest_items)
    for rival in ("sasrec", "sasrec_sampled"):
        assert getattr(table.baselines, rival) == getattr(recipe.baselines, rival).model_copy(update=latest_items)
