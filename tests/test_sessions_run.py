"""A run of lists through `train.main`: trained on sessions, evaluated beside single items, bundled as any other."""

import json
from pathlib import Path

import numpy as np
import pytest

from onerec.bundle import Bundle
from onerec.config import RunConfig
from onerec.decoding.sessions import search_lists
from onerec.errors import ConfigError
from onerec.pipeline import Pipeline
from onerec.training.pretraining import training_windows
from tests.tiny_run import run_stage, write_config
from tokenizer.settings import load_settings

CHANGES = """
name: lists
data:
  world: {num_events: 2400}
  split: {kind: global_time}
  sessions:
    {watched: {click: 1}, min_items: 2, seconds_column: watch_seconds, min_seconds: 10, interactions: [like, click]}
model: {max_history_items: 6, session_items: 2, pathways: {short_term: {}}}
evaluation: {max_rows: 40}
baselines: {popularity: false, item_knn: null}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    assert run_stage(write_config(root, CHANGES), root) == 0
    return root / "lists"


def test_whole_lists_are_evaluated_beside_single_items(folder: Path) -> None:
    found = json.loads((folder / "evaluations" / "lists" / "metrics.json").read_text())
    assert set(found) == {"validation", "validation_unseen", "test", "test_unseen"}
    for kinds in found.values():
        assert list(kinds) == ["whole lists", "single items"]
        assert all(0 <= value <= 1 for kind in kinds.values() for value in kind["metrics"].values())
        assert kinds["whole lists"]["sessions"] == kinds["single items"]["sessions"] > 0
    log = json.loads((folder / "pretrain" / "log_history.json").read_text())
    assert sum("loss_level_0" in line for line in log) > 1


def test_a_bundle_decodes_the_lists_that_were_evaluated(folder: Path) -> None:
    pipeline = Pipeline.open(load_settings(RunConfig, folder / "config.yaml"), folder.parent)
    bundle = Bundle.load(folder / "bundle")
    history = np.array([3, 7, 5])
    expected = pipeline.recommender(pipeline.model).recommend_lists([history], exclude_seen=True)  # type: ignore[attr-defined]
    recommender = bundle.recommender()
    found = search_lists(bundle.model, recommender.encode([history]), recommender.trie, 10, 1, excluded=[history])
    assert found.items_BKm[0, 0].tolist() == expected[0][0].tolist()
    assert float(found.scores_BK[0, 0]) == pytest.approx(float(expected[1][0]), abs=1e-4)


def test_lists_without_their_rules_are_refused(folder: Path) -> None:
    pipeline = Pipeline.open(load_settings(RunConfig, folder / "config.yaml"), folder.parent)
    with pytest.raises(ConfigError, match="found a model of lists and data of single events"):
        training_windows(pipeline.data.histories, pipeline.model, pipeline.fit_pathways())


def test_lists_are_not_ordered_by_the_item_head(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"decoding.rescoring: found 0.5 beside model.session_items 2.* expected 0"):
        load_settings(RunConfig, folder / "config.yaml", ["decoding.rescoring=0.5"])


def test_rules_that_the_data_cannot_tell_end_the_run_before_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder.parent / "tiny.yaml"
    assert run_stage(config, tmp_path, "data.sessions.seconds_column=watch_second", stage="data") == 1
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "found 'watch_second'" in printed
    assert "Did you mean 'watch_seconds'" in printed
