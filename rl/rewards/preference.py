"""The preference reward: what the reward model expects a user to make of items, as one number an item.

    reward = sum over names of weight * expected value

A name is a column with a tower, whose expected value is in its own unit (a probability; seconds; a count), or `pscore`.
So the weights are what a business would pay: {watch_seconds: 1, like: 20} counts a like as twenty seconds.

Shapes: B requests, G items of a request.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from onerec.data.histories import Histories
from rl.preference.events import EventReader
from rl.preference.network import PSCORE, PreferenceModel, Scores
from rl.preference.signals import require_known
from tokenizer.settings import Settings

_PAIRS_AT_A_TIME = 16_384  # of a request and an item


class PreferenceRewardSettings(Settings):
    """The reward model in the reward of a generated item."""

    folder: Path | None = Field(None, description="a finished reward stage of this catalogue; null: the run's own")
    weight: FiniteFloat = Field(1.0, description="of the preference in the sum of rewards")
    weights: dict[str, FiniteFloat] = Field(
        {PSCORE: 1.0}, min_length=1, description="tower, or pscore -> weight of its expected value in the preference"
    )


class PreferenceReward:
    """Rewards by a reward model, for requests that are rows of a log.

    Args:
        model: in evaluation mode, on the device to compute on.
        histories: whose rows are asked for; what came strictly before a row is its history.
        weights: tower or `pscore` -> weight.
        key: how errors call the weights.

    Raises:
        ConfigError: a weight of no tower.
        DataError: the log lacks a column that the model reads.
    """

    def __init__(self, model: PreferenceModel, histories: Histories, weights: Mapping[str, float], key: str) -> None:
        self._names = [signal.name for signal in model.signals]
        require_known(key, weights, [*self._names, PSCORE])
        self._model, self._weights = model, weights
        self._reader = EventReader(histories, model.signals, model.max_history_items)

    def __call__(self, rows_B: np.ndarray, items_BG: np.ndarray) -> np.ndarray:
        """Reward (B, G), float32, of each item; 0 where there is none (-1)."""
        step = max(1, _PAIRS_AT_A_TIME // items_BG.shape[1])
        parts = [
            self._score(rows_B[first : first + step], np.maximum(items_BG[first : first + step], 0))
            for first in range(0, len(rows_B), step)
        ]
        return np.where(items_BG >= 0, np.concatenate(parts), 0.0).astype(np.float32)

    @torch.inference_mode()
    def _score(self, rows_B: np.ndarray, items_BG: np.ndarray) -> np.ndarray:
        device = self._model.device
        items = torch.from_numpy(items_BG.astype(np.int64)).to(device)
        scores = self._model(self._reader.contexts(rows_B, device), items)
        weighted = [weight * self._value(scores, name) for name, weight in self._weights.items()]
        return torch.stack(weighted).sum(dim=0).cpu().numpy()

    def _value(self, scores: Scores, name: str) -> Tensor:
        return scores.pscores if name == PSCORE else scores.towers[self._names.index(name)].expected_BG
