"""Processes train as one: same losses however a step, its state or its weights are shared out, killed or not.

All trainings of two processes run in two launches.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from onerec.data.batches import many_target_windows
from onerec.data.histories import Histories, Split
from onerec.errors import OneRecError
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.training.checkpoints import finished_checkpoints
from onerec.training.pretraining import pretrain
from onerec.training.settings import TrainingSettings
from onerec.training.trainer import BatchPlan
from tests.processes import by_torchrun, started
from tokenizer.table import SemanticIdTable

NUM_ITEMS = 12
LONGEST_TRAINING_S = 400  # far beyond what it takes: a hang, not a slow machine, ends it
TRAINING = TrainingSettings(
    precision="float32",
    epochs=2,
    max_positions_per_step=14,
    learning_rate=5e-3,  # at twice that a gradient of the last step enlarges differences of rounding tenfold
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
AVERAGED = {"ema_decay": 0.9}
SPARSE = {"sparse_tables": True}
EXPERTS = {"num_experts": 16}  # more than a process's tokens of most steps choose: some are without any
SHARDED = {"zero_stage": 2, **AVERAGED}
THRIFTY = {"zero_stage": 3, "accumulation_steps": 2, "activation_checkpointing": True, **AVERAGED}
DRAWN = {"layer_dropout": 0.5, "prefix_loss_weight": 0.2, "prefix_rivals": 3, "adversarial_weight": 0.5}
Jobs = Sequence[tuple[str, dict[str, Any]]]


def ragged_histories() -> Histories:
    """Users with 1 to 12 training events, so that long ones fill a step alone."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 13, 10)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = generator.integers(0, NUM_ITEMS, offsets[-1]).astype(np.int32)
    splits = np.full(len(items), Split.TRAIN, dtype=np.uint8)
    liked = generator.integers(0, 2, len(items)).astype(np.float32)
    return Histories(offsets, items, np.arange(len(items)), splits, {"liked": liked})


