"""The whole path through `train.main` on a tiny world: what it writes, keeps, refuses, and never sees."""

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from torch import Tensor

from onerec.baselines.fitting import fit_sasrec
from onerec.bundle import Bundle
from onerec.config import RunConfig
from onerec.data.histories import Split
from onerec.data.prepared import PreparedData
from onerec.data.settings import DataSettings
from onerec.data.sources.world import load as load_world
from onerec.errors import ArtifactError, ConfigError
from onerec.evaluation.__main__ import main as summarize
from onerec.model.onerec import OneRec
from onerec.pipeline import STAGES, Pipeline
from onerec.training import checkpoints
from onerec.training.checkpoints import publish_checkpoint
from onerec.world.settings import WorldSettings
from tests.tiny_run import run_stage, write_config
from tokenizer.artifacts import read_manifest, write_manifest
from tokenizer.fit import load_pieces
from tokenizer.settings import load_settings
from tokenizer.table import SemanticIdTable

CHANGES = """
model: {id_head_width: 8, item_distillation: 0.5}
decoding: {num_beams: 5, rescoring: 0.5}
baselines:
  sasrec: {width: 8, num_blocks: 1, epochs: 1}
  tiger: {num_layers: 1, width: 16, num_heads: 2, head_width: 8, feed_forward_width: 32, num_steps: 3, num_beams: 4}
"""
BEHAVIOUR = [  # a tokenizer whose vectors are learnt from events
    "tokenizer.text={weight: 0, columns: [item_id], cache_folder: ''}",
    "tokenizer.behaviour={weight: 0.3, num_layers: 1, width: 8, num_heads: 2, training: {steps: 3, batch_size: 8}}",
]
EVALUATED = ["onerec", "onerec-beam", "popularity", "item-knn", "sasrec", "tiger"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), CHANGES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """The folder of runs that holds one complete run, never changed by a test."""
    runs = tmp_path_factory.mktemp("runs")
    assert run_stage(config, runs) == 0
    return runs


@pytest.fixture
def run(config: Path, tmp_path: Path):
    """Call `train.main` on the tiny config in a run folder of the test's own."""

    def call(*overrides: str, stage: str = "all", runs: Path = tmp_path) -> int:
        return run_stage(config, runs, *overrides, stage=stage)

    return call


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file, which writing it again would alter."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- a complete run ----------------------------------------------------------------------------------------------


def test_every_artefact_has_its_manifest(runs: Path) -> None:
    folder = runs / "tiny"
    manifests = {kind: read_manifest(folder / kind, kind) for kind in ("data", "tokenizer", "pretrain", "bundle")}
    data_hash, pretrain_hash = manifests["data"].content_hash, manifests["pretrain"].content_hash
    table_hash = manifests["tokenizer"].details["table_hash"]
    assert manifests["tokenizer"].inputs == {"data": data_hash}
    assert manifests["pretrain"].inputs == {"data": data_hash, "table": table_hash}
    expected = {"data": data_hash, "pretrain": pretrain_hash, "table": table_hash}
    assert manifests["bundle"].inputs == {**expected, "tokenizer": manifests["tokenizer"].content_hash}
    for name in EVALUATED:
        of_model = {"pretrain": pretrain_hash}
        more = {"onerec": of_model, "onerec-beam": of_model, "tiger": {"table": table_hash}}.get(name, {})
        assert read_manifest(folder / "evaluations" / name, "evaluation").inputs == {"data": data_hash, **more}
    assert load_settings(RunConfig, folder / "config.yaml").name == "tiny"


def test_metrics_can_be_read(runs: Path) -> None:
    metrics = json.loads((runs / "tiny" / "report" / "metrics.json").read_text())
    for protocol in ("validation", "test", "test_unseen"):
        assert sorted(metrics[protocol]) == sorted(EVALUATED)
        for of_recommender in metrics[protocol].values():
            assert 0 <= of_recommender["recall@10"]["mean"] <= 1
        assert metrics[protocol]["onerec"]["invalid_rate"] == 0


def test_rescored_and_plain_beams_are_evaluated_apart(runs: Path) -> None:
    metrics = json.loads((runs / "tiny" / "report" / "metrics.json").read_text())["validation"]
    assert metrics["onerec"]["ndcg@10"] != metrics["onerec-beam"]["ndcg@10"]
    assert metrics["onerec"]["parameters"] == metrics["onerec-beam"]["parameters"]


def test_one_run_summarised_as_several_is_its_own_results(runs: Path, tmp_path: Path) -> None:
    assert summarize([str(runs / "tiny"), "--out", str(tmp_path / "out")]) == 0
    found, expected = (
        json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "out", runs / "tiny" / "report")
    )
    assert found == expected


