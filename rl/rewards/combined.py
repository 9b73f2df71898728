"""The reward of a generated item as the config puts it together: a sum, then industrial rules in their order.

The sum: base, ranking reward, and what judges of a log's row say: the reward model, the user's own later events.
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from rl.rewards.industrial import IndustrialRules
from rl.rewards.rank import ranking_rewards, ranks_of
from rl.rollout import PromptBatch
from rl.settings import RewardSettings

Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of rows (B,) and items (B, G), -1 for none: rewards (B, G)


class ItemRewards:
    """Rewards bound to a catalogue.

    Args:
        settings: which rewards, and their weights.
        codes_NL: the ID table, for prefix credit.
        items: the items table, row k is item index k, for the rules.
        judges: each with its weight in the sum.

    Raises:
        ConfigError: a rule that does not fit the items table.
    """

    def __init__(
        self,
        settings: RewardSettings,
        codes_NL: np.ndarray,
        items: pl.DataFrame,
        judges: Sequence[tuple[float, Judge]] = (),
    ) -> None:
        self._settings = settings
        self._codes_NL = codes_NL
        self._judges = judges
        self._rules = IndustrialRules(settings.rules, items)

    def __call__(self, prompts: PromptBatch, items_BG: np.ndarray, scores_BG: np.ndarray) -> np.ndarray:
        """Reward (B, G), float32, of each item.

        Args:
            prompts: what the items were generated for.
            items_BG: item indices, -1 where there is none.
            scores_BG: the policy's log-probabilities, which rank the items of a group.
        """
        rewards_BG: np.ndarray = np.full(items_BG.shape, self._settings.base)
        settings = self._settings
        if settings.rank_weight:
            targets_B, ranks_BG = prompts.targets_B, ranks_of(scores_BG)
            ranked_BG = ranking_rewards(items_BG, ranks_BG, targets_B, self._codes_NL, settings.prefix_credit)
            rewards_BG = rewards_BG + settings.rank_weight * ranked_BG
        for weight, judge in self._judges:
            rewards_BG = rewards_BG + weight * judge(prompts.rows_B, items_BG)
        return self._rules.apply(rewards_BG, items_BG)
