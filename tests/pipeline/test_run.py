"""The whole path through `train.main` on a tiny world: what it writes and keeps, and how it goes on."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from onerec.baselines.fitting import fit_sasrec
from onerec.bundle import Bundle
from onerec.config import RunConfig
from onerec.data.histories import Split
from onerec.evaluation.__main__ import main as summarize
from onerec.model.onerec import OneRec
from onerec.pipeline import STAGES, Pipeline
from onerec.training import checkpoints
from onerec.training.checkpoints import publish_checkpoint
from tests.tiny_run import contents
from tokenizer.artifacts import read_manifest
from tokenizer.fit import load_pieces
from tokenizer.settings import load_settings
from tokenizer.table import SemanticIdTable

EVALUATED = ["onerec", "onerec-beam", "popularity", "item-knn", "sasrec", "tiger"]


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


def test_the_report_says_how_often_beams_find_the_exact_list(runs: Path) -> None:
    folder = runs / "tiny" / "report"
    shares = json.loads((folder / "metrics.json").read_text())["equals_exact"]
    assert list(shares) == ["onerec", "onerec-beam"]
    assert list(shares["onerec"]) == ["10", "50", "128"]
    assert 0 <= shares["onerec"]["10"] < shares["onerec"]["128"] == 1  # as wide as the catalogue
    assert "<b>100%</b><span>exact lists by 128 beams</span>" in (folder / "report.html").read_text()


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
