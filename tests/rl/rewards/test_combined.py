"""The reward that a config puts together."""

import numpy as np
import polars as pl
import torch

from rl.rewards.combined import ItemRewards
from rl.rollout import PromptBatch
from rl.settings import RewardSettings

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c"], "genre": ["x", "y", "y"]})
CODES_NL = np.array([[0, 0], [0, 1], [1, 0]])
NOTHING = torch.zeros(1, 1)
PROMPTS = PromptBatch(np.array([5]), NOTHING, NOTHING, targets_B=np.array([0]), seen=[])


def test_base_ranking_and_rules_in_their_order() -> None:
    rules = [{"kind": "boost", "column": "genre", "values": ["y"], "factor": 3}]
    rewards = ItemRewards(RewardSettings(base=1, rank_weight=2, rules=rules), CODES_NL, ITEMS)
    # Scores put item 2 first: d = 1 for it, 1 / log2 3 for item 0.
    first, second = 1.0, 1 / np.log2(3)
    found = rewards(PROMPTS, np.array([[0, 2]]), np.array([[-2.0, -1.0]]))
    np.testing.assert_allclose(found, [[3, (1 - 2 * first / (first + second)) / 3]], rtol=1e-6)  # below 0: divided


def test_without_a_ranking_reward_every_item_earns_the_base() -> None:
    rewards = ItemRewards(RewardSettings(base=0.5, rank_weight=0), CODES_NL, ITEMS)
    assert rewards(PROMPTS, np.array([[0, 1]]), np.array([[-2.0, -1.0]])).tolist() == [[0.5, 0.5]]


def test_prefix_credit_reads_the_table() -> None:
    rewards = ItemRewards(RewardSettings(prefix_credit=0.5), CODES_NL, ITEMS)
    assert rewards(PROMPTS, np.array([[1, 2]]), np.array([[-2.0, -1.0]])).tolist() == [[0.25, 0]]
