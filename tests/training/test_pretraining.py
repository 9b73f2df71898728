"""Pre-training on a small pattern: it learns, resumes exactly after SIGKILL, and refuses what does not belong."""

import json
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from onerec.data.histories import Histories, Split
from onerec.errors import ArtifactError, DataError
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.training.pretraining import load_pretrained, pretrain
from onerec.training.settings import TrainingSettings
from tests.processes import started
from tokenizer.table import SemanticIdTable

NUM_ITEMS = 12


def cyclic_histories(num_users: int = 60, length: int = 9, seed: int = 0) -> Histories:
    """Users who walk through the catalogue in a circle, so that the next item is certain."""
    starts = np.random.default_rng(seed).integers(0, NUM_ITEMS, num_users)
    items = ((starts[:, None] + np.arange(length)) % NUM_ITEMS).astype(np.int32).ravel()
    splits = np.tile([Split.TRAIN] * (length - 2) + [Split.VALIDATION, Split.TEST], num_users).astype(np.uint8)
    times = np.tile(np.arange(length), num_users).astype(np.int64)
    return Histories(np.arange(num_users + 1, dtype=np.int64) * length, items, times, splits)


def small_table() -> SemanticIdTable:
    codes_NL = np.stack([np.arange(NUM_ITEMS) // 4, np.arange(NUM_ITEMS) % 4], axis=1).astype(np.int32)
    return SemanticIdTable.of_unique(codes_NL, (3, 4), [f"item-{item}" for item in range(NUM_ITEMS)])


SMALL_MODEL = ModelSettings(d_model=16, num_heads=2, d_ff=32, num_context_layers=1, num_decoder_layers=1)


def train_small(
    folder: Path, epochs: int = 6, histories: Histories | None = None, seconds_per_validation: float = 0
) -> OneRec:
    """The smallest training; what `validate` returns grows, so that the last weights are the best."""
    calls = iter(range(10_000))

    def validate(model: OneRec) -> dict[str, float]:
        time.sleep(seconds_per_validation)
        return {"ndcg@10": float(next(calls))}

    settings = TrainingSettings(
        epochs=epochs,
        max_positions_per_step=64,
        learning_rate=1e-2,
        warmup_steps=5,
        evaluate_every_epochs=1,
        checkpoint_steps=3,
        logging_steps=1,
    )
    return pretrain(
        histories or cyclic_histories(),
        small_table(),
        SMALL_MODEL,
        settings,
        validate,
        folder / "pretrain",
        folder / "checkpoints",
        inputs={"data": "0" * 64},
        config_hash="1" * 64,
        seed=3,
    )


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line of a finished training's log."""
    log = json.loads((folder / "pretrain" / "log_history.json").read_text())
    return [(line["step"], line["loss"]) for line in log if "loss" in line]


def test_certain_successors_are_learnt(tmp_path: Path) -> None:
    train_small(tmp_path, epochs=12)
    trace = [loss for _, loss in losses(tmp_path)]
    # A history's first item stays uncertain: 1 of 7 targets costs log 12 in the codes and again in the item head.
    assert np.mean(trace[-7:]) < 0.4 * trace[0]


def test_log_tells_level_losses_and_speed(tmp_path: Path) -> None:
    train_small(tmp_path, epochs=1)
    log = json.loads((tmp_path / "pretrain" / "log_history.json").read_text())
    line = next(line for line in log if "loss" in line)
    expected = {"loss_level_0", "loss_level_1", "loss_item_head", "targets_per_s", "tokens_per_s", "flops_utilisation"}
    assert expected <= line.keys()
    assert line["loss"] == pytest.approx(line["loss_level_0"] + line["loss_level_1"] + line["loss_item_head"], rel=1e-4)
    assert list((tmp_path / "checkpoints" / "tensorboard").iterdir())


def test_each_epoch_is_validated_once(tmp_path: Path) -> None:
    train_small(tmp_path, epochs=3)
    log = json.loads((tmp_path / "pretrain" / "log_history.json").read_text())
    assert [line["eval_ndcg@10"] for line in log if "eval_ndcg@10" in line] == [0, 1, 2]


def test_seed_fixes_the_trace(tmp_path: Path) -> None:
    train_small(tmp_path / "first", epochs=2)
    train_small(tmp_path / "second", epochs=2)
    assert losses(tmp_path / "first") == losses(tmp_path / "second")


def test_held_out_events_change_nothing(tmp_path: Path) -> None:
    histories = cyclic_histories()
    marked = histories.items.copy()
    marked[histories.splits != Split.TRAIN] = 7
    train_small(tmp_path / "plain", epochs=2, histories=histories)
    other = Histories(histories.offsets, marked, histories.timestamps, histories.splits)
    train_small(tmp_path / "marked", epochs=2, histories=other)
    assert losses(tmp_path / "plain") == losses(tmp_path / "marked")
    weights = [(tmp_path / run / "pretrain" / "model.safetensors").read_bytes() for run in ("plain", "marked")]
    assert weights[0] == weights[1]


def test_no_training_event_is_an_error(tmp_path: Path) -> None:
    held_out = Histories(np.array([0, 1]), np.array([3], np.int32), np.array([0]), np.array([2], np.uint8))
    with pytest.raises(DataError, match="no training event"):
        train_small(tmp_path, histories=held_out)


def test_model_of_another_table_is_refused(tmp_path: Path) -> None:
    train_small(tmp_path, epochs=1)
    table = small_table()
    other = SemanticIdTable.of_unique(table.codes_NL[::-1], table.codes_per_level, table.item_ids)
    with pytest.raises(ArtifactError, match=table.content_hash):
        load_pretrained(tmp_path / "pretrain", other)


@pytest.mark.parametrize("num_kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_run_continues_with_the_same_losses(tmp_path: Path, num_kills: int) -> None:
    epochs, folder, log = 4 * num_kills, tmp_path / "killed", tmp_path / "log"  # long enough to be killed so often
    train_small(tmp_path / "unbroken", epochs)
    generator = random.Random(num_kills)
    for _ in range(num_kills):
        with started(train_small, folder, epochs, None, 0.4, log=log) as process:
            _wait_for_progress(folder / "checkpoints", process)
            time.sleep(generator.uniform(0, 0.75))
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL, log.read_text()[-2000:]
    train_small(folder, epochs)
    assert losses(folder) == losses(tmp_path / "unbroken")


def _wait_for_progress(checkpoints: Path, process: BaseProcess) -> None:
    """Return when a new checkpoint has appeared or the process has ended."""
    before = set(checkpoints.glob("checkpoint-*"))
    while process.is_alive() and set(checkpoints.glob("checkpoint-*")) <= before:
        time.sleep(0.02)