def wide_table() -> SemanticIdTable:
    """So many codes that ZeRO 3 does shard the code table and head: it leaves tensors below 10^5 numbers whole."""
    codes_NL = np.stack([np.arange(NUM_ITEMS) // 4, np.arange(NUM_ITEMS) % 4], axis=1)
    return SemanticIdTable.of_unique(codes_NL, (3, 6400), map(str, range(NUM_ITEMS)))


def train(
    folder: Path,
    fatal_validation: int | None = None,
    killed: bool = False,
    num_experts: int = 0,
    drawn: bool = False,
    **options: Any,
) -> None:
    """A training whose validations leave a line each in a file; `options` are training settings.

    Args:
        fatal_validation: the one that fails.
        killed: process 1 is killed as soon as there is a checkpoint.
        drawn: the model has terms of the loss that draw numbers, each process its own.
    """
    validations, work = folder / "validations", folder / "checkpoints"

    def validate(model: OneRec) -> dict[str, float]:
        with validations.open("a") as file:
            file.write("validated\n")
        number = validations.read_text().count("\n")
        if number == fatal_validation:
            raise RuntimeError("stopped here")
        return {"ndcg@10": float(number)}

    folder.mkdir(exist_ok=True)
    if killed and os.environ["RANK"] == "1":
        threading.Thread(target=_die_at_checkpoint, args=[work], daemon=True).start()
    settings = TrainingSettings.model_validate(TRAINING.model_dump() | options)
    without_head = {"item_head_weight": 0.0, "item_distillation": 0.0} if settings.sparse_tables else {}
    terms = DRAWN if drawn else {}
    model = MODEL.model_copy(update={"num_experts": num_experts, **without_head, **terms})
    pretrain(ragged_histories(), wide_table(), model, settings, validate, folder / "pretrain", work, {}, "0" * 64, 3)


def _die_at_checkpoint(work: Path) -> None:
    while not finished_checkpoints(work):
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)


def objectives(root: Path) -> dict[str, Any]:
    """Weights by behaviour, targets from the future, windows that slide, and the first training as a teacher."""
    weights = [{"column": "liked", "weights": {0: 1, 1: 2.5}}]
    targets = {"weights": weights, "future": {"events": 3}, "sliding": {}}
    return {"targets": targets, "teacher": {"path": str(root / "one")}}


def train_in_turn(root: Path, jobs: Jobs) -> None:
    """Train in one folder after the other; an error meant for users is written to `error` in the folder."""
    for name, options in jobs:
        try:
            train(root / name, **options)
        except OneRecError as error:
            (root / name / "error").write_text(str(error))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of trainings: one process in this one, two that are killed, two more, and DeepSpeed with one alone."""
    root = tmp_path_factory.mktemp("trainings")
    train_in_turn(root, [("one", {}), ("one averaged", AVERAGED), ("one sparse", SPARSE), ("one experts", EXPERTS)])
    train_in_turn(root, [("one objectives", objectives(root))])
    with pytest.raises(RuntimeError, match="stopped here"):
        train(root / "one then two", fatal_validation=2)
    with pytest.raises(ChildFailedError) as ended:
        by_torchrun(2, train_in_turn, root, [("killed", {"killed": True, **SHARDED})])
    (root / "killed" / "message").write_text(str(ended.value))
    resumed = [("one then two", {}), ("killed", SHARDED)]
    two = [("two", {}), ("two sparse", SPARSE), ("two experts", EXPERTS)]
    two += [("two objectives", objectives(root)), ("two drawn", {"drawn": True, **objectives(root)})]
    sharded = [("two stage 1", {"zero_stage": 1}), ("two stage 3", THRIFTY)]
    by_torchrun(2, train_in_turn, root, [*resumed, *two, *sharded])
    shutil.copytree(root / "killed", root / "refused")
    shutil.rmtree(root / "refused" / "pretrain")
    alone = [("refused", SHARDED), ("alone stage 3", THRIFTY), ("after it", {})]
    with started(train_in_turn, root, alone, log=root / "alone.log") as process:
        process.join(LONGEST_TRAINING_S)
        assert process.exitcode == 0, (root / "alone.log").read_text()
    return root


def log(folder: Path) -> list[dict[str, float]]:
    lines = json.loads((folder / "pretrain" / "log_history.json").read_text())
    losses = {"loss", "loss_level_0", "loss_level_1", "loss_item_head", "loss_teacher"}
    measured = {"step", "grad_norm", "learning_rate", *losses}
    return [{key: line[key] for key in measured & line.keys()} for line in lines if "loss" in line]


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_processes_and_parts_share_every_window_of_a_step(num_processes: int, num_parts: int) -> None:
    windows = many_target_windows(ragged_histories(), 50)
    settings = TRAINING.model_copy(update={"accumulation_steps": num_parts})
    plans = [BatchPlan(windows, settings, 3, rank, num_processes) for rank in range(num_processes)]
    steps = [[*zip(*[iter(plan)] * num_parts, strict=True)] for plan in plans]  # a process, a step, a part: windows
    taken = [np.concatenate([part for process in step for part in process]) for step in zip(*steps, strict=True)]
    whole = list(BatchPlan(windows, TRAINING, 3, 0, 1))
    assert len(plans[0]) == len(whole) * num_parts
    for windows_of_step, expected in zip(taken, whole, strict=True):
        assert sorted(windows_of_step) == sorted(expected)
    assert min(map(len, taken)) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("two", "one"),
        ("two sparse", "one sparse"),
        ("two experts", "one experts"),
        ("two objectives", "one objectives"),
        ("one then two", "one"),
        ("two stage 1", "one"),
        ("killed", "one averaged"),
        ("two stage 3", "one averaged"),
        ("alone stage 3", "one averaged"),
        ("after it", "one"),
    ],
)
def test_losses_and_weights_are_those_of_one_process(root: Path, name: str, expected: str) -> None:
    assert_same_training(root / name, root / expected)


def assert_same_training(folder: Path, expected: Path) -> None:
    assert len(log(expected)) > 10
    for found, line in zip(log(folder), log(expected), strict=True):
        assert found == pytest.approx(line, rel=1e-5, abs=1e-5)
    weights, expected_weights = (load_file(path / "pretrain" / "model.safetensors") for path in (folder, expected))
    assert weights.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        np.testing.assert_allclose(weights[name], tensor, rtol=1e-3, atol=1e-4, err_msg=name)


def test_terms_that_draw_their_own_numbers_train_together(root: Path) -> None:
    lines = json.loads((root / "two drawn" / "pretrain" / "log_history.json").read_text())
    terms = [[line[name] for name in ("loss", "loss_prefix", "loss_adversarial")] for line in lines if "loss" in line]
    assert len(terms) > 10
    assert np.isfinite(terms).all()


def test_the_main_process_alone_validates(root: Path) -> None:
    assert (root / "two" / "validations").read_text() == "validated\n" * TRAINING.epochs


def test_one_process_goes_on_where_two_have_stopped(root: Path) -> None:
    folder = root / "two then one"
    shutil.copytree(root / "two", folder)
    shutil.rmtree(folder / "pretrain")
    shutil.rmtree(finished_checkpoints(folder / "checkpoints")[-1])
    train(folder)
    assert_same_training(folder, root / "one")


def test_a_killed_process_ends_the_job_with_a_message(root: Path) -> None:
    assert "SIGKILL" in (root / "killed" / "message").read_text()


def test_shards_of_two_processes_are_refused_by_one(root: Path) -> None:
    error = (root / "refused" / "error").read_text()
    assert "of 2 processes, expected those of 1" in error
    assert "--nproc_per_node=2" in error


def test_optimizer_state_is_shared_out(root: Path) -> None:
    """Two processes hold half of it each."""
    whole = (root / "two" / "checkpoints" / "checkpoint-12" / "optimizer.pt").stat().st_size
    shards = (root / "two stage 1" / "checkpoints" / "checkpoint-12").glob("global_step12/*_optim_states.pt")
    # Beside the two moments a shard holds the weights: three numbers for each of half of the weights.
    assert [path.stat().st_size / whole for path in shards] == pytest.approx([0.75, 0.75], rel=0.1)
