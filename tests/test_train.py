"""The training door: where the data of a config cannot be had, a fallback is run and named."""

import subprocess
import sys
from pathlib import Path

import pytest

import train
from onerec.data.prepared import PreparedData
from onerec.data.sources import recbole_wheel
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
def test_two_processes_fall_back_together(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    configs = ["--config", str(CONFIGS / "demo.yaml"), "--fallback", str(write_config(tmp_path))]
    command = [sys.executable, *launch, *configs, "--runs", str(tmp_path)]
    run = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("tiny.yaml in its place") == 2
    assert (tmp_path / "tiny" / "report" / "metrics.json").is_file()


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
