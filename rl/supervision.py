"""The supervised loss beside the reward: pre-training's windows, less the targets that RSFT filters out.

Reject-sampled fine-tuning of the technical report (arXiv 2506.13695) drops the exposures with the lowest play time.

Shapes: B windows, P targets of a window.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from onerec.data.batches import IGNORED_TARGET, TrainingWindows, bucketed_batches
from onerec.data.histories import Histories
from onerec.errors import DataError
from rl.rewards.feedback import require_column
from rl.settings import SupervisedSettings


def kept_targets(training: Histories, settings: SupervisedSettings) -> np.ndarray | None:
    """Which training events may be targets; None where nothing is filtered. Events not recorded are dropped.

    Raises:
        DataError: the filter column is missing or constant, or none of its values is left.
    """
    if settings.filter_column is None:
        return None
    values_N = require_column(training.feedback, settings.filter_column)
    bound = np.nanquantile(values_N, settings.drop_share)
    kept_N = np.nan_to_num(values_N, nan=-np.inf) > bound
    if not kept_N.any():
        raise DataError(
            f"align.supervised.filter_column {settings.filter_column!r}: found its largest value, {bound:g}, in "
            f"{1 - settings.drop_share:.0%} of the events or more, so that none lies above what is dropped. Lower "
            "align.supervised.drop_share, or name a column of finer values."
        )
    return np.asarray(kept_N)


@dataclass(frozen=True)
class SupervisedBatch:
    """Arguments of the model, and whether their loss counts: every process takes every step, if only for nothing."""

    inputs: dict[str, Any]  # tensors, and a dictionary of them for a model with pathways
    counted: bool


class SupervisedWindows:
    """The windows of every step, each process taking every `num_processes`-th one of a step.

    Args:
        windows: over the training events.
        kept_N: which training events may be targets; None for all.
        num_steps: steps to lay out; passes over the windows follow each other until there are as many.
    """

    def __init__(
        self,
        windows: TrainingWindows,
        kept_N: np.ndarray | None,
        num_steps: int,
        max_positions: int,
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self._windows, self._kept_N = windows, kept_N
        self._own = slice(rank, None, num_processes)
        self._batches: list[np.ndarray] = []
        epoch = 0
        while len(self._batches) < num_steps:
            untrained = windows.num_untrained_positions
            self._batches += bucketed_batches(windows.num_positions, untrained, max_positions, seed, epoch)
            epoch += 1

    def at(self, step: int, device: torch.device) -> SupervisedBatch:
        """The windows of a step; one that does not count where this process has none, or none has a target left."""
        chosen = self._batches[step][self._own]
        windows = chosen if len(chosen) else self._batches[step][:1]
        batch = self._windows.collate(windows)
        counted = len(chosen) > 0
        if self._kept_N is not None:
            all_BP = batch["target_items"]
            dropped_BP = torch.from_numpy(~self._kept_N[self._target_rows(windows, all_BP.size(1))])
            kept_BP = all_BP.masked_fill(dropped_BP, IGNORED_TARGET)
            counted = counted and bool((kept_BP != IGNORED_TARGET).any())
            batch["target_items"] = kept_BP if counted else all_BP
        return SupervisedBatch(send_to_device(batch, device), counted)

    def _target_rows(self, windows: np.ndarray, num_targets: int) -> np.ndarray:
        """Training row (B, P) of every target, of any row where there is none."""
        if self._windows.one_target:
            return self._windows.stops[windows][:, None] - 1
        starts_B = self._windows.starts[windows]
        width = max(int(self._windows.num_positions[windows].max()), 2)
        rows_BP = starts_B[:, None] + np.arange(width - num_targets, width)
        return np.minimum(rows_BP, len(self._windows.items) - 1)
