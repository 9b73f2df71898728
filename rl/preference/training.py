"""Fitting by passes over the earlier events, stopped by the later ones; the weights best on those are kept.

Shapes: B examples, G items of an example (the event's own, then random ones), T towers.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from onerec.errors import OneRecError
from onerec.model.preference.contexts import EventReader
from onerec.model.preference.network import PreferenceModel
from onerec.model.preference.signals import CHOSEN
from rl.preference.events import ExampleRows
from rl.preference.settings import RewardModelSettings


@dataclass(frozen=True)
class Candidates:
    """What is to be told apart for some events: their items, and random ones that nobody chose."""

    rows_B: np.ndarray
    users_B: np.ndarray
    items_BG: np.ndarray
    values_BGT: np.ndarray  # NaN where nothing is known


class CandidateSampler:
    """Puts random items beside events where the settings ask for them.

    A random item that happens to be the event's own says nothing.
    """

    def __init__(self, reader: EventReader, num_items: int, signal_names: list[str], num_negatives: int) -> None:
        self._reader, self._num_items, self._num_negatives = reader, num_items, num_negatives
        self._chosen = signal_names.index(CHOSEN) if num_negatives else None

    def draw(self, rows_B: np.ndarray, generator: np.random.Generator) -> Candidates:
        """Candidates of the events in these rows."""
        histories = self._reader.histories
        own_B1 = np.asarray(histories.items[rows_B]).astype(np.int64)[:, None]
        values_B1T = self._reader.values_NT[rows_B][:, None]
        users_B = histories.users_of(rows_B)
        if self._chosen is None:
            return Candidates(rows_B, users_B, own_B1, values_B1T)
        others = generator.integers(self._num_items, size=(len(rows_B), self._num_negatives))
        values_BnT = np.full((*others.shape, values_B1T.shape[-1]), np.nan, dtype=np.float32)
        values_BnT[..., self._chosen] = np.where(others == own_B1, np.nan, 0.0)
        return Candidates(
            rows_B, users_B, np.hstack([own_B1, others]), np.concatenate([values_B1T, values_BnT], axis=1)
        )


Loss = Callable[[Candidates], Tensor]


def fit_model(
    model: PreferenceModel,
    reader: EventReader,
    sampler: CandidateSampler,
    rows: ExampleRows,
    settings: RewardModelSettings,
    seed: int,
) -> list[dict[str, float]]:
    """Train the reward model in place and return a line for each pass; it is left in evaluation mode."""

    def loss_of(candidates: Candidates) -> Tensor:
        contexts = reader.contexts(candidates.rows_B, model.device)
        scores = model(contexts, torch.from_numpy(candidates.items_BG).to(model.device))
        return model.loss(scores, torch.from_numpy(candidates.values_BGT).to(model.device))

    return fit(model, loss_of, sampler, rows, settings, seed, "train reward model")


def fit(
    network: nn.Module,
    loss_of: Loss,
    sampler: CandidateSampler,
    rows: ExampleRows,
    settings: RewardModelSettings,
    seed: int,
    name: str,
) -> list[dict[str, float]]:
    """Minimise a loss by AdamW until it no longer falls on the validation events.

    Raises:
        OneRecError: the loss is no number.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    best: dict[str, Tensor] = {}
    lines: list[dict[str, float]] = []
    with tqdm(total=settings.epochs, desc=name, unit="epoch") as progress:
        for epoch in range(settings.epochs):
            start = time.perf_counter()
            loss = _train_epoch(network, loss_of, sampler, rows.train, optimizer, settings, seed, epoch)
            line = {
                "epoch": epoch + 1,
                "loss": loss,
                "validation_loss": _mean_loss(network, loss_of, sampler, rows, settings),
            }
            _require_numbers(line, name)
            lines.append({**line, "seconds": time.perf_counter() - start})
            progress.update()
            progress.set_postfix(loss=f"{loss:.4f}", validation=f"{line['validation_loss']:.4f}")
            least = min(lines, key=lambda passed: passed["validation_loss"])["epoch"]
            if least == epoch + 1:
                best = {key: tensor.clone() for key, tensor in network.state_dict().items()}
            elif epoch + 1 - least >= settings.patience:
                break
    network.load_state_dict(best)
    network.eval()
    return lines


def _train_epoch(
    network: nn.Module,
    loss_of: Loss,
    sampler: CandidateSampler,
    rows: np.ndarray,
    optimizer: torch.optim.Optimizer,
    settings: RewardModelSettings,
    seed: int,
    epoch: int,
) -> float:
    """Mean loss of the steps of one pass."""
    network.train()
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(rows)
    losses = []
    for first in range(0, len(order), settings.examples_per_step):
        loss = loss_of(sampler.draw(order[first : first + settings.examples_per_step], generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.inference_mode()
def _mean_loss(
    network: nn.Module, loss_of: Loss, sampler: CandidateSampler, rows: ExampleRows, settings: RewardModelSettings
) -> float:
    """Mean loss over the validation events, with the same random items every time."""
    network.eval()
    generator, size = np.random.default_rng(0), 4 * settings.examples_per_step
    batches = [rows.validation[first : first + size] for first in range(0, len(rows.validation), size)]
    losses = [loss_of(sampler.draw(batch, generator)).item() for batch in batches]
    return float(np.average(losses, weights=[len(batch) for batch in batches]))


def _require_numbers(line: dict[str, float], name: str) -> None:
    if not np.isfinite([line["loss"], line["validation_loss"]]).all():
        raise OneRecError(
            f"{name}: found loss {line['loss']} and validation loss {line['validation_loss']} in pass "
            f"{line['epoch']:g}, expected numbers. Lower reward.learning_rate, or look for outliers in the feedback."
        )
