"""The recipe in other widths and on parts of the data: which events are read, what is kept, what is asked alike."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from onerec.data.histories import Histories, Split
from onerec.data.prepared import PreparedData
from onerec.evaluation.runs import load_run
from onerec.model.settings import ModelSettings
from onerec.scaling.recipe import part_of_users, widen
from tests.tiny_run import run_stage, write_config
from tokenizer.table import SemanticIdTable

CHANGES = """
data:
  world: {num_users: 40, num_events: 800}
tokenizer:
  collaborative: {width: 8}
model: {d_model: 8, d_ff: 16}
training: {max_positions_per_step: 128}
decoding: {num_beams: 5, rescoring: 1}
evaluation: {ks: [1, 10]}
scaling:
  recipe: {widths: [2], shares: [0.5]}
"""
ROOT = Path("tiny") / "scaling" / "recipe"


def run(folder: Path, *overrides: str) -> int:
    return run_stage(write_config(folder, CHANGES), folder, *overrides, stage="scaling")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with all rungs finished."""
    runs = tmp_path_factory.mktemp("runs")
    assert run(runs) == 0
    return runs


def test_a_part_is_whole_users_and_lies_within_the_larger_part() -> None:
    lengths = np.arange(40) % 4 + 2  # the last event of each user is held out
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.arange(offsets[-1])
    splits = np.isin(rows, offsets[1:] - 1).astype(np.uint8)
    histories = Histories(offsets, rows, rows, splits, {"liked": rows.astype(float)})
    parts = [part_of_users(histories, share, seed=3) for share in (0.001, 0.1, 0.3, 0.6)]
    assert [np.count_nonzero(np.diff(part.offsets)) for part in parts] == [1, 4, 12, 24]
    for part in parts:
        for user in range(40):
            whole = rows[offsets[user] : offsets[user + 1] - 1].tolist()
            assert part.items[part.offsets[user] : part.offsets[user + 1]].tolist() in ([], whole)
        np.testing.assert_array_equal(part.feedback["liked"], part.items)
        assert not part.splits.any()
    for smaller, larger in itertools.pairwise(parts):
        assert set(smaller.items.tolist()) <= set(larger.items.tolist())
    other = part_of_users(histories, 0.3, seed=4)
    assert set(other.items.tolist()) != set(parts[2].items.tolist())


def test_a_wider_model_keeps_its_heads_width() -> None:
    model = ModelSettings(d_model=12, num_heads=3, d_ff=20, context="lazy", embedding_dim=4, dropout=0.3)
    wider = widen(model, 3)
    assert (wider.d_model, wider.num_heads, wider.d_ff, wider.embedding_dim) == (36, 9, 60, 12)
    assert (wider.num_kv_heads, wider.dropout, widen(model, 1)) == (None, 0.3, model)


def test_rungs_differ_in_width_or_data_and_are_asked_the_same(runs: Path) -> None:
    found = json.loads((runs / ROOT / "recipe.json").read_text())
    assert [point["name"] for point in found["widths"]] == ["recipe", "width-x2"]
    assert [point["name"] for point in found["shares"]] == ["share-0.5", "recipe"]
    own, wide = found["widths"]
    part = found["shares"][0]
    assert wide["without_tables"] > 2 * own["without_tables"]
    assert own["parameters"] > own["without_tables"]
    histories = PreparedData.load(runs / "tiny" / "data").histories
    assert own["events"] == wide["events"] == len(histories.targets(Split.TRAIN))
    assert part["events"] == part_of_users(histories, 0.5, 0).num_events < own["events"]
    rows = {point["name"]: load_run(runs / ROOT / point["name"] / "validation") for point in (own, wide, part)}
    for name, kept in rows.items():
        assert list(kept.evaluations) == ["validation"], name
        np.testing.assert_array_equal(
            kept.evaluations["validation"].targets.rows_R, histories.targets(Split.VALIDATION)
        )
    tables = [SemanticIdTable.load(folder) for folder in (runs / "tiny/tokenizer", runs / ROOT / "share-0.5/tokenizer")]
    assert tables[0].content_hash != tables[1].content_hash  # fitted to its part alone
    assert not (runs / ROOT / "recipe" / "pretrain").exists()  # the run's own
    page = (runs / ROOT / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "share-0.5" in page


def test_rungs_are_kept_added_to_and_refused_in_other_settings(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in runs.glob(f"{ROOT}/*/*/manifest.json")}
    assert len(stamps) == 6  # three evaluations, two trainings, one tokenizer
    assert run(runs, "scaling.recipe.shares=[0.5, 0.75]") == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert (runs / ROOT / "share-0.75" / "validation" / "manifest.json").is_file()
    capsys.readouterr()
    assert run(runs, "scaling.recipe.divide_learning_rate=true") == 1
    assert "made by other settings" in capsys.readouterr().err
    for wrong, message in (("shares=[1.0]", "expected parts of 1"), ("widths=[1]", "whole numbers from 2")):
        assert run(runs, f"scaling.recipe.{wrong}") == 1
        assert message in capsys.readouterr().err
