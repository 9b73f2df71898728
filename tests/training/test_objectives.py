"""Objectives in whole trainings: parts add up, a stopped run goes on exactly, who cannot teach is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from onerec.data.histories import Histories, Split
from onerec.data.target_settings import TargetSettings
from onerec.errors import ArtifactError, ConfigError, DataError
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.training.pretraining import build_model, pretrain, training_windows
from onerec.training.settings import TrainingSettings
from onerec.training.teacher import Teacher
from onerec.training.trainer import BatchPlan, OneRecTrainer
from tokenizer.artifacts import read_manifest
from tokenizer.table import SemanticIdTable

TARGETS = {
    "weights": [{"column": "liked", "weights": {0: 1, 1: 2.5}}],
    "future": {"events": 3},
    "sliding": {"newest_every": 3},
}
SETTINGS = {
    "precision": "float32",
    "epochs": 3,
    "max_positions_per_step": 24,
    "warmup_steps": 2,
    "evaluate_every_epochs": 1,
    "logging_steps": 1,
    "max_gradient_norm": 1e9,
    "targets": TARGETS,
}
SHAPE = {"d_model": 16, "num_heads": 2, "d_ff": 32, "num_context_layers": 2, "num_decoder_layers": 1}
CALM = ModelSettings(**SHAPE, max_history_items=6, dropout=0.0)
RANDOM = ModelSettings(
    **SHAPE,
    max_history_items=6,
    dropout=0.2,
    final_dropout=0.0,
    layer_dropout=0.3,
    prefix_loss_weight=0.2,
    prefix_rivals=4,
    adversarial_weight=0.5,
    adversarial_by_fit=True,
)


def histories() -> Histories:
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(generator.integers(2, 16, 12))])
    items = generator.integers(0, 12, offsets[-1]).astype(np.int32)
    liked = generator.integers(0, 2, len(items)).astype(np.float32)
    splits = np.full(len(items), Split.TRAIN, dtype=np.uint8)
    return Histories(offsets, items, np.arange(len(items)), splits, {"liked": liked})


def table(first_code: int = 0) -> SemanticIdTable:
    codes_NL = np.stack([(np.arange(12) // 4 + first_code) % 3, np.arange(12) % 4], axis=1)
    return SemanticIdTable.of_unique(codes_NL, (3, 4), map(str, range(12)))


def train(
    folder: Path, model: ModelSettings, fatal_validation: int | None = None, num_validated: int = 0, **options: Any
) -> OneRec:
    """What validation returns grows with every one of them, so that the last weights are the best."""
    calls = iter(range(num_validated + 1, 100))

    def validate(_: OneRec) -> dict[str, float]:
        number = next(calls)
        if number == fatal_validation:
            raise KeyboardInterrupt
        return {"ndcg@10": float(number)}

    settings = TrainingSettings.model_validate(SETTINGS | options)
    work = folder / "checkpoints"
    return pretrain(histories(), table(), model, settings, validate, folder / "pretrain", work, {}, "0" * 64, 3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a wider model."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    wide = CALM.model_copy(update={"d_model": 24, "max_history_items": 8})
    train(folder, wide, epochs=1, targets={})
    return folder


def recorded_gradients(folder: Path, teacher: Path, **options: Any) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    settings = TrainingSettings.model_validate(SETTINGS | options | {"teacher": {"path": teacher, "weight": 0.5}})
    model = build_model(CALM, table(), teacher=settings.teacher)
    gradients: list[dict[str, Tensor]] = []

    class Recorder(TrainerCallback):
        def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    windows = training_windows(histories(), model, None, settings.targets, 3)
    reader = Teacher.load(teacher, model)
    measure = {"ndcg@10": 0.0}
    trainer = OneRecTrainer(model, windows, settings, folder, 3, lambda _: measure, lambda *_: None, reader)
    trainer.add_callback(Recorder())
    trainer.train()
    return gradients


def test_parts_of_a_step_add_up_with_weights_and_a_teacher(tmp_path: Path, teacher: Path) -> None:
    whole = recorded_gradients(tmp_path / "whole", teacher, epochs=1)
    parts = recorded_gradients(tmp_path / "parts", teacher, epochs=1, accumulation_steps=3)
    assert len(parts) == len(whole) > 2
    for found, expected in zip(parts[:2], whole[:2], strict=True):
        assert found.keys() == expected.keys()
        assert any(name.startswith("teacher_heads") for name in found)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)  # of a norm of 65


def test_a_stopped_training_of_all_objectives_goes_on_exactly(tmp_path: Path, teacher: Path) -> None:
    shape = {"epochs": 2, "activation_checkpointing": True, "accumulation_steps": 2}
    options = {"teacher": {"path": teacher}, **shape}
    train(tmp_path / "unbroken", RANDOM, **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", RANDOM, fatal_validation=2, **options)
    train(tmp_path / "stopped", RANDOM, num_validated=1, **options)
    folders = [tmp_path / run / "pretrain" for run in ("unbroken", "stopped")]
    terms = ("loss", "loss_prefix", "loss_teacher", "loss_adversarial", "loss_item_head", "loss_level_1")
    logs = [json.loads((folder / "log_history.json").read_text()) for folder in folders]
    first, second = ([[line[term] for term in terms] for line in log if "loss" in line] for log in logs)
    assert first == second
    assert np.isfinite(first).all()
    weights, others = (load_file(folder / "model.safetensors") for folder in folders)
    torch.testing.assert_close(weights, others, rtol=0, atol=0)


def test_a_finished_model_has_forgotten_its_teacher(tmp_path: Path, teacher: Path) -> None:
    model = train(tmp_path, CALM, teacher={"path": teacher / "pretrain"}, epochs=1)
    assert (model.teacher_heads, model.config.teacher_weight) == (None, 0)
    assert not [name for name in load_file(tmp_path / "pretrain" / "model.safetensors") if "teacher" in name]
    made_from = read_manifest(tmp_path / "pretrain", "pretrain").inputs
    assert made_from["teacher"] == read_manifest(teacher / "pretrain", "pretrain").content_hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_history_items": 9}, "max_history_items: found 8, expected at least 9"),
        ({"context": "bidirectional"}, "context: found causal, expected bidirectional"),
    ],
)
def test_a_teacher_that_reads_something_else_is_refused(
    teacher: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        Teacher.load(teacher, build_model(CALM.model_copy(update=changes), table()))


def test_a_teacher_of_another_table_is_refused(teacher: Path, tmp_path: Path) -> None:
    student = build_model(CALM, table(first_code=1))
    with pytest.raises(ArtifactError, match=f"another ID table: found hash {table().content_hash}"):
        Teacher.load(teacher, student)
    with pytest.raises(ArtifactError, match="found no manifest"):
        Teacher.load(tmp_path, student)


def test_an_epoch_reads_the_windows_whose_turn_it_is() -> None:
    model = build_model(CALM, table())
    settings = TrainingSettings.model_validate(SETTINGS)
    windows = training_windows(histories(), model, None, settings.targets, 3)
    rows = np.concatenate(list(BatchPlan(windows, settings, 3, 0, 1)))
    epochs, numbers = np.divmod(rows, len(windows))
    for epoch in range(settings.epochs):
        np.testing.assert_array_equal(np.sort(numbers[epochs == epoch]), windows.of_epoch(epoch))
    assert len(windows.of_epoch(0)) < len(windows)


def test_contradictions_are_refused_before_work_is_lost(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"zero_stage: found 3 beside model\.adversarial_weight"):
        train(tmp_path, RANDOM, zero_stage=3)
    model = build_model(CALM, table())
    with pytest.raises(ConfigError, match=r"found 'like', expected a feedback column .*liked"):
        training_windows(histories(), model, None, targets([{"column": "like", "weights": {1: 2}}]))
    with pytest.raises(DataError, match="every event has weight 0"):
        training_windows(histories(), model, None, targets([{"column": "liked", "weights": {0: 0}}]))


def targets(weights: list[dict[str, Any]]) -> TargetSettings:
    return TargetSettings.model_validate({"weights": weights})
