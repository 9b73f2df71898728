"""How long a user of the closed loop stays, and whether he comes back: both grow with what he was content to watch.

Contentment with a slate is the mean over its places of 1 - exp(-seconds watched / 20): a place that is skipped adds
nearly nothing, a minute of watching nearly 1. After every slate he stays for another one, and at every occasion he
comes back for another session, with a probability that is a logistic function of it.

B users, n places of a slate.
"""

from enum import IntEnum

import numpy as np
from scipy.special import expit

from onerec.world.outcomes import Outcomes
from onerec.world.randomness import Purpose, fold, purpose_key, uniform
from onerec.world.users import UserState
from onerec.world.world import World

_CONTENT_SECONDS = 20.0


class _Lane(IntEnum):
    STAY = 0
    RETURN = 1


def contentment(outcomes: Outcomes) -> np.ndarray:
    """How content each user is with a slate (B,): 0 for nothing watched, below 1."""
    return np.asarray(-np.expm1(-outcomes.watch_seconds / _CONTENT_SECONDS).mean(axis=1))


def stay_chance(contentment_B: np.ndarray) -> np.ndarray:
    """Probability (B,) that a user asks for another slate after one that left him so content."""
    return np.asarray(expit(-0.5 + 4.0 * contentment_B))


def return_chance(contentment_B: np.ndarray) -> np.ndarray:
    """Probability (B,) that a user takes an occasion for a session, by his mean contentment in the last one."""
    return np.asarray(expit(-1.5 + 5.0 * contentment_B))


def stays(world: World, state: UserState, contentment_B: np.ndarray) -> np.ndarray:
    """Whether users (B,) go on after the slate that they were shown in this state."""
    return uniform(_key(world, state), _Lane.STAY) < stay_chance(contentment_B)


def returns(world: World, state: UserState, contentment_B: np.ndarray) -> np.ndarray:
    """Whether users (B,) come at the occasion that this state is, after a last session of this contentment."""
    return uniform(_key(world, state), _Lane.RETURN) < return_chance(contentment_B)


def _key(world: World, state: UserState) -> np.ndarray:
    key = purpose_key(world.settings.seed, Purpose.SESSION)
    return fold(fold(key, state.users.users_B), state.requests_B)
