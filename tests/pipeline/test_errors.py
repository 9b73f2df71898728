"""What the path through `train.main` refuses, and what it says then."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from onerec.config import RunConfig
from onerec.errors import ArtifactError, ConfigError
from onerec.pipeline import STAGES, Pipeline
from onerec.training import checkpoints
from tests.tiny_run import contents
from tokenizer.artifacts import read_manifest, write_manifest
from tokenizer.settings import load_settings


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


def test_errors_reach_python_callers_as_exceptions(tmp_path: Path, config: Path) -> None:
    changed = load_settings(RunConfig, config, ["seed=1"])
    Pipeline.open(changed, tmp_path)
    with pytest.raises(ConfigError, match="seed: found 1, expected 0"):
        Pipeline.open(load_settings(RunConfig, config), tmp_path)
    with pytest.raises(ArtifactError, match="no manifest"):
        Pipeline.open(changed, tmp_path).run("tokenizer")
