"""What a budget buys, the loss that is measured, and a ladder through the door that is kept, added to and resumed."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from onerec.data.batches import many_target_windows
from onerec.data.histories import Histories, Split
from onerec.model.configuration import OneRecConfig
from onerec.model.flops import training_flops
from onerec.model.onerec import OneRec
from onerec.scaling.ladder import Plan, code_loss, held_out_windows, window_flops
from tests.processes import started
from tests.tiny_run import run_stage, write_config

CHANGES = """
data:
  world: {num_users: 40, num_events: 600}
tokenizer:
  collaborative: {width: 8}
training: {max_positions_per_step: 128, checkpoint_steps: 2}
scaling:
  sizes: [{d_model: 8, num_layers: 1}, {d_model: 16, num_layers: 1}]
  budgets: [3.0e+7]
  bootstrap_samples: 3
"""


def small_config(**options: float) -> OneRecConfig:
    return OneRecConfig([3, 4], 12, d_model=8, num_heads=2, d_ff=16, max_history_items=6, **options)


def small_histories() -> Histories:
    lengths = np.array([9, 3, 12, 5])
    splits = np.concatenate([[Split.TRAIN] * (length - 2) + [Split.VALIDATION, Split.TEST] for length in lengths])
    items = np.random.default_rng(0).integers(0, 12, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(offsets, items, np.arange(len(items)), splits.astype(np.uint8))


def test_a_budget_buys_windows_by_their_flops() -> None:
    config, windows = small_config(), many_target_windows(small_histories(), 6)
    costs = window_flops(windows, config)
    # Users of 7, 1, 10 and 3 training events: windows of 7, 1, 7 with 3 more, and 3 targets.
    assert costs[1] == training_flops(config, 1, 1, 0.5)
    assert costs[0] == training_flops(config, 7, 7, 3.5)
    half = Plan.of(windows, config, 0.5 * costs.sum(), seed=0)
    assert (half.epochs, half.flops <= 0.5 * costs.sum()) == (1, True)
    more = Plan.of(windows, config, 2.5 * costs.sum(), seed=0)
    assert more.epochs == 3
    assert 2.5 * costs.sum() - 3 * costs.max() < more.flops <= 2.5 * costs.sum()
    assert more.num_targets == 3 * more.windows.num_targets
    assert more.passes == pytest.approx(more.flops / costs.sum())
    assert set(half.windows.starts) <= set(more.windows.starts)  # the smaller is part of the larger


def test_the_loss_is_that_of_each_held_out_code() -> None:
    torch.manual_seed(0)
    model = OneRec(small_config(item_head_weight=1.0))
    model.set_codes(np.stack([np.arange(12) // 4, np.arange(12) % 4], axis=1), "0" * 64)
    histories = small_histories()
    windows = held_out_windows(histories, 6, None, seed=0)
    assert windows.stops.tolist() == (histories.targets(Split.VALIDATION) + 1).tolist()
    expected = []
    for row in histories.targets(Split.VALIDATION):
        before = histories.before(int(row))[-6:].astype(np.int64)
        batch = {
            "input_ids": torch.from_numpy(before + 1)[None],
            "target_items": torch.tensor([[int(histories.items[row])]]),
        }
        with torch.inference_mode():
            expected.append(model.eval()(**batch).level_losses_L.mean())
    model.train()
    assert code_loss(model, windows) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    assert model.training
    assert len(held_out_windows(histories, 6, 2, seed=0)) == 2


def run(folder: Path, *overrides: str) -> int:
    return run_stage(write_config(folder, CHANGES), folder, *overrides, stage="scaling")


def test_a_killed_ladder_goes_on_and_can_be_added_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert run(whole) == 0
    with started(run, killed) as process:
        while process.is_alive() and not list(killed.glob("tiny/scaling/work/d16*/checkpoint-*")):
            time.sleep(0.02)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in killed.glob("tiny/scaling/points/*")] == ["d8-l1-3e+07"]
    assert run(killed) == 0
    laws = [json.loads((root / "tiny/scaling/law.json").read_text()) for root in (killed, whole)]
    found, expected = ([{**point, "minutes": 0} for point in law["points"]] for law in laws)
    assert found == expected
    assert [point["size"] for point in found] == ["d8-l1", "d16-l1"]
    assert "distinct runs for 5 constants" in laws[0]["laws"]["L(N, D)"]["reason"]

    kept = (killed / "tiny/scaling/points/d8-l1-3e+07/manifest.json").stat().st_mtime_ns
    assert run(killed, "scaling.budgets=[3.0e+7, 6.0e+7, 1.0e+15]") == 0
    law = json.loads((killed / "tiny/scaling/law.json").read_text())
    assert len(law["points"]) == 4
    assert law["left_out"] == ["d8-l1-1e+15", "d16-l1-1e+15"]
    assert (killed / "tiny/scaling/points/d8-l1-3e+07/manifest.json").stat().st_mtime_ns == kept
    page = (killed / "tiny/scaling/report.html").read_text()
    assert "arXiv 2508.20900" in page
    assert "<script" not in page
    capsys.readouterr()
    assert run(killed, "scaling.validation_targets=5") == 1
    assert "trained by other settings" in capsys.readouterr().err
