"""The tiny world's config, one complete run of it, and its tables as files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from onerec.data.settings import DataSettings
from onerec.data.sources.world import load as load_world
from onerec.world.settings import WorldSettings
from tests.tiny_run import run_stage, write_config

CHANGES = """
model: {id_head_width: 8, num_id_heads: 2, id_head_start: 0.1, item_distillation: 0.5}
decoding: {num_beams: 5, rescoring: 0.5, dense_candidates: 3}
baselines:
  sasrec: {width: 8, num_blocks: 1, epochs: 1}
  tiger: {num_layers: 1, width: 16, num_heads: 2, head_width: 8, feed_forward_width: 32, num_steps: 3, num_beams: 4}
"""


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), CHANGES)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """The folder of runs that holds one complete run, never changed by a test."""
    runs = tmp_path_factory.mktemp("runs")
    assert run_stage(config, runs) == 0
    return runs


@pytest.fixture
def run(config: Path, tmp_path: Path) -> Callable[..., int]:
    """Call `train.main` on the tiny config in a run folder of the test's own."""

    def call(*overrides: str, stage: str = "all", runs: Path = tmp_path) -> int:
        return run_stage(config, runs, *overrides, stage=stage)

    return call


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """The tables of the tiny world as a user's own Parquet files, written for this test alone."""
    tables = load_world(DataSettings(source="world", world=WorldSettings(num_users=60, num_items=100, num_events=900)))
    folder = tmp_path / "world"
    folder.mkdir()
    tables.events.write_parquet(folder / "events.parquet")
    tables.items.write_parquet(folder / "items.parquet")
    return folder
