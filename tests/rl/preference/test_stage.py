"""The reward stage through `train.main`, and alignment by what it leaves behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onerec.bundle import Bundle
from onerec.data.histories import Split
from onerec.data.pathways import EventSource
from onerec.data.prepared import PreparedData
from onerec.decoding.selection import Selector, rerank
from onerec.evaluation.recommender import Ranking
from onerec.model.preference.artefact import load_reward_model
from rl.rewards.preference import PreferenceReward
from tests import tiny_run
from tokenizer.artifacts import read_manifest, write_manifest
from tokenizer.table import SemanticIdTable

CHANGES = """
data:
  world: {num_users: 120, num_events: 4800}
model: {prefix_vectors: false, repeat_bias: false}
training: {epochs: 2, evaluate_every_epochs: 2, max_positions_per_step: 512, learning_rate: 5.0e-3}
evaluation: {ks: [1, 10], bootstrap_samples: 2}
reward:
  towers: {pscore_weights: {like: 2}}
  backbone: {width: 16, max_history_items: 10}
  watch_time: {num_gaussians: 3}
  epochs: 3
  examples_per_step: 64
  learning_rate: 5.0e-3
align:
  steps: 8
  prompts_per_step: 32
  learning_rate: 2.0e-3
  warmup_steps: 0
  rollout: {group_size: 8}
  reward: {rank_weight: 0, preference: {weights: {watch_seconds: 1}}}
  supervised: {weight: 0.1, max_positions_per_step: 256}
  monitor: {every_steps: 4, max_metric_drop: 1, min_coverage_ratio: 0, min_legality_ratio: 0}
