"""What the world knows and no model may: true values of slates, the best slates, and how far a policy is from them.

B users, n places of a slate, N items, K places of a ranking.
"""

from collections.abc import Sequence
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


def rank(
    world: World, state: UserState, k: int, objective: Objective, excluded: Sequence[np.ndarray] | None = None
) -> OracleRanking:
    """The best `k` items for every user in this state; -1 fills the end where fewer are allowed.

    Args:
        excluded: items that each user's ranking leaves out, one array a user; None leaves out nothing.

    Raises:
        DataError: k larger than the catalogue, or not one array of excluded items a user.
    """
    if k > world.catalogue.num_items:
        raise DataError(f"found k = {k}, expected at most the {world.catalogue.num_items} items of this world.")
    num_users = len(state.requests_B)
    if excluded is not None and len(excluded) != num_users:
        raise DataError(f"excluded: found {len(excluded)} arrays, expected one for each of {num_users} users.")
    block = max(1, _SCORES_AT_ONCE // world.catalogue.num_items)
    rows = []
    for start in tqdm(range(0, num_users, block), desc="Oracle ranking", disable=num_users <= block):
        part = slice(start, start + block)
        values_BN = _catalogue_values(world, take(state, part), objective)
        rows.append(_best(values_BN, k, excluded[part] if excluded is not None else ()))
    items_BK = np.concatenate(rows) if rows else np.zeros((0, k), np.int64)
    return OracleRanking(items_BK, slate_values(world, state, items_BK, objective))


def regret(world: World, state: UserState, slates_Bn: np.ndarray, objective: Objective) -> np.ndarray:
    """How much expected value (B,) each user's slate leaves to the best slate of as many different items."""
    best = rank(world, state, slates_Bn.shape[1], objective)
    return best.values_BK.sum(axis=1) - slate_values(world, state, slates_Bn, objective).sum(axis=1)


def _best(values_BN: np.ndarray, k: int, excluded: Sequence[np.ndarray]) -> np.ndarray:
    """The `k` items (B, K) of highest value in each row that its array of excluded ones leaves."""
    for row, items in enumerate(excluded):
        values_BN[row, items] = -np.inf
    items_BK = np.argsort(-values_BN, axis=1, kind="stable")[:, :k]
    return np.where(np.isneginf(np.take_along_axis(values_BN, items_BK, axis=1)), -1, items_BK)


def _catalogue_values(world: World, state: UserState, objective: Objective) -> np.ndarray:
    return getattr(chances_of_catalogue(world.catalogue, state), objective.value)
