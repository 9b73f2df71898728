"""The preference reward: what the reward model expects a user to make of generated items.

Shapes: B requests, G items of a request.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import Field, FiniteFloat

from onerec.data.histories import Histories
from onerec.model.preference.contexts import EventReader
from onerec.model.preference.judge import PreferenceJudge
from onerec.model.preference.network import PSCORE, PreferenceModel
from tokenizer.settings import Settings


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
        self._judge = PreferenceJudge(model, weights, key)
        self._reader = EventReader(histories, model.signals, model.max_history_items)

    def __call__(self, rows_B: np.ndarray, items_BG: np.ndarray) -> np.ndarray:
        """Reward (B, G), float32, of each item; 0 where there is none (-1)."""
        return self._judge(self._reader.contexts(rows_B, self._judge.model.device), items_BG)