"""
TOWERS = ["click", "follow", "like", "skip", "watch_seconds"]


def run_stage(folder: Path, stage: str, *overrides: str) -> int:
    return tiny_run.run_stage(folder / "tiny.yaml", folder, *overrides, stage=stage)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its reward model; never changed by a test."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_run.write_config(folder, CHANGES)
    for stage in ("data", "tokenizer", "pretrain", "reward"):
        assert run_stage(folder, stage) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tiny" / "reward" / "metrics.json").read_text())


def test_the_report_has_every_tower_beside_its_rivals(trained: Path) -> None:
    metrics = metrics_of(trained)
    assert list(metrics["towers"]) == TOWERS  # neither the duration nor the propensity is a user's feedback
    for name in ("click", "skip", "watch_seconds"):  # likes and follows are rare in so small a world
        figures = metrics["towers"][name]
        assert 0 < figures["auc"] < 1
        assert 0 <= figures["calibration_error"] < 1
        assert set(figures["gauc_of"]) == {"popularity", "matrix factorisation"}
    assert metrics["towers"]["watch_seconds"]["watch_time"]["mae"] > 0
    training = PreparedData.load(trained / "tiny" / "data").histories.training()
    assert sum(metrics["events"].values()) == training.num_events  # the run's held-out events stay unseen
    assert set(metrics["selection"]["beams"]) == set(metrics["selection"]["selected"])


def test_the_artefact_belongs_to_its_data_and_catalogue(trained: Path) -> None:
    folder = trained / "tiny"
    table = SemanticIdTable.load(folder / "tokenizer")
    manifest = read_manifest(folder / "reward", "reward")
    assert manifest.inputs == {
        "data": read_manifest(folder / "data", "data").content_hash,
        "table": table.content_hash,
    }
    assert manifest.details == {"towers": TOWERS, "selection": {"weights": {"pscore": 1.0}, "share": 1.0}}
    model = load_reward_model(folder / "reward", table)
    weights = {signal.name: signal.pscore_weight for signal in model.signals}
    assert weights == dict.fromkeys(TOWERS, 1.0) | {"like": 2.0}
    assert model.feature_rows_NC.max() < model.features.num_embeddings


def test_what_a_bundle_selects_by_is_what_the_stage_has_measured(trained: Path) -> None:
    """Requests that send their events against rows of the log; the order of the beams is the same."""
    folder = trained / "tiny"
    data, table = PreparedData.load(folder / "data"), SemanticIdTable.load(folder / "tokenizer")
    selector, rows = Selector.load(folder / "reward", table), data.histories.targets(Split.TEST)[:20]
    items_BK = np.stack([np.random.default_rng(row).choice(data.num_items, 10, replace=False) for row in rows])
    ranking = Ranking(items_BK.astype(np.int32), -np.tile(np.arange(10.0), (20, 1)).astype(np.float32))
    judge = PreferenceReward(selector.judge.model, data.histories, {"pscore": 1.0}, "weights")
    source = EventSource(data.histories, [{}] * data.num_users)
    found = selector.select([source.before(int(row)) for row in rows], ranking)
    np.testing.assert_array_equal(found.items_BK, rerank(ranking, judge(rows, items_BK)).items_BK)
    assert not np.array_equal(found.items_BK, ranking.items_BK)
    joined = data.num_items  # an item that the reward model has not met, in the history and in the list
    history, items = np.array([3, joined, 5]), np.array([[7, joined, 2, 9]], dtype=np.int32)
    fresh = Ranking(items, np.array([[-1.0, -2.0, -3.0, -4.0]], dtype=np.float32))
    known = Ranking(items[:, [0, 2, 3]], fresh.scores_BK[:, [0, 2, 3]])
    (order,), (expected,) = (
        selector.select([seen], each).items_BK.tolist() for seen, each in ((history, fresh), (history[[0, 2]], known))
    )
    assert [item for item in order if item != joined] == expected
    assert order[0] != joined != order[-1]


def test_a_finished_model_is_kept_and_another_section_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "tiny" / "reward" / "model.safetensors").stat().st_mtime_ns
    assert run_stage(run, "reward") == 0
    assert (run / "tiny" / "reward" / "model.safetensors").stat().st_mtime_ns == before
    assert run_stage(run, "reward", "reward.epochs=4") == 1
    assert "holds a reward model of another reward section" in capsys.readouterr().err


def test_a_model_of_other_data_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run / "tiny" / "data"
    likes = np.load(data / "events" / "feedback" / "like.npy")
    np.save(data / "events" / "feedback" / "like.npy", 1 - likes)
    manifest = read_manifest(data, "data", verify_files=False)
    write_manifest(data, "data", manifest.inputs, manifest.config_hash, manifest.details)
    assert run_stage(run, "reward") == 1
    assert "its data: found hash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.towers={columns: [duration]}", "found no feedback column 'duration'"),
        ("reward.towers={columns: []}", "found no feedback column that varies"),
        ("reward.towers={pscore_weights: {liek: 1}}", "no tower 'liek'. Did you mean 'like'"),
        ("reward.selection={weights: {clik: 1}}", "reward.selection.weights: no tower 'clik'. Did you mean 'click'"),
        (
            "reward.selection={weights: {click: .nan}}",
            "reward.selection.weights.click: Input should be a finite number",
        ),
        ("reward.learning_rate=1e30", "expected numbers. Lower reward.learning_rate"),
        ("reward.backbone={kind: mixer, num_tokens: 5}", "num_tokens: found 5, expected a divisor of width = 32"),
        ("reward.tower=3", "unknown key 'reward.tower'. Did you mean"),
    ],
)
def test_what_cannot_work_is_an_error(
    run: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "tiny" / "reward")
    assert run_stage(run, "reward", override) == 1
    assert message in capsys.readouterr().err
    assert not (run / "tiny" / "reward").exists()


def test_a_constant_column_is_left_out_or_refused_where_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where only clicks are kept, a click says nothing."""
    shutil.copy(trained / "tiny.yaml", tmp_path / "tiny.yaml")
    clicks = ("data.min_feedback={click: 1}", "data.core.user_events=3")
    for stage in ("data", "tokenizer"):
        assert run_stage(tmp_path, stage, *clicks) == 0
    assert run_stage(tmp_path, "reward", *clicks, "reward.towers={columns: [click, like]}") == 1
    assert "found the value 1 everywhere in 'click'" in capsys.readouterr().err
    assert run_stage(tmp_path, "reward", *clicks, "reward.towers={}") == 0
    assert "no tower for click: the value 1 everywhere" in " ".join(capsys.readouterr().out.split())
    assert "selection" not in metrics_of(tmp_path)  # there is no pre-trained model


# ---- alignment by it ---------------------------------------------------------------------------------------------


