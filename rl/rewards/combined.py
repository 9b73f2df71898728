"""The reward of a generated item as the config puts it together: base, ranking reward, industrial rules in order."""

import numpy as np
import polars as pl

from rl.rewards.industrial import IndustrialRules
from rl.rewards.rank import ranking_rewards, ranks_of
from rl.settings import RewardSettings


class ItemRewards:
    """Rewards bound to a catalogue.

    Args:
        settings: which rewards, and their weights.
        codes_NL: the ID table, for prefix credit.
        items: the items table, row k is item index k, for the rules.

    Raises:
        ConfigError: a rule that does not fit the items table.
    """

    def __init__(self, settings: RewardSettings, codes_NL: np.ndarray, items: pl.DataFrame) -> None:
        self._settings = settings
        self._codes_NL = codes_NL
        self._rules = IndustrialRules(settings.rules, items)

    def __call__(self, items_BG: np.ndarray, scores_BG: np.ndarray, targets_B: np.ndarray) -> np.ndarray:
        """Reward (B, G), float32, of each item.

        Args:
            items_BG: item indices, -1 where there is none.
            scores_BG: the policy's log-probabilities, which rank the items of a group.
            targets_B: the item that each prompt's user went on to.
        """
        rewards_BG: np.ndarray = np.full(items_BG.shape, self._settings.base)
        if self._settings.rank_weight:
            ranked_BG = ranking_rewards(
                items_BG, ranks_of(scores_BG), targets_B, self._codes_NL, self._settings.prefix_credit
            )
            rewards_BG = rewards_BG + self._settings.rank_weight * ranked_BG
        return self._rules.apply(rewards_BG, items_BG)
