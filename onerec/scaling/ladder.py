"""The points of a ladder: one size trained for one compute budget, and its loss on held-out events.

What a budget buys is counted by `onerec.model.flops`, window by window. Where it buys less than all training windows,
a seeded subset is read, the smaller a part of the larger; where it buys more, all of them as often as it takes. Each
point has a schedule of its own length, as the runs behind arXiv 2203.15556's fits have.

Shapes: w windows, L code levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel

from onerec.data.batches import TrainingWindows
from onerec.data.histories import Histories, Split
from onerec.model.configuration import OneRecConfig
from onerec.model.flops import training_flops
from onerec.model.onerec import OneRec
from onerec.model.presets import count_parameters
from onerec.model.settings import ModelSettings
from onerec.scaling.settings import SizeSettings
from onerec.training.checkpoints import latest_checkpoint
from onerec.training.failures import explained_failures
from onerec.training.settings import TrainingSettings
from onerec.training.trainer import BatchPlan, OneRecTrainer
from tokenizer.artifacts import explained_os_errors

_POSITIONS_A_BATCH = 4096
_SELECTION = "negative_loss"


class Point(BaseModel):
    """What one run of the ladder showed."""

    size: str
    budget: float
    parameters: int
    """N: all but the tables of items and codes that the context looks up, as the papers count."""
    codes: int
    """D: codes trained on, repeats included."""
    flops: float
    """C, of the windows that were read."""
    epochs: float
    """Passes over the training events, repeated data from 1 on."""
    loss: float
    """Mean cross-entropy of a held-out code, in nats."""
    minutes: float


@dataclass(frozen=True)
class Plan:
    """What a budget buys: some windows, so many times."""

    windows: TrainingWindows
    epochs: int
    flops: float
    passes: float
    """The budget over the cost of all training windows."""

    @classmethod
    def of(cls, windows: TrainingWindows, config: OneRecConfig, budget: float, seed: int) -> "Plan":
        """The windows that come nearest to the budget from below, at least one."""
        costs_w = window_flops(windows, config)
        epochs = max(math.ceil(budget / costs_w.sum()), 1)
        order_w = np.random.default_rng(seed).permutation(len(windows))
        num_windows = max(int(np.searchsorted(np.cumsum(costs_w[order_w]), budget / epochs, side="right")), 1)
        chosen = np.sort(order_w[:num_windows])
        parts = {name: getattr(windows, name)[chosen] for name in ("starts", "stops", "first_targets")}
        flops = float(epochs * costs_w[chosen].sum())
        return cls(replace(windows, **parts), epochs, flops, flops / float(costs_w.sum()))

    @property
    def num_targets(self) -> int:
        """Targets trained on, repeats included."""
        return self.epochs * self.windows.num_targets


def window_flops(windows: TrainingWindows, config: OneRecConfig) -> np.ndarray:
    """Training FLOPs of each window (w,), as the trainer counts them."""
    targets_w = windows.stops - windows.first_targets
    lengths_w = windows.num_positions
    return np.array(
        [
            training_flops(config, int(length), int(targets), length / (1 if windows.one_target else 2))
            for length, targets in zip(lengths_w, targets_w, strict=True)
        ]
    )


def size_model(model: ModelSettings, size: SizeSettings) -> ModelSettings:
    """The run's model in another size."""
    shape = {
        "d_model": size.d_model,
        "d_ff": 4 * size.d_model,
        "num_heads": size.num_heads,
        "head_dim": None,
        "num_context_layers": size.num_layers,
        "num_decoder_layers": size.num_layers,
    }
    return ModelSettings.model_validate(model.model_dump() | shape)


def train_point(
    model: OneRec, plan: Plan, settings: TrainingSettings, folder: Path, seed: int, held_out: Callable[[OneRec], float]
) -> tuple[float, float]:
    """Loss on held-out events and minutes of one run; goes on from the newest checkpoint in `folder`.

    Raises:
        ConfigError: settings that contradict the model's, or out of memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    changes = {"epochs": plan.epochs, "evaluate_every_epochs": plan.epochs, "selection_metric": _SELECTION}
    settings = settings.model_copy(update=changes)
    num_steps = int(BatchPlan(plan.windows, settings, seed, 0, 1).epoch_ends[-1])
    settings = settings.model_copy(update={"warmup_steps": min(settings.warmup_steps, num_steps // 10)})

    def validate(candidate: OneRec) -> dict[str, float]:
        return {_SELECTION: -held_out(candidate)}

    trainer = OneRecTrainer(model, plan.windows, settings, folder, seed, validate, lambda _model, _step: None)
    resume_from = latest_checkpoint(folder)
    with explained_os_errors(folder), explained_failures(settings):
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    key = f"eval_{_SELECTION}"
    found = [line[key] for line in trainer.state.log_history if key in line]
    return -found[-1], trainer.training_minutes


def measure(size: SizeSettings, budget: float, config: OneRecConfig, plan: Plan, result: tuple[float, float]) -> Point:
    """The point that a run has shown."""
    loss, minutes = result
    return Point(
        size=size.name,
        budget=budget,
        parameters=count_parameters(config).total,
        codes=plan.num_targets * config.num_levels,
        flops=plan.flops,
        epochs=plan.passes,
        loss=loss,
        minutes=minutes,
    )


def held_out_windows(histories: Histories, max_items: int, num_targets: int | None, seed: int) -> TrainingWindows:
    """Validation events, or a seeded sample of them, each after its user's newest `max_items` events."""
    rows = histories.targets(Split.VALIDATION)
    if num_targets is not None and num_targets < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, num_targets, replace=False))
    starts = np.maximum(histories.offsets[histories.users_of(rows)], rows - max_items)
    return TrainingWindows(histories.items, starts, rows + 1, rows, one_target=True)


@torch.inference_mode()
def code_loss(model: OneRec, windows: TrainingWindows) -> float:
    """Mean cross-entropy of a code over the windows' targets, in nats."""
    was_training = model.training
    model.eval()
    order_w = np.argsort(windows.num_positions, kind="stable")
    size = max(_POSITIONS_A_BATCH // int(windows.num_positions.max()), 1)
    total = 0.0
    for first in range(0, len(order_w), size):
        batch = windows.collate(order_w[first : first + size])
        outputs = model(**{name: value.to(model.device) for name, value in batch.items()})
        total += float(outputs.level_losses_L.mean() * outputs.num_targets)
    model.train(was_training)
    return total / len(order_w)