def test_alignment_raises_what_the_reward_model_expects(run: Path) -> None:
    assert run_stage(run, "align", "align.steps=24", "align.rollout.kind=sample") == 0
    log = json.loads((run / "tiny" / "align" / "log_history.json").read_text())
    rewards = [line["reward"] for line in log if "reward" in line]
    assert rewards[-1] > rewards[0] + 0.5  # seconds
    manifest = read_manifest(run / "tiny" / "align", "align")
    assert manifest.inputs["reward"] == read_manifest(run / "tiny" / "reward", "reward").content_hash
    selector = Bundle.load(run / "tiny" / "align-bundle").selector
    assert selector is not None
    assert selector.judge.model.config.catalogue_hash == SemanticIdTable.load(run / "tiny" / "tokenizer").catalogue_hash


@pytest.mark.parametrize(
    ("bundle", "stages", "overrides"),
    [
        ("bundle", ["evaluate", "bundle"], []),
        ("align-bundle", ["align"], ["align.steps=4", "align.reward={base: 1}"]),
    ],
)
def test_a_bundle_from_before_the_reward_model_is_given_it(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bundle: str,
    stages: list[str],
    overrides: list[str],
) -> None:
    reward, folder = run / "tiny" / "reward", run / "tiny" / bundle
    shutil.move(reward, tmp_path / "away")
    for stage in stages:
        assert run_stage(run, stage, *overrides) == 0
    before = Bundle.load(folder)
    assert before.selector is None
    shutil.move(tmp_path / "away", reward)
    capsys.readouterr()
    assert run_stage(run, stages[-1], *overrides) == 0
    assert f"{bundle}: given the reward model that was trained since" in capsys.readouterr().out
    written = Bundle.load(folder)
    assert written.selector is not None
    added = {"reward": read_manifest(reward, "reward").content_hash}
    assert written.manifest.inputs == before.manifest.inputs | added
    assert written.manifest.details == before.manifest.details
    assert before.manifest.files.items() <= written.manifest.files.items()
    assert run_stage(run, stages[-1], *overrides) == 0
    printed = capsys.readouterr().out
    assert "found the finished artefact, kept" in printed
    assert "given the reward model" not in printed
    (reward / "log_history.json").write_text("[]")
    write_manifest(reward, "reward", {}, "")
    assert run_stage(run, stages[-1], *overrides) == 1
    assert f"{bundle}: its reward: found hash" in capsys.readouterr().err


def test_a_bundle_that_was_deleted_is_written_again_from_the_kept_alignment(run: Path) -> None:
    folder = run / "tiny" / "align-bundle"
    assert run_stage(run, "align", "align.steps=4") == 0
    before = read_manifest(folder, "bundle")
    shutil.rmtree(folder)
    assert run_stage(run, "align", "align.steps=4") == 0
    after = read_manifest(folder, "bundle")
    assert (after.inputs, after.details, after.files) == (before.inputs, before.details, before.files)


def test_alignment_by_another_reward_model_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage(run, "align", "align.steps=4") == 0
    shutil.rmtree(run / "tiny" / "reward")
    assert run_stage(run, "reward", "reward.epochs=1") == 0
    assert run_stage(run, "align", "align.steps=4") == 1
    assert "it was aligned by another reward model: found hash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("align.reward.preference.weights={watch: 1}", "align.reward.preference.weights: no tower 'watch'"),
        ("align.reward.preference.weights={pscore: .inf}", "Input should be a finite number"),
        ("align.reward.preference.weights={}", "should have at least 1 item"),
        ("align.reward.preference.folder=nowhere", "nowhere: found no manifest.json, expected a finished 'reward'"),
    ],
)
def test_a_preference_that_cannot_be_is_refused(
    run: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(run, "align", override) == 1
    assert message in capsys.readouterr().err
    assert not (run / "tiny" / "align").exists()


def test_a_reward_model_of_another_catalogue_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "tiny" / "reward"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"catalogue_hash": "another"}))
    manifest = read_manifest(folder, "reward", verify_files=False)
    write_manifest(folder, "reward", manifest.inputs, manifest.config_hash, manifest.details)
    assert run_stage(run, "align") == 1
    assert "it is a reward model of another catalogue: found hash another, expected" in capsys.readouterr().err
