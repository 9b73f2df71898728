"""The align stage through `train.main`: it raises rewards, stops hacking, resumes exactly and refuses what is wrong."""

import json
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onerec.bundle import Bundle
from onerec.config import RunConfig
from onerec.data.histories import Split
from onerec.data.pathways import EventSource
from onerec.model.onerec import OneRec
from onerec.pipeline import Pipeline
from rl.dpo import best_and_worst
from rl.experience import ExperienceMaker
from rl.generation import RolloutPlan
from rl.policy import Policy
from rl.settings import AlignedRunConfig
from tests.processes import start_server
from tests.tiny_run import run_stage, write_config
from tokenizer.artifacts import read_manifest, write_manifest
from tokenizer.settings import dump_yaml, load_settings
from tokenizer.table import SemanticIdTable

ROOT = Path(__file__).parent.parent.parent
CHANGES = """
data:
  world: {num_users: 120, num_events: 2400}
training: {epochs: 3, evaluate_every_epochs: 3, max_positions_per_step: 512, learning_rate: 5.0e-3}
evaluation: {ks: [1, 10], bootstrap_samples: 2}
align:
  steps: 8
  prompts_per_step: 32
  learning_rate: 1.0e-3
  warmup_steps: 0
  rollout: {group_size: 8}
  supervised: {max_positions_per_step: 256}
  monitor: {every_steps: 4, max_metric_drop: 1, min_coverage_ratio: 0, min_legality_ratio: 0}
"""
SPORTS = "{base: 1, rank_weight: 0, rules: [{kind: boost, column: topic_group, values: [sports], factor: 2}]}"
FOOTBALL = "{base: 0, rank_weight: 0, rules: [{kind: forbidden, column: topic, values: [football], reward: 1}]}"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config, beside a run that was pre-trained by it; never changed by a test."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = write_config(folder, CHANGES)
    for stage in ("data", "tokenizer", "pretrain"):
        assert run_stage(config, folder, stage=stage) == 0
    return folder


@pytest.fixture
def align(pretrained: Path, tmp_path: Path):
    """Call the align stage on a copy of the pre-trained run."""
    shutil.copytree(pretrained / "tiny", tmp_path / "tiny")

    def call(*overrides: str) -> int:
        return run_stage(pretrained / "tiny.yaml", tmp_path, *overrides, stage="align")

    return call


@pytest.fixture
def one_server() -> None:
    """Rollout workers come from the server of all tests, which need not import anew for them."""
    start_server()


def log_of(folder: Path, key: str) -> list[float]:
    log = json.loads((folder / "tiny" / "align" / "log_history.json").read_text())
    return [line[key] for line in log if key in line]


def details_of(folder: Path) -> dict[str, Any]:
    return read_manifest(folder / "tiny" / "align", "align").details


# ---- what it does ------------------------------------------------------------------------------------------------


def test_the_artefact_is_whole_and_kept(align, tmp_path: Path) -> None:
    assert align() == 0
    folder = tmp_path / "tiny" / "align"
    manifest = read_manifest(folder, "align")
    table = SemanticIdTable.load(tmp_path / "tiny" / "tokenizer")
    assert manifest.inputs == {
        "data": read_manifest(tmp_path / "tiny" / "data", "data").content_hash,
        "pretrain": read_manifest(tmp_path / "tiny" / "pretrain", "pretrain").content_hash,
        "table": table.content_hash,
    }
    assert manifest.details == {"step": 8, "steps_trained": 8, "stop_reason": None}
    assert OneRec.from_pretrained(folder).config.table_hash == table.content_hash
    figures = json.loads((folder / "metrics.json").read_text())
    for model in ("pretrained", "aligned"):
        assert set(figures[model]) == {"validation", "validation_unseen", "test", "test_unseen"}
    for key in ("reward", "hit_rate", "groups_without_spread", "coverage", "popularity", "loss"):
        assert len(log_of(tmp_path, key)) == 2
    for key in ("eval_ndcg@10", "legality", "kl", "entropy"):
        assert len(log_of(tmp_path, key)) == 2
    events = EventAccumulator(str(tmp_path / "tiny" / "align-checkpoints" / "tensorboard")).Reload()
    train = ("reward", "hit_rate", "groups_without_spread", "coverage", "popularity", "legality", "kl", "entropy")
    for tag in (*(f"train/{key}" for key in train), "eval/ndcg@10"):
        assert [point.step for point in events.Scalars(tag)] == [4, 8]
    assert "Weights of step 8 of 8 trained; no stop rule was broken." in (folder / "report.html").read_text()
    bundle = Bundle.load(tmp_path / "tiny" / "align-bundle")
    for name, weight in OneRec.from_pretrained(folder).named_parameters():
        torch.testing.assert_close(bundle.model.get_parameter(name), weight, rtol=0, atol=0)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert align() == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_the_reward_rises(align, tmp_path: Path) -> None:
    assert align(f"align.reward={SPORTS}", "align.steps=24", "align.supervised.weight=0.1") == 0
    rewards = log_of(tmp_path, "reward")
    assert rewards[-1] > rewards[0] + 0.1
    assert log_of(tmp_path, "kl")[-1] > log_of(tmp_path, "kl")[0]


