"""What a reward model expects users to make of items, as one number an item.

    reward = sum over names of weight * expected value

A name is a column with a tower, whose expected value is in its own unit (a probability; seconds; a count), or `pscore`.
So the weights are what a business would pay: {watch_seconds: 1, like: 20} counts a like as twenty seconds.

Shapes: B requests, G items of a request.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from onerec.model.preference.contexts import Contexts
from onerec.model.preference.network import PSCORE, PreferenceModel, Scores
from onerec.model.preference.signals import require_known

_PAIRS_AT_A_TIME = 16_384  # of a request and an item


class PreferenceJudge:
    """Rewards by a reward model.

    Args:
        model: in evaluation mode, on the device to compute on.
        weights: tower or `pscore` -> weight.
        key: how errors call the weights.

    Raises:
        ConfigError: a weight of no tower.
    """

    def __init__(self, model: PreferenceModel, weights: Mapping[str, float], key: str) -> None:
        self._names = [signal.name for signal in model.signals]
        require_known(key, weights, [*self._names, PSCORE])
        self.model, self._weights = model, weights

    def __call__(self, contexts: Contexts, items_BG: np.ndarray) -> np.ndarray:
        """Reward (B, G), float32, of each item; 0 where there is none (-1)."""
        step = max(1, _PAIRS_AT_A_TIME // items_BG.shape[1])
        parts = [
            self._score(contexts.of(slice(first, first + step)), np.maximum(items_BG[first : first + step], 0))
            for first in range(0, len(items_BG), step)
        ]
        return np.where(items_BG >= 0, np.concatenate(parts), 0.0).astype(np.float32)

    @torch.inference_mode()
    def _score(self, contexts: Contexts, items_BG: np.ndarray) -> np.ndarray:
        items = torch.from_numpy(items_BG.astype(np.int64)).to(self.model.device)
        scores = self.model(contexts, items)
        weighted = [weight * self._value(scores, name) for name, weight in self._weights.items()]
        return torch.stack(weighted).sum(dim=0).cpu().numpy()

    def _value(self, scores: Scores, name: str) -> Tensor:
        return scores.pscores if name == PSCORE else scores.towers[self._names.index(name)].expected_BG
