"""Two processes train as one: same losses, one validation, nothing lost where a step has too few windows."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onerec.data.batches import many_target_windows
from onerec.data.histories import Histories, Split
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.training.pretraining import load_pretrained, pretrain
from onerec.training.settings import TrainingSettings
from onerec.training.trainer import BatchPlan
from tokenizer.table import SemanticIdTable

NUM_ITEMS = 12
ROOT = Path(__file__).parents[2]
TRAINING = TrainingSettings(
    precision="float32",
    epochs=2,
    max_positions_per_step=14,
    learning_rate=1e-2,
    warmup_steps=2,
    evaluate_every_epochs=1,
    logging_steps=1,
)
MODEL = ModelSettings(
    d_model=16,
    num_heads=2,
    d_ff=32,
    num_context_layers=1,
    num_decoder_layers=1,
    item_distillation=0.3,
    dropout=0.0,
)


def ragged_histories() -> Histories:
    """Users with 1 to 12 training events, so that long ones fill a step alone."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 13, 16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = generator.integers(0, NUM_ITEMS, offsets[-1]).astype(np.int32)
    splits = np.full(len(items), Split.TRAIN, dtype=np.uint8)
    return Histories(offsets, items, np.arange(len(items)), splits)


def small_table() -> SemanticIdTable:
    codes_NL = np.stack([np.arange(NUM_ITEMS) // 4, np.arange(NUM_ITEMS) % 4], axis=1)
    return SemanticIdTable.of_unique(codes_NL, (3, 4), map(str, range(NUM_ITEMS)))


def train(folder: Path) -> None:
    """A training whose validations leave a line each in a file."""

    def validate(model: OneRec) -> dict[str, float]:
        with (folder / "validations").open("a") as file:
            file.write("validated\n")
        return {"ndcg@10": float(model.code_heads.training)}

    work = folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    pretrain(ragged_histories(), small_table(), MODEL, TRAINING, validate, folder / "pretrain", work, {}, "0" * 64, 3)


def log(folder: Path) -> list[dict[str, float]]:
    lines = json.loads((folder / "pretrain" / "log_history.json").read_text())
    measured = ("step", "loss", "grad_norm", "learning_rate", "loss_level_0", "loss_level_1", "loss_item_head")
    return [{key: line[key] for key in measured} for line in lines if "loss" in line]


@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_processes_share_every_window_of_a_step(num_processes: int) -> None:
    windows = many_target_windows(ragged_histories(), 50)
    plans = [list(BatchPlan(windows, TRAINING, 3, rank, num_processes)) for rank in range(num_processes)]
    assert min(sum(map(len, step)) for step in zip(*plans, strict=True)) == 1
    taken = np.concatenate([share for plan in plans for share in plan])
    np.testing.assert_array_equal(np.bincount(taken, minlength=len(windows)), TRAINING.epochs)


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    train(tmp_path / "one")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launch, __file__, str(tmp_path / "two")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) > 10
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=1e-5, abs=1e-5)
    assert (tmp_path / "two" / "validations").read_text() == "validated\n" * TRAINING.epochs
    weights = [load_pretrained(tmp_path / name / "pretrain", small_table()).state_dict() for name in ("one", "two")]
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(weights[1][name], tensor, rtol=1e-3, atol=1e-4, err_msg=name)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
