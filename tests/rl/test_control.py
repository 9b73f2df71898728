"""Return-conditioned play: which wishes stand for low, middle and high, the table, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from onerec.bundle import Bundle, write_bundle
from onerec.config import RunConfig
from onerec.data.features import fit_pathways
from onerec.data.pathway_settings import NumberSpec, PathwaySettings
from onerec.data.prepared import PreparedData
from onerec.errors import ConfigError
from onerec.model.configuration import OneRecConfig
from onerec.model.onerec import OneRec
from rl.control import NOTHING, levels, main
from tokenizer.settings import load_settings

QUICK = ["--users", "30", "--sessions", "1", "--max-requests", "2", "--samples", "20"]


def bundle_with(**edges: tuple[float, ...]) -> Any:
    specs = tuple(NumberSpec(name=name, edges=of_name) for name, of_name in edges.items())
    pathways = SimpleNamespace(spec=SimpleNamespace(returns=specs))
    return SimpleNamespace(model=SimpleNamespace(encoder=SimpleNamespace(pathways=pathways)))


@pytest.fixture(scope="module")
def wishing_bundle(world_run: Path, small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small world whose model, far from its start, reads returns."""
    other = Bundle.load(world_run / "bundle")
    data, config = PreparedData.load(world_run / "data"), load_settings(RunConfig, world_run / "config.yaml")
    settings = PathwaySettings.model_validate({"returns": {"columns": ["watch_seconds", "like"]}})
    fitted = fit_pathways(settings, data, None)
    shape = {"d_model": 16, "d_ff": 32, "max_history_items": 8, "bos_reads_context": True}
    torch.manual_seed(0)
    spec = fitted.spec.model_dump(mode="json")
    model = OneRec(OneRecConfig(other.table.codes_per_level, data.num_items, pathways=spec, **shape)).eval()
    model.set_codes(other.table.codes_NL, other.table.content_hash)
    model.encoder.set_pathways(fitted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("wishing") / "bundle"
    inputs = {"data": data.manifest.content_hash, "pretrain": "p" * 64}
    write_bundle(folder, model, other.table, data, small_run.results, config, inputs)
    return folder


def test_levels_lie_in_the_lowest_the_middle_and_the_highest_bucket() -> None:
    name, wishes = levels(bundle_with(watch=(2.0, 5.0, 9.0), like=(0.5,)), None)
    assert name == "watch"
    buckets = {level: int(np.searchsorted([2.0, 5.0, 9.0], value, side="right")) for level, value in wishes.items()}
    assert buckets == {"low": 0, "mid": 2, "high": 3}
    name, wishes = levels(bundle_with(watch=(2.0,), like=(0.5,)), "like")
    assert (name, list(wishes)) == ("like", ["low", "high"])
    assert wishes["low"] < 0.5 == wishes["high"]
    with pytest.raises(ConfigError, match=r"found skip, expected a column .*\(watch, like\)"):
        levels(bundle_with(watch=(2.0,), like=(0.5,)), "skip")


def test_the_table_has_a_policy_a_wish(
    wishing_bundle: Path, world_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(wishing_bundle), "--run", str(world_run), "--json", str(tmp_path / "control.json")]
    assert main([*arguments, *QUICK]) == 0
    figures = json.loads((tmp_path / "control.json").read_text())
    assert list(figures["policies"]) == [NOTHING, "low", "mid", "high", "oracle", "popularity", "random"]
    assert figures["column"] == "watch_seconds"
    assert figures["wishes"]["low"] < figures["wishes"]["mid"] < figures["wishes"]["high"]
    seconds = [figures["policies"][name]["true_watch_seconds"]["mean"] for name in (NOTHING, "low", "mid", "high")]
    assert len(set(seconds)) == 4  # every wish has an effect
    assert list(figures["differences"]) == ["low", "mid", "high"]
    assert "high against no wish" in capsys.readouterr().out


def test_a_bundle_without_returns_is_refused(world_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", str(world_run / "bundle"), *QUICK]) == 2
    assert "none: train with model.pathways.returns" in capsys.readouterr().err
