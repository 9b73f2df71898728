"""What the world knows and no model may: true values of slates, the best slates, and how far a policy is from them.

B users, n places of a slate, N items, K places of a ranking.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from tqdm import tqdm

from onerec.errors import DataError
from onerec.world.outcomes import chances_of_catalogue
from onerec.world.users import UserState, take
from onerec.world.world import World

_SCORES_AT_ONCE = 4_000_000


class Objective(StrEnum):
    """Which chance of `Chances` a policy is judged by."""

    CLICK = "click"
    LIKE = "like"
    FOLLOW = "follow"
    WATCH_SECONDS = "watch_seconds"


@dataclass(frozen=True)
class OracleRanking:
    """The items of highest true value for each user, best first; ties go to the lower index."""

    items_BK: np.ndarray
    values_BK: np.ndarray


def slate_values(world: World, state: UserState, slates_Bn: np.ndarray, objective: Objective) -> np.ndarray:
    """True expected value (B, n) of each place of the slates for users in this state; 0 where a place is empty (-1)."""
    return np.where(slates_Bn >= 0, getattr(world.chances(state, slates_Bn), objective.value), 0.0)


def rank(world: World, state: UserState, k: int, objective: Objective) -> OracleRanking:
    """The best `k` items for every user in this state.

    Raises:
        DataError: k larger than the catalogue.
    """
    if k > world.catalogue.num_items:
        raise DataError(f"found k = {k}, expected at most the {world.catalogue.num_items} items of this world.")
    num_users = len(state.requests_B)
    block = max(1, _SCORES_AT_ONCE // world.catalogue.num_items)
    rows = [
        np.argsort(-_catalogue_values(world, take(state, slice(start, start + block)), objective), kind="stable")[:, :k]
        for start in tqdm(range(0, num_users, block), desc="Oracle ranking", disable=num_users <= block)
    ]
    items_BK = np.concatenate(rows) if rows else np.zeros((0, k), np.int64)
    return OracleRanking(items_BK, slate_values(world, state, items_BK, objective))


def regret(world: World, state: UserState, slates_Bn: np.ndarray, objective: Objective) -> np.ndarray:
    """How much expected value (B,) each user's slate leaves to the best slate of as many different items."""
    best = rank(world, state, slates_Bn.shape[1], objective)
    return best.values_BK.sum(axis=1) - slate_values(world, state, slates_Bn, objective).sum(axis=1)


def _catalogue_values(world: World, state: UserState, objective: Objective) -> np.ndarray:
    return getattr(chances_of_catalogue(world.catalogue, state), objective.value)