@pytest.mark.parametrize(
    ("rule", "reason"), [("min_coverage_ratio=0.7", "coverage"), ("max_metric_drop=0.3", "held-out ndcg@10")]
)
def test_a_reward_that_can_be_hacked_is_stopped_with_the_last_good_weights(
    align, tmp_path: Path, rule: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Football earns all there is, so the policy would forget everything else."""
    hackable = [f"align.reward={FOOTBALL}", "align.supervised.weight=0", "align.learning_rate=0.01"]
    assert align(*hackable, "align.steps=40", f"align.monitor.{rule}") == 0
    details = details_of(tmp_path)
    assert details["stop_reason"].startswith(reason)
    assert details["step"] == details["steps_trained"] - 4 < 36
    assert "the last good weights are kept" in " ".join(capsys.readouterr().out.split())
    figures = json.loads((tmp_path / "tiny" / "align" / "metrics.json").read_text())
    assert f"stopped by the monitor: {reason}" in (tmp_path / "tiny" / "align" / "report.html").read_text()
    published = figures["aligned"]["validation"]["metrics"]["ndcg@10"]
    before = figures["pretrained"]["validation"]["metrics"]["ndcg@10"]
    good = details["step"] // 4  # checks passed until then
    assert published == ([before, *log_of(tmp_path, "eval_ndcg@10")])[good]
    assert published != log_of(tmp_path, "eval_ndcg@10")[good]


def test_preferences_raise_the_reward_with_their_figures_in_the_log(align, tmp_path: Path) -> None:
    rounds = "align.objective={kind: dpo, reference_every_steps: 8, reference_mixture: 1, preference: {beta: 0.5}}"
    assert align(rounds, f"align.reward={SPORTS}", "align.steps=24", "align.supervised.weight=0.1") == 0
    rewards = log_of(tmp_path, "reward")
    assert rewards[-1] > rewards[0] + 0.1
    assert log_of(tmp_path, "rewards/margins")[0] > 0
    assert log_of(tmp_path, "logps/chosen")[-1] > log_of(tmp_path, "logps/rejected")[-1]


@pytest.mark.usefixtures("one_server")
def test_a_round_of_preferences_has_one_policy_that_generates_and_is_the_reference(
    align, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OneRec v1: beams of the model at the round's beginning; the policy that learns moves on from it."""
    make = ExperienceMaker.make
    from_generator, from_policy = [], []

    def watched(maker: ExperienceMaker, policy: Policy, reference: OneRec, number: int) -> Any:
        experience, judged = make(maker, policy, reference, number)
        places_B2 = best_and_worst(judged.rewards_BG, judged.rollout.present_BG)
        expected_B2 = judged.rollout.behaviour_BG.gather(1, places_B2)
        with torch.no_grad():
            own_B2 = policy(experience, None).scores.log_probs_BG
        for gaps, found_B2 in ((from_generator, expected_B2), (from_policy, own_B2)):
            gaps.append((found_B2 - experience.reference_log_probs_BG).abs().max().item())
        return experience, judged

    monkeypatch.setattr(ExperienceMaker, "make", watched)
    rounds = "align.objective={kind: dpo, reference_every_steps: 4, reference_mixture: 1}"
    beams = "align.rollout={kind: beam, group_size: 32, workers: 1, sync_every: 4}"
    assert align(rounds, beams, f"align.reward={SPORTS}") == 0
    assert from_generator == pytest.approx([0] * 8, abs=1e-4)
    assert [gap < 1e-4 for gap in from_policy] == [True, False, False, False] * 2


def test_a_reference_that_moves_stays_close(align, tmp_path: Path) -> None:
    """With the whole policy mixed in after the last step, the two are one."""
    moving = "align.objective={reference_every_steps: 4, reference_mixture: 1}"
    assert align(moving, f"align.reward={SPORTS}") == 0
    assert log_of(tmp_path, "kl") == pytest.approx([0, 0], abs=1e-6)


def test_the_format_reward_alone_raises_legality(align, tmp_path: Path) -> None:
    format_only = ["align.format={group_size: 16, chosen: 5}", "align.objective.weight=0", "align.supervised.weight=0"]
    assert align(*format_only, "align.steps=16", "align.learning_rate=0.005") == 0
    legality = log_of(tmp_path, "legality")
    assert 1 - legality[-1] < (1 - legality[0]) / 2  # prefix vectors leave little that is illegal to begin with


def test_every_term_and_option_together(align, tmp_path: Path) -> None:
    assert (
        align(
            "align.rollout={kind: beam, group_size: 8, updates: 2, exclude_seen: true}",
            "align.objective={kind: gbpo, scoring: plain, kl_weight: 0.01, reference_every_steps: 2}",
            "align.reward={prefix_credit: 0.5, rules: [{kind: diversity, column: topic, weight: 0.1}]}",
            "align.format={group_size: 8, chosen: 5}",
            "align.feedback={dislike_column: skip}",
            "align.supervised={filter_column: watch_seconds, max_positions_per_step: 256}",
        )
        == 0
    )
    assert log_of(tmp_path, "groups_without_spread")[-1] < 0.5  # by prefix credit and diversity, where no hit is


def test_a_training_that_was_cut_off_goes_on_as_if_it_had_not_been(
    align, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        "align.rollout={kind: sample, group_size: 8, updates: 2}",
        "align.objective={kl_weight: 0.1, reference_every_steps: 3}",
        "align.monitor={every_steps: 2, max_metric_drop: 1}",
    ]
    make = ExperienceMaker.make

    def cut_off(maker: ExperienceMaker, policy: Any, reference: Any, number: int) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return make(maker, policy, reference, number)

    with monkeypatch.context() as patch:
        patch.setattr(ExperienceMaker, "make", cut_off)
        assert align(*options) == 130
    assert not (tmp_path / "tiny" / "align").exists()
    assert align(*options) == 0
    resumed = {key: log_of(tmp_path, key) for key in ("loss", "reward", "kl", "eval_ndcg@10")}
    for name in ("align", "align-checkpoints"):
        shutil.rmtree(tmp_path / "tiny" / name)
    assert align(*options) == 0
    assert {key: log_of(tmp_path, key) for key in resumed} == resumed
    assert len(resumed["loss"]) == 4


@pytest.mark.usefixtures("one_server")
def test_a_rollout_worker_generates_what_the_trainer_would(align, tmp_path: Path) -> None:
    """On-policy with one worker: the same training to the last digit, the format reward's samples included."""
    options = ["align.steps=4", "align.format={group_size: 8, chosen: 5}"]
    assert align(*options, "align.rollout={group_size: 8, workers: 1}") == 0
    found = {key: log_of(tmp_path, key) for key in ("loss", "reward", "kl", "eval_ndcg@10")}
    for name in ("align", "align-checkpoints"):
        shutil.rmtree(tmp_path / "tiny" / name)
    assert align(*options) == 0
    assert {key: log_of(tmp_path, key) for key in found} == found


@pytest.mark.usefixtures("one_server")
def test_a_worker_that_dies_ends_the_training_with_a_message(
    align, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = ExperienceMaker.make

    def kill_one(maker: ExperienceMaker, policy: Any, reference: Any, number: int) -> Any:
        if number == 2:
            multiprocessing.active_children()[0].kill()
        return make(maker, policy, reference, number)

    monkeypatch.setattr(ExperienceMaker, "make", kill_one)
    assert align("align.rollout={group_size: 8, workers: 2, sync_every: 2}") == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "found 1 of 2 workers ended (exit status of rollout worker" in message
    assert ": -9), expected all to generate until training ends" in message
    assert multiprocessing.active_children() == []


def test_a_model_with_pathways_is_aligned_on_what_it_reads(pretrained: Path, tmp_path: Path) -> None:
    """Prompts carry the events before them, and the return of none of their targets."""
    for part in ("data", "tokenizer"):
        shutil.copytree(pretrained / "tiny" / part, tmp_path / "tiny" / part)
    pathways = "{short_term: {}, positive: {column: like, length: 4}, returns: {columns: [watch_seconds]}}"
    changes = [f"model.pathways={pathways}", "training.epochs=1", "training.evaluate_every_epochs=1", "align.steps=4"]
    for stage in ("pretrain", "align"):
        assert run_stage(pretrained / "tiny.yaml", tmp_path, *changes, stage=stage) == 0
    assert details_of(tmp_path)["step"] == 4
    settings = load_settings(AlignedRunConfig, pretrained / "tiny.yaml", changes)
    pipeline = Pipeline.open(settings.run_config(), tmp_path)
    plan = RolloutPlan.open(pipeline, pipeline.model, settings.align)
    prompts = plan.prompts.batch(plan.prompts.rows[:8], pipeline.model.device)
    assert prompts.pathways is not None
    assert prompts.pathways["returns"].isnan().all()
    source = EventSource(pipeline.data.histories, [{}] * pipeline.data.num_users)
    rows = np.flatnonzero(np.asarray(pipeline.data.histories.splits) == Split.TRAIN)[plan.prompts.rows[:8]]
    context = pipeline.recommender(pipeline.model).encode([source.before(int(row)) for row in rows])
    torch.testing.assert_close(prompts.encode(pipeline.model).newest_BD, context.newest_BD)


@pytest.mark.slow
def test_two_processes_align_together(align, pretrained: Path, tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py", "--stage", "align"]
    command = [sys.executable, *launch, "--config", str(pretrained / "tiny.yaml"), "--runs", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert details_of(tmp_path)["step"] == 8


# ---- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("align.reward={base: 1, rank_weight: 0}", "constant within every group of the steps up to 4"),
        ("align.reward={base: .nan}", "256 of 256 are NaN or infinite"),
        ("align.rollout.group_size=1", "align.rollout.group_size: Input should be greater than or equal to 2"),
        ("align.rollout.updates=3", "found 4, expected a multiple of rollout.updates x rollout.sync_every = 3"),
        ("align.rollout.sync_every=2", "found 2 without workers, expected 1, or workers above 0"),
        ("align.rollout.workers=33", "found 33 for each of 1 trainers, expected at most prompts_per_step = 32"),
        ("align.prompts_per_step=100000", "found 100000, expected at most the"),
        ("align.steps=9", "found 9, expected a multiple of monitor.every_steps = 4, or fewer"),
        ("align={objective: {weight: 0}, supervised: {weight: 0}}", "or no gradient moves the policy"),
        ("align.feedback={dislike_column: dislike}", "found no column 'dislike', expected one of"),
        ("align.format={chosen: 9, group_size: 8}", "found 9, expected at most group_size = 8"),
        ("align.stepps=3", "unknown key 'align.stepps'. Did you mean 'steps'"),
        ("align.reward.rules=[{kind: boost, column: gener, values: [x], factor: 2}]", "no column 'gener'"),
    ],
)
def test_what_cannot_work_is_an_error(
    align, tmp_path: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(override) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "tiny" / "align").exists()


def test_a_reference_of_another_table_is_refused(align, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = OneRec.from_pretrained(tmp_path / "tiny" / "pretrain")
    model.config.table_hash = "another"
    model.save_pretrained(tmp_path / "reference")
    write_manifest(tmp_path / "reference", "pretrain", {}, "")
    assert align(f"align.objective.reference={tmp_path / 'reference'}") == 1
    assert "found hash another, expected" in capsys.readouterr().err


def test_a_run_that_failed_before_its_first_checkpoint_may_change_its_section(align) -> None:
    assert align("align.reward={base: .nan}") == 1
    assert align("align.steps=4") == 0


def test_another_pretraining_is_refused(align, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("align.steps=4") == 0
    pretrained = tmp_path / "tiny" / "pretrain"
    (pretrained / "log_history.json").write_text("[]")
    write_manifest(pretrained, "pretrain", {}, "")
    assert align("align.steps=4") == 1
    assert "it was aligned from another pre-training: found hash" in capsys.readouterr().err


def test_another_align_section_is_refused(align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("align.steps=4") == 0
    assert align("align.steps=8") == 1
    assert "holds an alignment of another align section" in capsys.readouterr().err


def test_the_section_is_no_part_of_what_the_run_is_bound_to(pretrained: Path) -> None:
    settings = load_settings(AlignedRunConfig, pretrained / "tiny.yaml", ["align.steps=3"])
    stored = load_settings(RunConfig, pretrained / "tiny" / "config.yaml")
    assert dump_yaml(settings.run_config()) == dump_yaml(stored)
