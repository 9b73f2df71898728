"""Ranking reward of MiniOneRec (arXiv 2510.24431, `rl.py` of its repository): an exact hit, and a penalty by rank.

Shapes: B requests, G samples of a request, N items, L levels.

    reward = [item is the target] + penalty
    penalty of a wrong item at rank i (from 0) = -d_i / (d_0 + ... + d_{G-1}),  d_i = 1 / log2(i + 2)

The hit has no penalty, and a group without a hit has none at all: its rewards are all 0 and it teaches nothing.
Worked example: G = 3, target at rank 1. d = 1, .6309, .5; rewards -.4693, 1, -.2347.

Departure: by option a wrong item earns `prefix_credit * m / L` for sharing its first m codes with the target, also
in a group without a hit.
"""

import numpy as np


def ranking_rewards(
    items_BG: np.ndarray, ranks_BG: np.ndarray, targets_B: np.ndarray, codes_NL: np.ndarray, prefix_credit: float = 0.0
) -> np.ndarray:
    """Reward (B, G), float32, of sampled items; 0 where there is no item (-1).

    Args:
        items_BG: item indices.
        ranks_BG: place of each sample in its group, the policy's likeliest first, from 0.
        targets_B: the item that was wanted.
        codes_NL: the ID table, for prefix credit.
        prefix_credit: what a wrong item whose codes are all those of the target would earn.
    """
    hits_BG = items_BG == targets_B[:, None]
    discounts_BG = 1.0 / np.log2(ranks_BG + 2.0)
    penalties_BG = np.where(hits_BG, 0.0, -discounts_BG / discounts_BG.sum(axis=1, keepdims=True))
    rewards_BG = hits_BG + penalties_BG * hits_BG.any(axis=1, keepdims=True)
    if prefix_credit:
        matched_BG = matching_prefix(items_BG, targets_B, codes_NL)
        rewards_BG = rewards_BG + np.where(hits_BG, 0.0, prefix_credit * matched_BG / codes_NL.shape[1])
    return np.where(items_BG >= 0, rewards_BG, 0.0).astype(np.float32)


def ranks_of(scores_BG: np.ndarray) -> np.ndarray:
    """Place of each score in its row, the highest first, from 0; equal scores in their order."""
    return np.argsort(np.argsort(-scores_BG, axis=1, kind="stable"), axis=1, kind="stable")


def matching_prefix(items_BG: np.ndarray, targets_B: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
    """How many leading codes (B, G) each item shares with its request's target."""
    same_BGL = codes_NL[items_BG] == codes_NL[targets_B][:, None]
    return np.cumprod(same_BGL, axis=2).sum(axis=2)