def test_baselines_follow_the_seed_of_the_run(runs: Path, config: Path, tmp_path: Path) -> None:
    def weights(name: str, *overrides: str) -> Tensor:
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").symlink_to(runs / "tiny" / "data")
        pipeline = Pipeline.open(load_settings(RunConfig, config, [f"name={name}", *overrides]), tmp_path)
        return fit_sasrec(pipeline.config.baselines.sasrec, pipeline.config, pipeline.data).network.items.weight

    first, other = weights("first"), weights("other", "seed=2")
    assert not torch.equal(first, other)
    torch.testing.assert_close(weights("same", "baselines.sasrec.seed=2"), other, rtol=0, atol=0)


def test_the_report_needs_nothing_but_itself(runs: Path) -> None:
    page = (runs / "tiny" / "report" / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*(?!"#|"data:)\S+""", page)
    assert "@import" not in page
    assert "<script src" not in page


def test_the_bundle_recommends_what_was_evaluated(runs: Path, config: Path) -> None:
    pipeline = Pipeline.open(load_settings(RunConfig, config), runs)
    bundle = Bundle.load(runs / "tiny" / "bundle")
    histories = pipeline.data.histories
    before = [histories.before(int(row)) for row in histories.targets(Split.TEST)[:20]]
    expected = pipeline.recommender(pipeline.model).recommend(before, 10, exclude_seen=True)
    found = bundle.recommender(num_beams=10).recommend(before, 10, exclude_seen=True)
    np.testing.assert_array_equal(found.items_BK, expected.items_BK)
    np.testing.assert_array_equal(found.scores_BK, expected.scores_BK)
    assert bundle.items.height == bundle.table.num_items == pipeline.data.num_items


def test_running_again_keeps_everything_but_the_report(runs: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(runs)
    assert run(runs=runs) == 0
    after = contents(runs)
    assert after.keys() == before.keys()
    assert {name.split("/")[1] for name in before if before[name] != after[name]} == {"report"}
    printed = capsys.readouterr().out
    for name in ("data", "tokenizer", "pretrain", "bundle"):
        assert f"{name}: found the finished artefact, kept" in printed


def test_stages_alone_equal_the_whole(runs: Path, run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = {}
    for stage in STAGES:
        assert run(stage=stage) == 0
        printed[stage] = capsys.readouterr().out
    assert "synthetic short-video world, licence: none needed" in printed["data"]
    assert "dropped: nothing" in printed["data"]
    assert "Test, seen items excluded" in printed["report"]
    assert f"Serve it:  python serve.py --bundle {tmp_path / 'tiny' / 'bundle'}" in printed["report"]
    for name in ("data", "tokenizer", "pretrain"):
        whole, alone = (read_manifest(root / "tiny" / name, name) for root in (runs, tmp_path))
        differing = {file for file in whole.files if whole.files[file] != alone.files[file]}
        assert differing <= {"log_history.json"}  # holds seconds


def test_a_stage_without_those_before_it_says_so(run, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in STAGES[1:]:
        assert run(stage=stage) == 1
        assert re.search(r"found no manifest.json, expected a finished '\w+' artefact", capsys.readouterr().err)


def test_pieces_of_semantic_ids_are_fitted_and_become_part_of_the_model(run, tmp_path: Path) -> None:
    for stage in ("data", "tokenizer", "pretrain"):
        assert run("tokenizer.pieces.vocabulary_size=40", stage=stage) == 0
    model = OneRec.from_pretrained(tmp_path / "tiny" / "pretrain")
    pieces = load_pieces(tmp_path / "tiny" / "tokenizer", SemanticIdTable.load(tmp_path / "tiny" / "tokenizer"))
    assert pieces is not None
    assert model.config.num_pieces == pieces.vocabulary_size
    assert (model.encoder.embedding.piece_rows_NL[:, 0] < pieces.vocabulary_size).all()


def test_a_config_from_before_a_setting_came_in_is_the_same_with_its_default(run, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "tiny", tmp_path / "tiny")
    stored = tmp_path / "tiny" / "config.yaml"
    config = yaml.safe_load(stored.read_text())
    assert config["model"].pop("positions") == "from_start"
    stored.write_text(yaml.safe_dump(config))
    assert run(stage="data") == 0
    assert run("model.positions=from_end", stage="data") == 1


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_a_run_folder_of_another_config_is_refused(runs: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(runs)
    assert run("training.epochs=2", "seed=7", runs=runs) == 1
    message = capsys.readouterr().err
    assert "holds a run of another config" in message
    assert "seed: found 0, expected 7" in message
    assert "training.epochs: found 1, expected 2" in message
    assert contents(runs) == before


def test_artefacts_made_from_other_data_are_refused(
    runs: Path, run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("name=other", "data.world.seed=1", stage="data") == 0
    shutil.copytree(runs / "tiny", tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny" / "data")
    (tmp_path / "other" / "data").rename(tmp_path / "tiny" / "data")
    capsys.readouterr()
    for stage, name in zip(STAGES[1:], ("tokenizer", "pretrain", "onerec", "bundle", "onerec"), strict=True):
        assert run(stage=stage) == 1
        message = capsys.readouterr().err
        assert re.search(rf"{name}: its data: found hash \w{{64}}, expected \w{{64}}\. Delete .*{name} and", message)


def test_an_evaluation_of_other_weights_is_refused(
    runs: Path, run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "tiny", tmp_path / "tiny")
    folder = tmp_path / "tiny" / "pretrain"
    manifest = read_manifest(folder, "pretrain")
    (folder / "log_history.json").write_text("[]")
    write_manifest(folder, "pretrain", manifest.inputs, manifest.config_hash, manifest.details)
    for stage, name in (("evaluate", "onerec"), ("bundle", "bundle"), ("report", "onerec")):
        assert run(stage=stage) == 1
        assert f"{name}: its pretrain: found hash" in capsys.readouterr().err


def test_a_damaged_config_in_the_run_folder_is_told(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny").mkdir()
    for text in ("just a word", "name: [unclosed"):
        (tmp_path / "tiny" / "config.yaml").write_text(text)
        assert run() == 1
        assert "config.yaml: damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("training.epoch=3", "Did you mean 'epochs'?"),
        ("trainings.epochs=3", "Did you mean 'training'?"),
        ("data.world.num_user=5", "Did you mean 'num_users'?"),
        ("baselines.sasrec.widht=5", "Did you mean 'width'?"),
    ],
)
def test_a_misspelt_key_names_the_nearest(
    run, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, hint: str
) -> None:
    assert run(override) == 1
    assert hint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may multiply float8")
def test_a_precision_that_the_device_has_not_is_refused_before_training(
    run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("data", "tokenizer"):
        assert run("decoding.precision=float8", stage=stage) == 0
    assert run("decoding.precision=float8", stage="pretrain") == 1
    assert "found float8 on cpu, expected a CUDA device" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "tiny/checkpoints").exists()


def test_a_metric_that_nobody_measures_cannot_select(run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("training.selection_metric=ndcg@7") == 1
    message = capsys.readouterr().err
    assert "training.selection_metric: found 'ndcg@7', expected one of recall@1, recall@5" in message
    assert "num_users" not in message  # the whole config is not shown


def test_an_unwritable_run_folder(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(runs=tmp_path / "file") == 1
    assert "cannot write here" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_run_folder(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert run() == 1
    assert "cannot write here" in capsys.readouterr().err


def test_a_disk_that_fills_up_in_training(
    runs: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill_the_disk(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "tiny").mkdir()
    for name in ("data", "tokenizer"):
        (tmp_path / "tiny" / name).symlink_to(runs / "tiny" / name)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "publish_checkpoint", fill_the_disk)
        assert run(stage="pretrain") == 1
    assert "checkpoints: the disk is full. Free some space and run again" in capsys.readouterr().err
    assert run(stage="pretrain") == 0


def test_a_truncated_table(run, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = world / "events.parquet"
    events.write_bytes(events.read_bytes()[:-200])
    assert run("data.source=parquet", f"data.path={world}", stage="data") == 1
    assert "events.parquet" in capsys.readouterr().err


def test_an_id_table_of_another_catalogue(runs: Path, run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data.world.num_items=101", stage="data") == 0
    (tmp_path / "tiny" / "tokenizer").symlink_to(runs / "tiny" / "tokenizer")
    assert run("data.world.num_items=101", stage="pretrain") == 1
    message = capsys.readouterr().err
    assert "belongs to another catalogue" in message
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", message))) == 2


@pytest.mark.parametrize("policy", ["reassign", "suffix"])
def test_a_catalogue_larger_than_the_code_space(run, capsys: pytest.CaptureFixture[str], policy: str) -> None:
    sizes = "tokenizer.quantizer.codes_per_level=[4, 4]"
    limits = f"tokenizer.collisions={{policy: {policy}, suffix_codes: 2}}"
    assert run(sizes, limits, stage="data") == 0
    assert run(sizes, limits, stage="tokenizer") == 1
    message = capsys.readouterr().err
    assert "100 items" in message
    assert str({"reassign": 16, "suffix": 32}[policy]) in message


# ---- stopping ----------------------------------------------------------------------------------------------------


def test_ctrl_c_says_how_to_go_on_and_the_next_run_does(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def publish_and_interrupt(staged: Path, folder: Path, keep: int) -> Path:
        published = publish_checkpoint(staged, folder, keep)
        if published.name == "checkpoint-3":
            signal.raise_signal(signal.SIGINT)
        return published

    # A shell that starts programs in the background has them ignore the signal; a terminal does not.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    long = ["training.epochs=2", "training.checkpoint_steps=1", "training.evaluate_every_epochs=2"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "publish_checkpoint", publish_and_interrupt)
        try:
            assert run(*long) == 130
        finally:
            signal.signal(signal.SIGINT, previous)
    assert "\nstopped; what is finished is whole. The same command goes on from here.\n" in capsys.readouterr().err
    assert not (tmp_path / "tiny" / "pretrain").exists()
    assert run(*long, stage="pretrain") == 0
    log = json.loads((tmp_path / "tiny" / "pretrain" / "log_history.json").read_text())
    assert [line["step"] for line in log if "loss" in line] == list(range(1, 13))
    steps = [path.name for path in (tmp_path / "tiny" / "checkpoints").glob("checkpoint-*")]
    assert sorted(steps) == ["checkpoint-11", "checkpoint-12"]


# ---- leakage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """The tables of the tiny world as a user's own Parquet files, written for this test alone."""
    return write_world(tmp_path / "world")


def write_world(folder: Path) -> Path:
    tables = load_world(DataSettings(source="world", world=WorldSettings(num_users=60, num_items=100, num_events=900)))
    folder.mkdir()
    tables.events.write_parquet(folder / "events.parquet")
    tables.items.write_parquet(folder / "items.parquet")
    return folder


@pytest.fixture
def marked(world: Path, tmp_path: Path) -> Iterator[Path]:
    """The same world, but every user's last event, the test event, is with one and the same item."""
    folder = write_world(tmp_path / "marked")
    events = pl.read_parquet(folder / "events.parquet")
    marker = events["item_id"].value_counts().sort("count")["item_id"][0]
    is_last = pl.col("timestamp") == pl.col("timestamp").max().over("user_id")
    is_last &= pl.len().over("user_id") >= 3  # fewer events are all for training
    changed = events.with_columns(item_id=pl.when(is_last).then(pl.lit(marker)).otherwise("item_id"))
    changed.write_parquet(folder / "events.parquet")
    return folder


def test_a_marker_in_the_test_period_changes_nothing_that_is_trained(
    run, world: Path, marked: Path, tmp_path: Path
) -> None:
    folders = {}
    for name, source in (("clean", world), ("marked", marked)):
        overrides = ["data.source=parquet", f"data.path={source}", "data.policies={duplicates: keep}", f"name={name}"]
        overrides += BEHAVIOUR
        for stage in ("data", "tokenizer", "pretrain"):
            assert run(*overrides, stage=stage) == 0
        folders[name] = tmp_path / name
    clean, other = (PreparedData.load(folder / "data").histories for folder in folders.values())
    differs = np.flatnonzero(clean.items != other.items)
    assert len(differs) > 30  # the marker did arrive, and in test events alone
    assert (clean.splits[differs] == Split.TEST).all()
    assert (other.items[differs] == other.items[differs[0]]).all()
    for part in ("offsets", "items", "timestamps", "splits"):
        np.testing.assert_array_equal(getattr(clean.training(), part), getattr(other.training(), part))
    unequal = {
        stage: {
            str(file.relative_to(folders["clean"] / stage))
            for file in (folders["clean"] / stage).rglob("*")
            if file.is_file()
            and file.read_bytes() != (folders["marked"] / file.relative_to(folders["clean"])).read_bytes()
        }
        for stage in ("tokenizer", "pretrain")
    }
    # The manifests name their inputs, and the log holds seconds.
    assert unequal["tokenizer"] == {"manifest.json"}
    assert unequal["pretrain"] == {"manifest.json", "log_history.json"}
    traces = [
        [
            {key: value for key, value in line.items() if key.startswith(("loss", "eval_recall", "eval_ndcg", "step"))}
            for line in json.loads((folder / "pretrain" / "log_history.json").read_text())
        ]
        for folder in folders.values()
    ]
    assert traces[0] == traces[1]


def test_errors_reach_python_callers_as_exceptions(tmp_path: Path, config: Path) -> None:
    changed = load_settings(RunConfig, config, ["seed=1"])
    Pipeline.open(changed, tmp_path)
    with pytest.raises(ConfigError, match="seed: found 1, expected 0"):
        Pipeline.open(load_settings(RunConfig, config), tmp_path)
    with pytest.raises(ArtifactError, match="no manifest"):
        Pipeline.open(changed, tmp_path).run("tokenizer")
