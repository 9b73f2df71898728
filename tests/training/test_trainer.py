"""What a step computes: the same gradient in parts and with recomputed blocks, the average by hand, memory errors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from onerec.data.batches import many_target_windows
from onerec.data.histories import Histories, Split
from onerec.errors import ConfigError
from onerec.model.onerec import OneRec
from onerec.model.settings import ModelSettings
from onerec.training.checkpoints import latest_checkpoint
from onerec.training.pretraining import build_model, pretrain
from onerec.training.recomputation import recompute_activations
from onerec.training.settings import TrainingSettings
from onerec.training.trainer import OneRecTrainer
from tokenizer.table import SemanticIdTable

SETTINGS = TrainingSettings(
    precision="float32", epochs=2, max_positions_per_step=24, warmup_steps=2, evaluate_every_epochs=1, logging_steps=1
)
MODEL = ModelSettings(d_model=16, num_heads=2, d_ff=32, num_context_layers=2, num_decoder_layers=1, dropout=0.0)


def histories() -> Histories:
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(generator.integers(2, 9, 20))])
    items = generator.integers(0, 12, offsets[-1]).astype(np.int32)
    return Histories(offsets, items, np.arange(len(items)), np.full(len(items), Split.TRAIN, dtype=np.uint8))


def table() -> SemanticIdTable:
    codes_NL = np.stack([np.arange(12) // 4, np.arange(12) % 4], axis=1)
    return SemanticIdTable.of_unique(codes_NL, (3, 4), map(str, range(12)))


class Recorder(TrainerCallback):
    """Keeps every step's gradients and the weights after it."""

    def __init__(self, model: OneRec) -> None:
        self._model = model
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = [self._copied()]

    def _copied(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._model.named_parameters()}

    def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in self._model.named_parameters() if p.grad is not None})

    def on_step_end(self, *_: object, **__: object) -> None:
        self.weights.append(self._copied())


def train_recorded(folder: Path, validate: Callable[[OneRec], None] | None = None, **options: object) -> Recorder:
    torch.manual_seed(0)
    model = build_model(MODEL, table())
    recorder = Recorder(model)

    def measure(candidate: OneRec) -> dict[str, float]:
        if validate is not None:
            validate(candidate)
        return {"ndcg@10": 0.0}

    settings = SETTINGS.model_copy(update=options)
    windows = many_target_windows(histories(), 8)
    trainer = OneRecTrainer(model, windows, settings, folder, 3, measure, lambda *_: None)
    trainer.add_callback(recorder)
    trainer.train()
    return recorder


def pretrain_in(folder: Path, validate: Callable[[OneRec], None], **options: object) -> None:
    def measure(candidate: OneRec) -> dict[str, float]:
        validate(candidate)
        return {"ndcg@10": 0.0}

    settings = SETTINGS.model_copy(update=options)
    work = folder / "checkpoints"
    pretrain(histories(), table(), MODEL, settings, measure, folder / "pretrain", work, {}, "0" * 64, 3)


def test_parts_of_a_step_add_up_to_its_gradient(tmp_path: Path) -> None:
    whole = train_recorded(tmp_path / "whole", max_gradient_norm=1e9)
    parts = train_recorded(tmp_path / "parts", max_gradient_norm=1e9, accumulation_steps=3)
    assert len(parts.gradients) == len(whole.gradients) > 5
    for found, expected in zip(parts.gradients[:2], whole.gradients[:2], strict=True):
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_recomputed_blocks_give_the_same_loss_and_gradient_from_less_memory() -> None:
    loss, gradients, stored = loss_and_gradients(recomputed=False)
    again, gradients_again, stored_again = loss_and_gradients(recomputed=True)
    torch.testing.assert_close((again, gradients_again), (loss, gradients), rtol=0, atol=0)
    assert stored_again < 0.5 * stored


def loss_and_gradients(recomputed: bool) -> tuple[Tensor, dict[str, Tensor | None], int]:
    """With the numbers that were stored for the backward pass."""
    torch.manual_seed(0)
    model = build_model(MODEL.model_copy(update={"dropout": 0.2}), table()).train()
    if recomputed:
        recompute_activations(model)
    num_stored = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal num_stored
        num_stored += tensor.numel()
        return tensor

    torch.manual_seed(1)  # of the dropout, which has to fall on the same places again
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model(input_ids=torch.arange(1, 9)[None], target_items=torch.arange(3, 12)[None]).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}, num_stored


def test_average_by_hand(tmp_path: Path) -> None:
    """Validated weights are the average, its decay 2/11, 3/12, 4/13, ... up to 0.4; the trained ones go on alone."""
    validated: list[dict[str, Tensor]] = []

    def keep(candidate: OneRec) -> None:
        validated.append({name: value.detach().clone() for name, value in candidate.named_parameters()})

    averaged = train_recorded(tmp_path / "averaged", keep, ema_decay=0.4, learning_rate=0.05)
    plain = train_recorded(tmp_path / "plain", learning_rate=0.05)
    torch.testing.assert_close(averaged.weights[-1], plain.weights[-1], rtol=0, atol=0)
    expected = averaged.weights[0]
    ramp = {1: 2 / 11, 2: 3 / 12, 3: 4 / 13, 4: 5 / 14}
    averages = []
    for step, weights in enumerate(averaged.weights[1:], start=1):
        decay = ramp.get(step, 0.4)
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in weights.items()}
        averages.append(expected)
    middle = len(averages) // 2
    torch.testing.assert_close(validated, [averages[middle - 1], averages[-1]])


def test_average_goes_on_exactly(tmp_path: Path) -> None:
    calls: list[OneRec] = []

    def stop_at_second(candidate: OneRec) -> None:
        calls.append(candidate)
        if len(calls) == 2:
            raise KeyboardInterrupt

    pretrain_in(tmp_path / "unbroken", lambda _: None, ema_decay=0.9)
    with pytest.raises(KeyboardInterrupt):
        pretrain_in(tmp_path / "stopped", stop_at_second, ema_decay=0.9)
    pretrain_in(tmp_path / "stopped", lambda _: None, ema_decay=0.9)
    last = [latest_checkpoint(tmp_path / run / "checkpoints") for run in ("unbroken", "stopped")]
    first, second = ((path / "average.safetensors").read_bytes() for path in last if path is not None)
    assert first == second


def test_out_of_memory_names_the_settings_and_loses_nothing(tmp_path: Path) -> None:
    calls: list[OneRec] = []

    def need_too_much(candidate: OneRec) -> None:
        calls.append(candidate)
        if len(calls) == 2:
            torch.empty(2**55)

    with pytest.raises(ConfigError, match=r"max_positions_per_step \(now 24\).*accumulation_steps \(now 1\)"):
        pretrain_in(tmp_path, need_too_much)
    pretrain_in(tmp_path, lambda _: None)
    assert (tmp_path / "pretrain" / "model.safetensors").is_file()
